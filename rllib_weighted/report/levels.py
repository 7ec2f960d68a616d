"""Which levels were played, where episodes were drawn from a pool: table and heat map."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from rllib_weighted.report.figures import MOST_HEAT_MAPS, Drawing, EnvFigures, canvas, plain
from rllib_weighted.report.formats import ABSENT, format_number
from rllib_weighted.report.tables import Tables, View, of_env

_MOST_LISTED = 5  # Levels that a cell of the table names.


def levels_view(tables: Tables, env: str) -> View | None:
    """Returns, for one run of each arm, how its episodes were spread over the levels."""
    table = of_env(tables.levels, env)
    if table.empty:
        return None
    rows = {arm: _row(part) for arm, part in table.groupby("arm", sort=False)}
    names = ("levels played", "episodes", "effective levels, all rounds", "late", "played most")
    return View(
        "Levels",
        {
            "arm": list(rows),
            **{name: [row[i] for row in rows.values()] for i, name in enumerate(names)},
        },
        "Of the run with the lowest seed of each arm. Effective: 1 / sum of the squared shares of "
        "the episodes; late: in the last tenth of the rounds. In brackets a level's share of the "
        "episodes, and its mean return at first and at last.",
    )


def _row(plays: pd.DataFrame) -> list[str]:
    late = plays[plays["round"] > 0.9 * plays["round"].max()]
    counts = plays.groupby("level")["episodes"].sum().sort_values(ascending=False, kind="stable")
    most = []
    for level, count in counts.head(_MOST_LISTED).items():
        returns = plays.loc[plays["level"] == level, "episode_return"].dropna()
        change = " → ".join(map(format_number, returns.iloc[[0, -1]])) if len(returns) else ABSENT
        most.append(f"{level} ({count / counts.sum():.1%}, {change})")
    return [
        str(len(counts)),
        f"{counts.sum():,}",
        format_number(_effective(plays)),
        format_number(_effective(late)),
        "; ".join(most),
    ]


def _effective(plays: pd.DataFrame) -> float:
    counts = plays.groupby("level")["episodes"].sum()
    return float(counts.sum() ** 2 / (counts**2).sum())


def draw_levels(tables: Tables) -> Iterator[Drawing]:
    """Draws a heat map of the levels' shares of the episodes, for one run of each arm."""
    for number, env in enumerate(tables.thresholds, start=1):
        yield from _draw_environment(EnvFigures(number, env, tables, {}, []))


def _draw_environment(figures: EnvFigures) -> Iterator[Drawing]:
    table = figures.rows(figures.tables.levels)
    for arm in table["arm"].unique()[:MOST_HEAT_MAPS]:
        part = table[table["arm"] == arm]
        width = int(np.diff(np.unique([0, *part["round"]])).min())
        rounds = np.arange(width, part["round"].max() + 1, width)
        levels = np.arange(part["level"].max() + 1)
        counts = part.pivot(index="level", columns="round", values="episodes")
        counts = counts.reindex(index=levels, columns=rounds).fillna(0.0)
        shares = counts / counts.sum().clip(lower=1.0)
        with canvas(2.6) as (figure, axes):
            image = axes.imshow(
                shares.to_numpy(),
                aspect="auto",
                cmap="cividis",
                interpolation="nearest",
                vmin=0,
                extent=(0, float(rounds[-1]), len(levels) - 0.5, -0.5),
            )
            axes.grid(visible=False)
            axes.set_xlabel("round (rounds)")
            axes.set_ylabel("level (number)")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            figure.colorbar(image, ax=axes, label="share of the episodes (fraction)")
            note = "One run of the arm, that of its lowest seed."
            yield figures.drawing(figure, "levels", f"Levels, {plain(arm, 60)}", note, arm)
