"""Draws what the statistics found, one panel a figure."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from rllib_weighted.report.measures import encoded
from rllib_weighted.report.results import METRIC, STOCK_METRIC, format_number
from rllib_weighted.report.statistics import reached_curve
from rllib_weighted.report.tables import Tables

# How figures look: colours and markers that stay apart without colour vision, and sizes


BASELINE_COLOR = "#000000"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito, 2008, without yellow, which is too light for lines; the baseline is black."""
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
LINES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

WIDTH = 4.6  # inches
HEIGHT = 3.3
ROW = 0.34  # inches per row of a figure with a row per arm
DPI = 160

_RC: dict[str, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.2,
    "svg.hashsalt": "rllib_weighted",  # The same ids in every run.
    "text.parse_math": False,  # A "$" in a name is a "$".
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of an arm, the same in every figure of its environment."""

    color: str
    marker: str
    line: Any


def looks(arms: Sequence[str], baseline: Sequence[str]) -> dict[str, Look]:
    """Returns the look of each arm of an environment; those of the baseline are black.

    The cycles have lengths without a common divisor, so that combinations repeat late.
    """
    found: dict[str, Look] = {}
    count = 0
    for arm in arms:
        if arm in baseline:
            number = sum(1 for other in found if other in baseline)
            line = "-" if number == 0 else LINES[(number - 1) % len(LINES)]
            found[arm] = Look(BASELINE_COLOR, "o", line)
        else:
            found[arm] = Look(
                COLORS[count % len(COLORS)],
                MARKERS[count % len(MARKERS)],
                LINES[count % len(LINES)],
            )
            count += 1
    return found


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: Its file's name, without a suffix.
        env: The environment that it shows.
        section: The part of the report that it belongs to.
        title: What it shows.
        note: What has to be known to read it.
        png: The picture as PNG.
        svg: The picture as SVG.
    """

    name: str
    env: str
    section: str
    title: str
    note: str
    png: bytes
    svg: bytes


@contextmanager
def canvas(width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Gives an empty figure with one panel, in our style."""
    with mpl.rc_context(cast(Any, _RC)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def pictures(figure: Figure) -> tuple[bytes, bytes]:
    """Returns a figure as PNG and as SVG, the same bytes for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # It is laid out: not once more for each file.
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def step_axis(axes: Axes) -> None:
    """Labels the horizontal axis as environment steps."""
    axes.set_xlabel("environment steps (steps)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def legend_below(figure: Figure, looks: dict[str, Look], arms: Sequence[str]) -> None:
    """Puts the arms' names under a figure, one a line where they are long."""
    handles = [
        Line2D([], [], color=looks[arm].color, marker=looks[arm].marker, linestyle=looks[arm].line)
        for arm in arms
    ]
    names = [plain(arm, 60) for arm in arms]
    columns = 2 if max(map(len, names), default=0) <= 26 else 1
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def plain(text: str, longest: int = 40) -> str:
    """Returns text that a figure can show: one line, no control characters, not too long.

    Matplotlib leaves names that begin with an underscore out of legends.
    """
    shown = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown


def file_stem(*parts: str) -> str:
    """Returns a file's name made of words, safe on any file system."""
    return "_".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40] for part in parts)


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


# Draws what has a row per arm, or a point per minimum weight


MOST_ROWS = 24


class Points(NamedTuple):
    """One kind of point in a figure with a row per arm.

    Attributes:
        column: The value; its interval's ends are in `…_low` and `…_high`.
        name: Its name in the legend.
        filled: Whether it is filled.
    """

    column: str
    name: str
    filled: bool = True


def draw_faster(scene: Scene) -> Iterator[Drawing]:
    """Draws how many percent faster each arm is than the baseline, with intervals."""
    table = scene.rows(scene.tables.comparisons)
    kinds = {"env steps to threshold": "env steps", "wall time to threshold": "wall time"}
    times = table[table["measure"].isin(kinds) & table["effect"].notna()]
    if times.empty:
        return
    times = times.rename(columns={"low": "effect_low", "high": "effect_high"})
    times["measure"] = times["measure"].map(kinds)
    wide = times.pivot(
        index="arm", columns="measure", values=["effect", "effect_low", "effect_high"]
    )
    wide.columns = [f"{kind}{value.removeprefix('effect')}" for value, kind in wide.columns]
    order = [arm for arm in scene.looks if arm in wide.index]
    level = f"{100 * scene.tables.confidence:g} %"
    points = [Points(kind, kind, kind == "env steps") for kind in kinds.values() if kind in wide]
    with _rows(scene, wide.loc[order].reset_index(), points, "faster than baseline (%)") as (
        figure,
        axes,
    ):
        axes.axvline(0, color="#000000", linewidth=0.8)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -150), min(high, 105))  # A slow arm's interval has no end.
        yield scene.drawing(
            figure,
            "faster",
            "Time to the threshold against the baseline",
            f"Percent faster than {', '.join(scene.baseline)}, and {level} interval; right of 0 is "
            f"faster. Intervals are cut off at -150 %.{_cut(order)}",
        )


def draw_finals(scene: Scene) -> Iterator[Drawing]:
    """Draws the final returns, on training and on held-out seeds."""
    table = scene.rows(scene.tables.final_returns)
    table = table[table["final"].notna() & table["arm"].isin(scene.looks)]
    if table.empty:
        return
    points = [Points("final", "training seeds")]
    if table["held_out"].notna().any():
        points.append(Points("held_out", "held-out seeds", False))
    with _rows(scene, table, points, "final return (reward)") as (figure, _):
        yield scene.drawing(
            figure,
            "finals",
            "Final return",
            f"Interquartile mean over runs, and bootstrap interval.{_cut(table)}",
        )


def _cut(arms: Sized) -> str:
    return f" The first {MOST_ROWS} of {len(arms)} arms." if len(arms) > MOST_ROWS else ""


@contextmanager
def _rows(
    scene: Scene, table: pd.DataFrame, points: Sequence[Points], label: str
) -> Iterator[tuple[Figure, Axes]]:
    """Gives a figure with a row per arm, its points and their intervals drawn."""
    shown = table.head(MOST_ROWS)
    height = 1.0 + ROW * len(shown) * (1 + 0.5 * (len(points) - 1))
    with canvas(WIDTH, max(1.7, height)) as (figure, axes):
        y = np.arange(len(shown), dtype=np.float64)
        for number, kind in enumerate(points):
            offset = 0.32 * (number - (len(points) - 1) / 2)
            for row, (_, values) in zip(y, shown.iterrows(), strict=True):
                _point(axes, scene, values, kind, row + offset)
        axes.set_yticks(y, [plain(arm, 34) for arm in shown["arm"]])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(label)
        if len(points) > 1:
            handles = [_key(axes, kind) for kind in points]
            names = [kind.name for kind in points]
            figure.legend(handles, names, loc="outside lower center", ncols=len(points))
        yield figure, axes


def _point(axes: Axes, scene: Scene, values: Any, kind: Points, y: float) -> None:
    look = scene.looks[values["arm"]]
    low, high = values[f"{kind.column}_low"], values[f"{kind.column}_high"]
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([low, high], [y, y], color=look.color, linewidth=1.4 if kind.filled else 0.9)
    axes.plot(
        [values[kind.column]],
        [y],
        look.marker,
        color=look.color,
        markersize=6,
        markerfacecolor=look.color if kind.filled else "#ffffff",
    )


def _key(axes: Axes, kind: Points) -> Any:
    face = "#444444" if kind.filled else "#ffffff"
    (handle,) = axes.plot([], [], "o", color="#444444", markerfacecolor=face)
    return handle


def draw_sensitivity(scene: Scene) -> Iterator[Drawing]:
    """Draws final return and convergence over the minimum weight."""
    table = scene.rows(scene.tables.sensitivity)
    limit = scene.tables.thresholds[scene.env]
    kinds = [
        ("final", "final_low", "final_high", metric_label(scene.tables.metric), "Final return")
    ]
    if limit.exists:
        label = f"mean steps to {limit.value:g} (steps)"
        title = "Environment steps to the threshold"
        kinds.append(("mean_env_steps", "low_env_steps", "high_env_steps", label, title))
    for column, low, high, label, title in kinds:
        known = table[table[column].notna()]
        if known["min_weight"].nunique() < 2:
            continue
        line_looks = _line_looks(scene, known)
        with canvas() as (figure, axes):
            _weight_axis(axes, known["min_weight"].dropna())
            for line, look in line_looks.items():
                _sensitivity_line(axes, known[known["line"] == line], look, (column, low, high))
            if column == "mean_env_steps":
                axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_ylabel(label)
            legend_below(figure, line_looks, list(line_looks))
            yield scene.drawing(
                figure,
                "sensitivity",
                f"{title} over the minimum weight",
                "Interquartile mean or restricted mean, with bootstrap intervals; a level line: a "
                "strategy without a minimum weight.",
                column,
            )


def _line_looks(scene: Scene, table: pd.DataFrame) -> dict[str, Look]:
    """Returns the look of each line; there are less of them than arms, so colours go further."""
    baseline = table.loc[table["arm"].isin(scene.baseline), "line"]
    return looks(list(dict.fromkeys(table["line"])), list(baseline))


def _weight_axis(axes: Axes, weights: pd.Series) -> None:
    """Spreads minimum weights that are far apart: a logarithmic axis, linear around 0."""
    axes.set_xlabel("minimum weight m (1)")
    positive = weights[weights > 0]
    if positive.empty or weights.max() <= 4 * positive.min():
        return
    if (weights > 0).all():
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=positive.min(), linscale=1)
    ticks = sorted(weights.unique())
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=7)
    axes.minorticks_off()


def _sensitivity_line(
    axes: Axes, part: pd.DataFrame, look: Look, columns: tuple[str, str, str]
) -> None:
    """Draws a strategy's values with their intervals; level if it has no minimum weight."""
    column, low, high = columns
    style: dict[str, Any] = {"color": look.color, "linestyle": look.line, "marker": look.marker}
    if part["min_weight"].isna().any():
        row = part.iloc[0]
        across = axes.get_yaxis_transform()
        axes.plot([0.02, 0.98], [row[column]] * 2, transform=across, **style)
        if np.isfinite(row[low]):
            axes.axhspan(row[low], row[high], color=look.color, alpha=0.08, linewidth=0)
        return
    axes.plot(part["min_weight"], part[column], **style)
    for _, row in part.iterrows():
        ends = [row[low], row[high]]
        axes.plot([row["min_weight"]] * 2, ends, color=look.color, linewidth=0.9)
