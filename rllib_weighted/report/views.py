"""Turns statistics into the text of tables, for the page and for the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rllib_weighted.report.arms import ABSENT, format_number
from rllib_weighted.report.tables import Tables


@dataclass(frozen=True)
class View:
    """A table to be read.

    Attributes:
        title: What it shows.
        header: Names of the columns, with units.
        rows: The cells.
        note: What has to be known to read it.
        num_texts: How many columns, from the left, are text and not numbers.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    num_texts: int = 1
    marked: set[int] = field(default_factory=set)


def with_interval(value: float, low: float, high: float, unit: str = "") -> str:
    """Returns a value and its interval as text."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{format_number(value)}{unit}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} [{format_number(low)}, {format_number(high)}]"


def _percent(row: Any) -> str:
    if row is None or not math.isfinite(row["effect"]):
        return ABSENT
    text = f"{row['effect']:.1f} %"
    if not math.isfinite(row["low"]):
        return text
    return f"{text} [{row['low']:.1f}, {row['high']:.1f}]"


def _probability(row: Any) -> str:
    if row is None or not math.isfinite(row["probability"]):
        return ABSENT
    return f"{row['probability']:.2f} [{row['probability_low']:.2f}, {row['probability_high']:.2f}]"


def headline(tables: Tables, env: str) -> View:
    """Returns the table that answers the main questions: how fast, how good, how sure."""
    finals = of_env(tables.final_returns, env).set_index("arm")
    times = of_env(tables.convergence, env).set_index("arm")
    compared = {
        (row["arm"], row["measure"]): row for _, row in of_env(tables.comparisons, env).iterrows()
    }
    limit = tables.thresholds[env]
    reach = f"steps to {format_number(limit.value)}" if limit.exists else "steps to threshold"
    rows = []
    for arm, final in finals.iterrows():
        time = times.loc[arm] if arm in times.index else None
        steps = compared.get((arm, "env steps to threshold"))
        better = compared.get((arm, "final return"))
        rows.append(
            [
                str(arm),
                _count(tables, env, str(arm)),
                with_interval(final["final"], final["final_low"], final["final_high"]),
                ABSENT if time is None else f"{time['num_reached']} of {time['num_runs']}",
                ABSENT if time is None else _mean(time, "env_steps"),
                _percent(steps),
                _probability(steps),
                _probability(better),
            ]
        )
    header = [
        "arm",
        "seeds",
        "final return (reward)",
        "reached it (runs)",
        f"{reach} (steps)",
        "faster than baseline (%)",
        "P(first to it)",
        "P(higher final return)",
    ]
    own = set(tables.baseline_arms(env))
    marked = {number for number, row in enumerate(rows) if row[0] in own}
    level = f"{100 * tables.confidence:g} %"
    note = f"In brackets: {level} intervals. Bold: the baseline. {ABSENT}: cannot be said."
    return View("At a glance", header, rows, note, marked=marked)


def _mean(time: Any, clock: str) -> str:
    if time["num_reached"] == 0 and math.isfinite(time[f"mean_{clock}"]):
        return f"> {format_number(time[f'mean_{clock}'])}"
    return with_interval(time[f"mean_{clock}"], time[f"low_{clock}"], time[f"high_{clock}"])


def _count(tables: Tables, env: str, arm: str) -> str:
    runs = tables.runs
    return str(int((runs["counts"] & (runs["env"] == env) & (runs["arm"] == arm)).sum()))


def convergence_view(tables: Tables, env: str) -> View | None:
    """Returns times to the threshold by both clocks."""
    table = of_env(tables.convergence, env)
    if table.empty:
        return None
    rows = [
        [
            row["arm"],
            f"{row['num_reached']} of {row['num_runs']}",
            _mean(row, "env_steps"),
            format_number(row["median_env_steps"]),
            _mean(row, "time_s"),
            format_number(row["median_time_s"]),
        ]
        for _, row in table.iterrows()
    ]
    horizon = format_number(table["horizon_env_steps"].iat[0])
    seconds = format_number(table["horizon_time_s"].iat[0])
    header = [
        "arm",
        "reached it (runs)",
        "mean (steps)",
        "median (steps)",
        "mean wall time (s)",
        "median wall time (s)",
    ]
    note = (
        f"Means are restricted to {horizon} steps and {seconds} s, up to which all arms are known. "
        "Wall time is training time, on whatever else the machine did."
    )
    return View("Time to the threshold", header, rows, note)


def finals_view(tables: Tables, env: str) -> View:
    """Returns final returns in training and on held-out seeds."""
    table = of_env(tables.final_returns, env)
    rows = [
        [
            row["arm"],
            _with_left_out(row["num_runs"], row["num_unfinished"]),
            with_interval(row["final"], row["final_low"], row["final_high"]),
            str(row["num_held_out"]),
            with_interval(row["held_out"], row["held_out_low"], row["held_out_high"]),
            with_interval(row["gap"], row["gap_low"], row["gap_high"]),
        ]
        for _, row in table.iterrows()
    ]
    header = [
        "arm",
        "runs",
        "training seeds (reward)",
        "runs with evaluation",
        "held-out seeds (reward)",
        "training minus held-out (reward)",
    ]
    note = (
        "A run without evaluation in its config, or that ended before its first "
        "`evaluation_interval` was over, has no held-out return."
    )
    return View("Final return", header, rows, "" if table["num_held_out"].all() else note)


def _with_left_out(count: int, left_out: int) -> str:
    return f"{count} (+{left_out} unfinished)" if left_out else str(count)


def drops_view(tables: Tables, env: str) -> View | None:
    """Returns how often workers were dropped."""
    table = of_env(tables.drops, env)
    if table.empty:
        return None
    rows = [
        [
            row["arm"],
            str(row["num_runs"]),
            f"{row['num_dropped']:,}",
            f"{100 * row['dropped_fraction']:.2g} %",
        ]
        for _, row in table.iterrows()
    ]
    header = ["arm", "runs with a merge history", "dropped (workers x rounds)", "of all (%)"]
    return View("Dropped workers", header, rows)


def of_env(table: pd.DataFrame, env: str) -> pd.DataFrame:
    """Returns the rows of a table that are about an environment."""
    return table[table["env"] == env] if "env" in table else table.iloc[:0]
