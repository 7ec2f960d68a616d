"""Draws what the statistics found, one panel a figure."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from rllib_weighted.report.arms import is_baseline
from rllib_weighted.report.formats import format_number, shorten
from rllib_weighted.report.measures import encoded, is_final
from rllib_weighted.report.results import METRIC, STOCK_METRIC
from rllib_weighted.report.statistics import reached_curve
from rllib_weighted.report.tables import Tables, of_env

BASELINE_COLOR = "#000000"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito, 2008, without yellow, which is too light for lines; the baseline is black."""
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
LINES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

WIDTH = 4.6  # inches
HEIGHT = 3.3
ROW = 0.34  # inches per row of a figure with a row per arm
DPI = 160

LEAST_PART = 0.5
"""Part of an arm's runs that must have come so far: a curve of the last survivors jumps."""
MOST_LINES = 7
MOST_HEAT_MAPS = 6
ALL_ENVS = ""
"""Stands for all environments together where a drawing names one."""
DOTS: dict[str, Any] = {"markersize": 3, "alpha": 0.45, "markeredgewidth": 0}
MOST_ROWS = 24
MOST_ARMS_DRAWN = 36

_STYLE = Path(__file__).with_name("report.mplstyle")


@dataclass(frozen=True)
class ArmStyle:
    """Colour, marker and line of an arm, the same in every figure of its environment."""

    color: str
    marker: str
    line: Any

    @property
    def stroke(self) -> dict[str, Any]:
        """What a line of the arm is drawn with."""
        return {"color": self.color, "linestyle": self.line}


def arm_styles(arms: Sequence[str], baseline: Sequence[str]) -> dict[str, ArmStyle]:
    """Returns the style of each arm of an environment; those of the baseline are black.

    The cycles have lengths without a common divisor, so that combinations repeat late.
    """
    own = map(ArmStyle, repeat(BASELINE_COLOR), repeat("o"), chain("-", cycle(LINES)))
    others = map(ArmStyle, cycle(COLORS), cycle(MARKERS), cycle(LINES))
    return {arm: next(own if arm in baseline else others) for arm in arms}


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


@dataclass(frozen=True)
class EnvFigures:
    """One environment and what is needed to draw it.

    Attributes:
        number: The environment's number in the report, for file names.
        env: The environment.
        tables: All statistics.
        styles: Style of each arm.
        baseline: Arms that others are compared with.
    """

    number: int
    env: str
    tables: Tables
    styles: dict[str, ArmStyle]
    baseline: Sequence[str]

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of a table that are about this environment."""
        return of_env(table, self.env)

    def groups(self) -> list[tuple[str, list[str]]]:
        """Returns which arms share a figure, with the name of each group.

        All of them if they are few; else those of each strategy, beside the baseline.
        """
        arms = list(self.styles)
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
        self, figure: Figure, section: str, title: str, note: str, part: str = ""
    ) -> Drawing:
        """Returns a finished figure with the file name that belongs to it."""
        png, svg = pictures(figure)
        stem = file_stem(section, str(self.number), *filter(None, (self.env, part)))
        return Drawing(stem, self.env, section, title, note, png, svg)


def draw_environments(tables: Tables) -> Iterator[Drawing]:
    """Draws all figures of a report; of many arms the baseline's and the first others."""
    for number, env in enumerate(tables.thresholds, start=1):
        baseline = tables.baseline_arms(env)
        arms = list(tables.arms.loc[tables.arms["env"] == env, "arm"])
        drawn = [*baseline, *(arm for arm in arms if arm not in baseline)][:MOST_ARMS_DRAWN]
        styles = arm_styles([arm for arm in arms if arm in drawn], baseline)
        figures = EnvFigures(number, env, tables, styles, baseline)
        for draw in (draw_curves, draw_reached, draw_faster, draw_finals, draw_sensitivity):
            yield from draw(figures)
        for draw in (draw_profile, draw_effective, draw_shares):
            yield from draw(figures)
    yield from draw_pooled(tables)


@contextmanager
def canvas(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Gives an empty figure with one panel, in our style."""
    with mpl.rc_context(fname=_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def pictures(figure: Figure) -> tuple[bytes, bytes]:
    """Returns a figure as PNG and as SVG, the same bytes for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # It is laid out: not once more for each file.
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def plain(text: str, longest: int = 40) -> str:
    """Returns text that a figure can show: one line, no control characters, not too long.

    Matplotlib leaves names that begin with an underscore out of legends.
    """
    shown = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)
    shown = shorten(shown, longest)
    return f" {shown}" if shown.startswith("_") else shown


def file_stem(*parts: str) -> str:
    """Returns a file's name made of words, safe on any file system."""
    return "_".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40] for part in parts)


def metric_label(metric: str) -> str:
    """Returns the label of an axis that shows the metric."""
    is_return = metric in (METRIC, STOCK_METRIC)
    return "mean return (reward)" if is_return else f"{plain(metric, 28)} (its unit)"


def _legend_below(figure: Figure, styles: Mapping[str, ArmStyle], arms: Sequence[str]) -> None:
    """Puts the arms' names under a figure, one a line where they are long."""
    handles = [Line2D([], [], marker=styles[arm].marker, **styles[arm].stroke) for arm in arms]
    names = [plain(arm, 60) for arm in arms]
    columns = 2 if max(map(len, names), default=0) <= 26 else 1
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def _step_axis(axes: Axes, label: str) -> None:
    """Makes the horizontal axis one of environment steps, and labels the other one."""
    axes.set_xlabel("environment steps")
    axes.set_ylabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def _band(axes: Axes, table: pd.DataFrame, style: ArmStyle, x: str, columns: Sequence[str]) -> None:
    """Draws a line with some markers, and a band around it."""
    middle, low, high = columns
    every = max(1, len(table) // 8)
    marks: dict[str, Any] = {"marker": style.marker, "markevery": (every // 2, every)}
    axes.plot(table[x], table[middle], linewidth=1.5, markersize=4, **marks, **style.stroke)
    axes.fill_between(table[x], table[low], table[high], color=style.color, alpha=0.13, linewidth=0)


def _draw_groups(
    figures: EnvFigures,
    table: pd.DataFrame,
    draw: Callable[[Axes, pd.DataFrame, ArmStyle], None],
    finish: Callable[[Axes], None],
    texts: tuple[str, str, str],
) -> Iterator[Drawing]:
    """Draws a figure per group of arms.

    Args:
        figures: The environment.
        table: Its rows; arms that have none are left out.
        draw: Draws the rows of one arm.
        finish: Labels the axes.
        texts: Section, title and note.
    """
    section, title, note = texts
    present = set(table["arm"])
    for group, members in figures.groups():
        arms = [arm for arm in members if arm in present]
        if not arms:
            continue
        with canvas() as (figure, axes):
            for arm in arms:
                draw(axes, table[table["arm"] == arm], figures.styles[arm])
            finish(axes)
            _legend_below(figure, figures.styles, arms)
            name = f"{title}, {group}" if group else title
            yield figures.drawing(figure, section, name, note, group)


def draw_curves(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws learning curves."""
    limit = figures.tables.thresholds[figures.env]

    def draw(axes: Axes, curve: pd.DataFrame, style: ArmStyle) -> None:
        most = curve[curve["num_runs"] >= LEAST_PART * curve["total_runs"]]
        axes.plot(most["env_steps"], most["iqm"], linewidth=0.7, alpha=0.6, **style.stroke)
        whole = curve[curve["num_runs"] == curve["total_runs"]]
        _band(axes, whole, style, "env_steps", ("iqm", "low", "high"))

    def finish(axes: Axes) -> None:
        if limit.exists:
            axes.axhline(limit.value, color="#777777", linewidth=0.8, linestyle=":")
            box = {"facecolor": "#ffffff", "alpha": 0.7, "linewidth": 0, "pad": 1}
            text: dict[str, Any] = {"fontsize": 7.5, "color": "#444444", "bbox": box}
            label, place = f"threshold {format_number(limit.value)}", (0.01, limit.value)
            axes.annotate(label, place, xycoords=("axes fraction", "data"), va="bottom", **text)
        _step_axis(axes, metric_label(figures.tables.metric))

    note = (
        f"{figures.tables.metric}: interquartile mean over runs and its bootstrap band; thin where "
        "some runs of the arm have not come so far, and up to where half of them have."
    )
    table = figures.rows(figures.tables.learning_curves)
    yield from _draw_groups(figures, table, draw, finish, ("curves", "Learning curves", note))


def draw_reached(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws which fraction of the runs has reached the threshold."""

    def draw(axes: Axes, runs: pd.DataFrame, style: ArmStyle) -> None:
        times = encoded(runs, "env_steps")
        curve = reached_curve(times)
        x = np.concatenate([[0.0], curve.quantiles, [np.abs(times).max()]])
        y = np.concatenate([[0.0], curve.probabilities, curve.probabilities[-1:]])
        axes.step(x, y, where="post", linewidth=1.5, **style.stroke)
        axes.plot(x[1:-1], y[1:-1], style.marker, color=style.color, markersize=4)
        censored = -times[times < 0]
        axes.plot(censored, curve.evaluate(censored), "|", color=style.color, markersize=9)

    def finish(axes: Axes) -> None:
        _step_axis(axes, "runs at the threshold (fraction)")
        axes.set_ylim(-0.03, 1.03)

    note = (
        "Kaplan-Meier estimate. A short stroke: a run ended there without having reached it "
        "(censored)."
    )
    table = figures.rows(figures.tables.convergence_runs)
    texts = ("reached", "Runs that have reached the threshold", note)
    yield from _draw_groups(figures, table, draw, finish, texts)


def draw_effective(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws the effective number of workers over time."""
    table = figures.rows(figures.tables.weight_curves)
    if table.empty:
        return

    def draw(axes: Axes, curve: pd.DataFrame, style: ArmStyle) -> None:
        columns = ("effective_workers", "effective_low", "effective_high")
        _band(axes, curve, style, "round", columns)

    def finish(axes: Axes) -> None:
        axes.set_xlabel("round")
        axes.set_ylabel("effective workers")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    note = "(sum w)^2 / sum w^2: mean over runs, and from the lowest to the highest run."
    texts = ("effective", "Effective number of workers", note)
    yield from _draw_groups(figures, table, draw, finish, texts)


def draw_shares(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws a heat map of the workers' shares for one run of each arm."""
    table = figures.rows(figures.tables.shares)
    for arm in table["arm"].unique()[:MOST_HEAT_MAPS]:
        part = table[table["arm"] == arm]
        cells = part.pivot(index="worker", columns="round", values="share")
        width = cells.columns[0]
        with canvas(2.6) as (figure, axes):
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
            axes.set_xlabel("round")
            axes.set_ylabel("worker")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            figure.colorbar(image, ax=axes, label="share (fraction)")
            seed = part["seed"].iat[0]
            which = "Run without a seed" if pd.isna(seed) else f"Run with seed {seed}"
            means = f"means over {width} rounds; " if width > 1 else ""
            note = (
                f"{which}, the arm's lowest; {means}white: dropped. Workers of different seeds "
                "have nothing in common, so runs are not averaged."
            )
            yield figures.drawing(figure, "shares", f"Shares, {plain(arm, 60)}", note, arm)


class Points(NamedTuple):
    """One kind of point in a figure with a row per arm.

    Attributes:
        name: Its name in the legend.
        filled: Whether it is filled.
        values: By arm, the value and the ends of its interval, three columns.
        seeds: By arm, the values of its seeds, one a row.
    """

    name: str
    filled: bool
    values: pd.DataFrame
    seeds: pd.Series


def draw_faster(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws how many percent faster each arm is than the baseline, with intervals."""
    table = figures.rows(figures.tables.comparisons)
    points = []
    for name, filled, clock in (("env steps", True, "env_steps"), ("wall time", False, "time_s")):
        times = table[(table["measure"] == f"{name} to threshold") & table["effect"].notna()]
        values = times.set_index("arm")[["effect", "low", "high"]]
        points.append(Points(name, filled, values, _pairs(figures, times, clock)))

    def finish(axes: Axes) -> None:
        axes.set_xlabel("faster than baseline (%)")
        axes.axvline(0, color="#000000", linewidth=0.8)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -150), min(high, 105))  # A slow arm's interval has no end.

    note = (
        f"Percent faster than {', '.join(figures.baseline)}, and {figures.tables.level} "
        "interval; right of 0 is faster; small dots: seeds on which both came there. Cut off at "
        "-150 %."
    )
    texts = ("faster", "Time to the threshold against the baseline", note)
    yield from _draw_rows(figures, points, finish, texts)


def _pairs(figures: EnvFigures, compared: pd.DataFrame, clock: str) -> pd.Series:
    """Returns how many percent faster than the baseline each seed was on which both came there."""
    runs = figures.rows(figures.tables.convergence_runs)
    times = (
        runs[runs["reached"] & runs["seed"].notna()].set_index(["arm", "seed"])[clock].sort_index()
    )
    found = {}
    for arm, baseline in zip(compared["arm"], compared["baseline"], strict=True):
        if {arm, baseline} <= set(times.index.get_level_values("arm")):
            found[arm] = (100 * (1 - times[arm] / times[baseline])).dropna()
    return pd.concat(found).droplevel(1) if found else pd.Series(dtype=float)


def draw_profile(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws which part of an arm's runs ends with a return of at least x."""
    runs = figures.rows(figures.tables.runs)
    runs = runs[runs["counts"] & np.isfinite(runs["final"])]

    def draw(axes: Axes, part: pd.DataFrame, style: ArmStyle) -> None:
        final = part.loc[is_final(part), "final"].to_numpy()
        axes.ecdf(final, complementary=True, linewidth=1.5, **style.stroke)

    def finish(axes: Axes) -> None:
        axes.set_xlabel("final return x (reward)")
        axes.set_ylabel("runs at x or above (fraction)")

    note = "Performance profile: the arm whose line lies further right and above is the better one."
    yield from _draw_groups(
        figures, runs, draw, finish, ("profile", "Final returns of all runs", note)
    )


def draw_pooled(tables: Tables) -> Iterator[Drawing]:
    """Draws the performance profile over all environments, where arms are in several of them."""
    arms = list(tables.pooled_scores.sort_values("score", ascending=False)["arm"])[:MOST_LINES]
    if len(arms) < 2:
        return
    own = list(tables.arms.loc[is_baseline(tables.arms, tables.baseline), "arm"])
    figures = EnvFigures(0, ALL_ENVS, tables, arm_styles(arms, own), own)

    def draw(axes: Axes, part: pd.DataFrame, style: ArmStyle) -> None:
        weights = (1 / part.groupby("env")["score"].transform("size")).to_numpy()
        scores = part["score"].to_numpy()
        axes.ecdf(scores, weights, complementary=True, linewidth=1.5, **style.stroke)

    def finish(axes: Axes) -> None:
        axes.set_xlabel("score x (1 = the baseline's final return)")
        axes.set_ylabel("runs at x or above (fraction)")

    note = "Every environment counts the same."
    texts = ("pooled", "Performance profile over all environments", note)
    yield from _draw_groups(figures, tables.scores, draw, finish, texts)


def draw_finals(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws the final returns, on training and on held-out seeds."""
    table = figures.rows(figures.tables.final_returns).set_index("arm")
    runs = figures.rows(figures.tables.runs)
    runs = runs[runs["counts"]].set_index("arm")
    points = []
    for name, column in (("training seeds", "final"), ("held-out seeds", "held_out")):
        known = table[table[column].notna() & table["final"].notna()]
        values = known[[column, f"{column}_low", f"{column}_high"]]
        points.append(Points(name, column == "final", values, runs[column].dropna()))

    def finish(axes: Axes) -> None:
        axes.set_xlabel("final return (reward)")

    note = "Interquartile mean over runs, and bootstrap interval; small dots: the runs."
    texts = ("finals", "Final return", note)
    yield from _draw_rows(figures, points, finish, texts)


def _draw_rows(
    figures: EnvFigures,
    points: Sequence[Points],
    finish: Callable[[Axes], None],
    texts: tuple[str, str, str],
) -> Iterator[Drawing]:
    """Draws a figure with a row per arm: its points and their intervals.

    Args:
        figures: The environment.
        points: What is drawn; kinds and arms that have none are left out.
        finish: Labels the horizontal axis.
        texts: Section, title and note.
    """
    section, title, note = texts
    points = [kind for kind in points if any(arm in kind.values.index for arm in figures.styles)]
    arms = [arm for arm in figures.styles if any(arm in kind.values.index for kind in points)]
    if not arms:
        return
    if len(arms) > MOST_ROWS:
        note += f" The first {MOST_ROWS} of {len(arms)} arms."
    arms = arms[:MOST_ROWS]
    height = 1.0 + ROW * len(arms) * (1 + 0.5 * (len(points) - 1))
    with canvas(max(1.7, height)) as (figure, axes):
        for number, kind in enumerate(points):
            offset = 0.32 * (number - (len(points) - 1) / 2)
            for row, values in enumerate(kind.values.reindex(arms).itertuples(index=False)):
                style, y = figures.styles[arms[row]], row + offset
                seeds = kind.seeds[kind.seeds.index == arms[row]]
                axes.plot(seeds, [y + 0.13] * len(seeds), "o", color=style.color, **DOTS)
                _point(axes, style, values, kind.filled, y)
        axes.set_yticks(np.arange(len(arms)), [plain(arm, 34) for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        if len(points) > 1:
            look: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#444444"}
            faces = ["#444444" if kind.filled else "#ffffff" for kind in points]
            handles = [Line2D([], [], **look, markerfacecolor=face) for face in faces]
            names = [kind.name for kind in points]
            figure.legend(handles, names, loc="outside lower center", ncols=len(points))
        finish(axes)
        yield figures.drawing(figure, section, title, note)


def _point(axes: Axes, style: ArmStyle, values: Sequence[float], filled: bool, y: float) -> None:
    value, low, high = values
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([low, high], [y, y], color=style.color, linewidth=1.4 if filled else 0.9)
    face = style.color if filled else "#ffffff"
    axes.plot(value, y, style.marker, color=style.color, markersize=6, markerfacecolor=face)


def draw_sensitivity(figures: EnvFigures) -> Iterator[Drawing]:
    """Draws final return and convergence over the minimum weight."""
    table = figures.rows(figures.tables.sensitivity)
    limit = figures.tables.thresholds[figures.env]
    final = ("final", "final_low", "final_high")
    kinds = [(final, metric_label(figures.tables.metric), "Final return")]
    if limit.exists:
        label = f"mean environment steps to {limit.value:g}"
        steps = ("mean_env_steps", "low_env_steps", "high_env_steps")
        kinds.append((steps, label, "Environment steps to the threshold"))
    note = (
        "Interquartile mean or restricted mean, with bootstrap intervals; a level line: a "
        "strategy without a minimum weight."
    )
    for columns, label, title in kinds:
        known = table[table[columns[0]].notna()]
        if known["min_weight"].nunique() < 2:
            continue
        # There are less lines than arms, so colours go further.
        baseline = known.loc[known["arm"].isin(figures.baseline), "line"]
        styles = arm_styles(list(known["line"].unique()), list(baseline))
        with canvas() as (figure, axes):
            _weight_axis(axes, known["min_weight"].dropna())
            for line, style in styles.items():
                _sensitivity_line(axes, known[known["line"] == line], style, columns)
            if columns is not final:
                axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_ylabel(label)
            _legend_below(figure, styles, list(styles))
            title = f"{title} over the minimum weight"
            yield figures.drawing(figure, "sensitivity", title, note, columns[0])


def _weight_axis(axes: Axes, weights: pd.Series) -> None:
    """Spreads minimum weights that are far apart: a logarithmic axis, linear around 0."""
    axes.set_xlabel("minimum weight m")
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
    axes: Axes, part: pd.DataFrame, style: ArmStyle, columns: tuple[str, str, str]
) -> None:
    """Draws a strategy's values with their intervals; level if it has no minimum weight."""
    column, low, high = columns
    if part["min_weight"].isna().any():
        row = part.iloc[0]
        across = axes.get_yaxis_transform()
        ends = [row[column]] * 2
        axes.plot([0.02, 0.98], ends, transform=across, marker=style.marker, **style.stroke)
        if np.isfinite(row[low]):
            axes.axhspan(row[low], row[high], color=style.color, alpha=0.08, linewidth=0)
        return
    axes.plot(part["min_weight"], part[column], marker=style.marker, **style.stroke)
    axes.vlines(part["min_weight"], part[low], part[high], color=style.color, linewidth=0.9)
