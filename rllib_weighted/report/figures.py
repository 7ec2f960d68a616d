"""Draws what the statistics found, one panel a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rllib_weighted.report.arms import format_number
from rllib_weighted.report.convergence import encoded
from rllib_weighted.report.reading import METRIC, STOCK_METRIC
from rllib_weighted.report.style import (
    WIDTH,
    Drawing,
    Look,
    canvas,
    file_stem,
    legend_below,
    pictures,
    plain,
    step_axis,
)
from rllib_weighted.report.survival import reached_curve
from rllib_weighted.report.tables import Tables

MOST_LINES = 7
MOST_HEAT_MAPS = 6

_RETURNS = (METRIC, STOCK_METRIC)


@dataclass(frozen=True)
class Scene:
    """One environment and what is needed to draw it.

    Attributes:
        number: The environment's number in the report, for file names.
        env: The environment.
        tables: All statistics.
        looks: Look of each arm.
        baseline: Arms that others are compared with.
    """

    number: int
    env: str
    tables: Tables
    looks: dict[str, Look]
    baseline: Sequence[str]

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of a table that are about this environment."""
        return table[table["env"] == self.env] if "env" in table else table.iloc[:0]

    def groups(self) -> list[tuple[str, list[str]]]:
        """Returns which arms share a figure, with the name of each group.

        All of them if they are few; else those of each strategy, beside the baseline.
        """
        arms = list(self.looks)
        if len(arms) <= MOST_LINES:
            return [("", arms)]
        strategies = self.rows(self.tables.arms).set_index("arm")["strategy"]
        beside = list(self.baseline)[:1]
        found = []
        for strategy in dict.fromkeys(strategies[arms]):
            own = [arm for arm in arms if strategies[arm] == strategy and arm not in beside]
            size = MOST_LINES - len(beside)
            for number, start in enumerate(range(0, len(own), size), start=1):
                label = strategy if len(own) <= size else f"{strategy} ({number})"
                found.append((label, [*beside, *own[start : start + size]]))
        return found

    def drawing(
        self, figure: Any, section: str, title: str, note: str = "", part: str = ""
    ) -> Drawing:
        """Returns a finished figure with the file name that belongs to it."""
        png, svg = pictures(figure)
        stem = file_stem(section, str(self.number), self.env, *([part] if part else []))
        return Drawing(stem, self.env, section, title, note, png, svg)


def metric_label(metric: str) -> str:
    """Returns the label of an axis that shows the metric."""
    return "mean return (reward)" if metric in _RETURNS else f"{plain(metric, 28)} (its unit)"


def draw_curves(scene: Scene) -> Iterator[Drawing]:
    """Draws learning curves."""
    table = scene.rows(scene.tables.learning_curves)
    limit = scene.tables.thresholds[scene.env]
    for group, arms in scene.groups():
        with canvas() as (figure, axes):
            for arm in arms:
                _curve(axes, table[table["arm"] == arm], scene.looks[arm])
            if limit.exists:
                axes.axhline(limit.value, color="#777777", linewidth=0.8, linestyle=":")
                axes.annotate(
                    f"threshold {format_number(limit.value)}",
                    (0.01, limit.value),
                    xycoords=("axes fraction", "data"),
                    va="bottom",
                    fontsize=7.5,
                    color="#444444",
                    bbox={"facecolor": "#ffffff", "alpha": 0.7, "linewidth": 0, "pad": 1},
                )
            step_axis(axes)
            axes.set_ylabel(metric_label(scene.tables.metric))
            legend_below(figure, scene.looks, arms)
            yield scene.drawing(
                figure,
                "curves",
                f"Learning curves{f', {group}' if group else ''}",
                f"{scene.tables.metric}: interquartile mean over runs and its bootstrap band; "
                "thin where some runs of the arm have not come so far.",
                group,
            )


def _curve(axes: Axes, table: pd.DataFrame, look: Look) -> None:
    complete = table["num_runs"] == table["total_runs"]
    whole = table[complete]
    every = max(1, len(whole) // 8)
    style: dict[str, Any] = {"color": look.color, "linestyle": look.line}
    axes.plot(table["env_steps"], table["iqm"], linewidth=0.7, alpha=0.6, **style)
    axes.plot(
        whole["env_steps"],
        whole["iqm"],
        linewidth=1.5,
        marker=look.marker,
        markersize=4,
        markevery=(every // 2, every),
        **style,
    )
    axes.fill_between(
        whole["env_steps"], whole["low"], whole["high"], color=look.color, alpha=0.13, linewidth=0
    )


def draw_reached(scene: Scene) -> Iterator[Drawing]:
    """Draws which fraction of the runs has reached the threshold."""
    runs = scene.rows(scene.tables.convergence_runs)
    if runs.empty:
        return
    for group, arms in scene.groups():
        with canvas() as (figure, axes):
            for arm in arms:
                _reached(axes, runs[runs["arm"] == arm], scene.looks[arm])
            step_axis(axes)
            axes.set_ylim(-0.03, 1.03)
            axes.set_ylabel("runs at the threshold (fraction)")
            legend_below(figure, scene.looks, arms)
            yield scene.drawing(
                figure,
                "reached",
                f"Runs that have reached the threshold{f', {group}' if group else ''}",
                "Kaplan-Meier estimate. A short stroke: a run ended there without having reached "
                "it (censored).",
                group,
            )


def _reached(axes: Axes, runs: pd.DataFrame, look: Look) -> None:
    if runs.empty:
        return
    times = encoded(runs, "env_steps")
    curve = reached_curve(times)
    end = float(np.abs(times).max())
    x = np.concatenate([[0.0], curve.quantiles, [end]])
    y = np.concatenate([[0.0], curve.probabilities, curve.probabilities[-1:]])
    line: dict[str, Any] = {"color": look.color, "linestyle": look.line}
    axes.step(x, y, where="post", linewidth=1.5, **line)
    axes.plot(x[1:-1], y[1:-1], look.marker, color=look.color, markersize=4)
    censored = -times[times < 0]
    axes.plot(censored, curve.evaluate(censored), "|", color=look.color, markersize=9)


def draw_effective(scene: Scene) -> Iterator[Drawing]:
    """Draws the effective number of workers over time."""
    table = scene.rows(scene.tables.weight_curves)
    if table.empty:
        return
    present = set(table["arm"])
    for group, arms in scene.groups():
        shown = [arm for arm in arms if arm in present]
        if not shown:
            continue
        with canvas() as (figure, axes):
            for arm in shown:
                part, look = table[table["arm"] == arm], scene.looks[arm]
                every = max(1, len(part) // 8)
                axes.plot(
                    part["round"],
                    part["effective_workers"],
                    color=look.color,
                    linestyle=look.line,
                    marker=look.marker,
                    markersize=4,
                    markevery=(every // 2, every),
                )
                axes.fill_between(
                    part["round"],
                    part["effective_low"],
                    part["effective_high"],
                    color=look.color,
                    alpha=0.13,
                    linewidth=0,
                )
            axes.set_xlabel("round (rounds)")
            axes.set_ylabel("effective workers (workers)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            legend_below(figure, scene.looks, shown)
            yield scene.drawing(
                figure,
                "effective",
                f"Effective number of workers{f', {group}' if group else ''}",
                "(sum w)^2 / sum w^2: mean over runs, and from the lowest to the highest run.",
                group,
            )


def draw_shares(scene: Scene) -> Iterator[Drawing]:
    """Draws a heat map of the workers' shares for one run of each arm."""
    table = scene.rows(scene.tables.shares)
    if table.empty:
        return
    arms = list(dict.fromkeys(table["arm"]))
    for arm in arms[:MOST_HEAT_MAPS]:
        part = table[table["arm"] == arm]
        cells = part.pivot(index="worker", columns="round", values="share")
        width = cells.columns[0]
        with canvas(WIDTH, 2.6) as (figure, axes):
            image = axes.imshow(
                cells.to_numpy(),
                aspect="auto",
                cmap="cividis",
                interpolation="nearest",
                vmin=0,
                vmax=max(2 / len(cells), part["share"].max()),  # Equal shares: half way.
                extent=(0, float(cells.columns[-1]), len(cells) - 0.5, -0.5),
            )
            axes.grid(visible=False)
            axes.set_xlabel("round (rounds)")
            axes.set_ylabel("worker (number)")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            figure.colorbar(image, ax=axes, label="share (fraction)")
            seed = part["seed"].iat[0]
            which = "run without a seed" if pd.isna(seed) else f"run with seed {seed}"
            means = f"means over {width} rounds; " if width > 1 else ""
            yield scene.drawing(
                figure,
                "shares",
                f"Shares, {plain(arm, 60)}",
                f"{which.capitalize()}, the arm's lowest; {means}white: dropped. Workers of "
                "different seeds have nothing in common, so runs are not averaged.",
                arm,
            )
