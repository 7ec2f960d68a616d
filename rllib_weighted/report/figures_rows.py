"""Draws what has a row per arm, or a point per minimum weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rllib_weighted.report.figures import Scene, metric_label
from rllib_weighted.report.style import (
    ROW,
    WIDTH,
    Drawing,
    Look,
    canvas,
    legend_below,
    looks,
    plain,
)

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
