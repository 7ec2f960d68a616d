"""Everything that a report says, computed once."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rllib_weighted.report.comparisons import Sentence, comparisons, sentences
from rllib_weighted.report.measures import (
    HOLD,
    Threshold,
    convergence,
    convergence_runs,
    drops,
    final_returns,
    learning_curves,
    sensitivity,
    thresholds,
    weight_curves,
)
from rllib_weighted.report.results import (
    ABSENT,
    Results,
    baseline_of,
    choose_baseline,
    format_number,
)
from rllib_weighted.report.statistics import CONFIDENCE, SEED


@dataclass(frozen=True)
class Tables:
    """The statistics of a report; each table is documented at the function of its name.

    Attributes:
        metric: What was compared.
        baseline: The baseline's name; None if there is none.
        hold: Rounds that a threshold has to be held.
        confidence: Coverage of the intervals.
        thresholds: The threshold of each environment.
        problems: What was left out.
        sentences: What the comparisons say.
    """

    metric: str
    baseline: str | None
    hold: int
    confidence: float
    thresholds: dict[str, Threshold]
    problems: list[str]
    sentences: list[Sentence]
    runs: pd.DataFrame
    arms: pd.DataFrame
    learning_curves: pd.DataFrame
    convergence_runs: pd.DataFrame
    convergence: pd.DataFrame
    final_returns: pd.DataFrame
    comparisons: pd.DataFrame
    sensitivity: pd.DataFrame
    weight_curves: pd.DataFrame
    shares: pd.DataFrame
    drops: pd.DataFrame
    origins: pd.DataFrame

    def baseline_arms(self, env: str) -> list[str]:
        """Returns the arms of an environment that are the baseline's."""
        arms = self.arms[self.arms["env"] == env]
        is_baseline = (arms["strategy"] == self.baseline) | (arms["arm"] == self.baseline)
        return list(arms.loc[is_baseline, "arm"])


def compute(
    results: Results,
    *,
    baseline: str | None = None,
    threshold: float | Mapping[str, float] | None = None,
    hold: int = HOLD,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Tables:
    """Computes all statistics of a report.

    Args:
        results: From `load_results`.
        baseline: A strategy or the label of an arm; None takes "average", if it is there.
        threshold: As in `thresholds`.
        hold: Rounds; see `first_held`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstraps.

    Raises:
        ReportError: A bad baseline, threshold or `hold`.
    """
    name = choose_baseline(results.arms, baseline)
    question: dict[str, Any] = {"baseline": baseline, "threshold": threshold, "hold": hold}
    sure: dict[str, Any] = {"confidence": confidence, "seed": seed}
    limits = thresholds(results, threshold, baseline=baseline)
    compared = comparisons(results, **question, confidence=confidence)
    return Tables(
        metric=results.metric,
        baseline=name,
        hold=hold,
        confidence=confidence,
        thresholds=limits,
        problems=results.problems + _unmatched(results, name),
        sentences=sentences(compared, limits, confidence),
        runs=results.runs,
        arms=results.arms,
        learning_curves=learning_curves(results, **sure),
        convergence_runs=convergence_runs(results, **question),
        convergence=convergence(results, **question, **sure),
        final_returns=final_returns(results, **sure),
        comparisons=compared,
        sensitivity=sensitivity(results, **question, **sure),
        weight_curves=weight_curves(results),
        shares=results.shares,
        drops=drops(results),
        origins=results.origins,
    )


def _unmatched(results: Results, baseline: str | None) -> list[str]:
    """Returns a sentence on each arm that has nothing to be compared with."""
    if baseline is None:
        names = ", ".join(results.arms["strategy"].unique())
        return [f"there is no baseline among {names}: choose one with --baseline"]
    found = []
    for _, arm in results.arms.iterrows():
        is_own = baseline in (arm["strategy"], arm["arm"])
        if not is_own and baseline_of(arm, results.arms, baseline)[0] is None:
            found.append(
                f"{arm['env']}: {arm['arm']} is not compared, because no single arm of {baseline} "
                "has the same other settings"
            )
    return found


# Turns statistics into the text of tables, for the page and for the terminal


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


# Turns what is behind the numbers into tables: settings, seeds, machines, versions, runs


MOST_SEEDS = 12
_DISTRIBUTIONS = ("rllib-weighted", "ray", "torch", "gymnasium", "numpy", "scipy", "matplotlib")


def sections(tables: Tables, env: str) -> Sequence[View]:
    """Returns the tables behind an environment's figures."""
    views = [arms_view(tables, env), origins_view(tables, env), settings_view(tables, env)]
    return [view for view in views if view is not None]


def arms_view(tables: Tables, env: str) -> View:
    """Returns which runs are behind each arm: settings, seeds, machines, dates."""
    rows = []
    for _, arm in of_env(tables.arms, env).iterrows():
        runs = tables.runs[
            tables.runs["counts"] & (tables.runs["env"] == env) & (tables.runs["arm"] == arm["arm"])
        ]
        varied = ", ".join(f"{name}={value}" for name, value in arm["varied"].items())
        rows.append(
            [
                arm["arm"],
                arm["strategy"],
                format_number(arm["min_weight"]),
                varied or ABSENT,
                _some(runs["seed"].dropna().sort_values().astype(str)) or "none",
                _some(runs["host"]) or "unknown",
                _span(runs["date"]),
                f"{runs['time_s'].median():,.0f}",
                str(arm["num_workers"] or ABSENT),
            ]
        )
    header = [
        "arm",
        "strategy",
        "minimum weight (1)",
        "settings that vary",
        "seeds",
        "machine",
        "last results",
        "wall time, median (s)",
        "workers",
    ]
    return View("Arms", header, rows, num_texts=7)


def origins_view(tables: Tables, env: str) -> View | None:
    """Returns with which versions and on which system the runs were recorded."""
    table = of_env(tables.origins, env)
    if table.empty:
        return None
    what = [name for name in table.columns if name not in ("env", "arm", "run")]
    groups = table.fillna("").groupby(what, sort=False)["arm"]
    rows = [[", ".join(arms), *map(str, values)] for values, arms in groups]
    note = "As the merge history of one run of each arm says: the one of the lowest seed."
    return View("Recorded with", ["arms", *what], rows, note, num_texts=len(what) + 1)


def _some(values: Iterable[str]) -> str:
    every = list(dict.fromkeys(value for value in values if value))
    more = f" and {len(every) - MOST_SEEDS} more" if len(every) > MOST_SEEDS else ""
    return ", ".join(every[:MOST_SEEDS]) + more


def _span(dates: pd.Series) -> str:
    known = sorted({date[:10] for date in dates if date})
    return ABSENT if not known else known[0] if len(known) == 1 else f"{known[0]} – {known[-1]}"


def settings_view(tables: Tables, env: str) -> View:
    """Returns the settings that all arms of an environment share."""
    dicts = list(of_env(tables.arms, env)["settings"])
    shared = {
        name: value
        for name, value in (dicts[0] if dicts else {}).items()
        if all(other.get(name) == value for other in dicts)
    }
    rows = [[name, shorten(value)] for name, value in sorted(shared.items())]
    return View("Settings that all arms share", ["setting", "value"], rows, num_texts=2)


def shorten(text: str, longest: int = 200) -> str:
    """Returns text that is cut with an ellipsis where it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def runs_view(tables: Tables) -> View:
    """Returns the single runs."""
    formats: dict[str, Callable[[Any], str]] = {
        "env": str,
        "arm": str,
        "seed": lambda value: ABSENT if pd.isna(value) else str(value),
        "num_rounds": str,
        "env_steps": "{:,}".format,
        "time_s": "{:,.1f}".format,
        "final": format_number,
        "held_out": format_number,
        "finished": lambda value: "yes" if value else "no",
        "counts": lambda value: "yes" if value else "no: repeats a seed",
        "source": str,
        "path": str,
    }
    rows = [
        [form(row[name]) for name, form in formats.items()] for _, row in tables.runs.iterrows()
    ]
    header = [
        "environment",
        "arm",
        "seed",
        "rounds",
        "steps",
        "wall time (s)",
        "final return (reward)",
        "held-out (reward)",
        "came to its end",
        "counts",
        "read from",
        "folder",
    ]
    return View("Runs", header, rows, num_texts=2)


def versions_view() -> View:
    """Returns the versions that are installed where the report is made.

    They are read from the installation's metadata: nothing is imported.
    """
    rows = []
    for name in _DISTRIBUTIONS:
        try:
            rows.append([name, importlib.metadata.version(name)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([name, "not installed"])
    rows.append(["Python", platform.python_version()])
    rows.append(["machine", platform.platform()])
    return View("Made with", ["what", "version"], rows, num_texts=2)
