"""Everything that a report says, computed once, and as the text of tables."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import pandas as pd

from rllib_weighted.records.origin import versions
from rllib_weighted.report import measures
from rllib_weighted.report.arms import baseline_of, choose_baseline, is_baseline
from rllib_weighted.report.conclusions import Sentence, comparisons, sentences
from rllib_weighted.report.formats import ABSENT, format_number, shorten
from rllib_weighted.report.measures import HOLD, Question, Threshold
from rllib_weighted.report.results import Results
from rllib_weighted.report.statistics import CONFIDENCE, SEED
from rllib_weighted.report.trials import listed
from rllib_weighted.report.verdicts import verdicts
from rllib_weighted.text import html_paragraphs, html_table

_MOST_SEEDS = 12
_DISTRIBUTIONS = ("rllib-weighted", "ray", "torch", "gymnasium", "numpy", "scipy", "matplotlib")


@dataclass(frozen=True, kw_only=True)
class Tables(Results):
    """Results and their statistics; each table is documented at the function of its name.

    Attributes:
        baseline: The baseline's name; None if there is none.
        hold: Rounds that a threshold has to be sustained.
        confidence: Coverage of the intervals.
        thresholds: The threshold of each environment.
        sentences: What the comparisons say.
        verdicts: By environment, sentences on who leads and which arms came out the same.
    """

    baseline: str | None
    hold: int
    confidence: float
    thresholds: dict[str, Threshold]
    sentences: list[Sentence]
    verdicts: dict[str, list[str]]
    learning_curves: pd.DataFrame
    convergence_runs: pd.DataFrame
    convergence: pd.DataFrame
    final_returns: pd.DataFrame
    comparisons: pd.DataFrame
    sensitivity: pd.DataFrame
    weight_curves: pd.DataFrame
    drops: pd.DataFrame
    scores: pd.DataFrame
    pooled_scores: pd.DataFrame

    def baseline_arms(self, env: str) -> list[str]:
        """Returns the arms of an environment that are the baseline's."""
        arms = of_env(self.arms, env)
        return list(arms.loc[is_baseline(arms, self.baseline), "arm"])

    @property
    def level(self) -> str:
        """The confidence as text."""
        return f"{100 * self.confidence:g} %"

    def _repr_html_(self) -> str:
        """What a notebook shows: for each environment the verdict and the headline's table."""
        parts = []
        for env in self.envs:
            view = headline(self, env)
            title = f"{env}: {view.title}"
            table = html_table(list(view.columns), view.rows, title, bold=view.marked)
            parts.append(html_paragraphs(self.verdicts[env]) + table + html_paragraphs([view.note]))
        return "".join(parts) + html_paragraphs(self.problems)


def compute(
    results: Results,
    *,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    **question: Unpack[Question],
) -> Tables:
    """Computes all statistics of a report.

    Args:
        results: From `load_results`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstraps.
        question: See `measures.Question`.

    Raises:
        ReportError: A bad baseline, threshold or `hold`.
    """
    asked = question.get("baseline")
    baseline = choose_baseline(results.arms, asked)
    limits = measures.thresholds(results, question.get("threshold"), baseline=asked)
    compared = comparisons(results, confidence=confidence, **question)
    finals = measures.final_returns(results, confidence=confidence, seed=seed)
    times = measures.convergence(results, confidence=confidence, seed=seed, **question)
    problems = results.problems + _unmatched(results, baseline)
    return Tables(
        **(vars(results) | {"problems": problems}),
        baseline=baseline,
        hold=question.get("hold", HOLD),
        confidence=confidence,
        thresholds=limits,
        sentences=sentences(compared, limits, confidence),
        verdicts=verdicts(results, compared, finals, limits, confidence),
        learning_curves=measures.learning_curves(results, confidence=confidence, seed=seed),
        convergence_runs=measures.convergence_runs(results, **question),
        convergence=times,
        final_returns=finals,
        comparisons=compared,
        sensitivity=measures.join_sensitivity(results.arms, finals, times),
        weight_curves=measures.weight_curves(results),
        drops=measures.drops(results),
        scores=measures.scores(results, baseline=asked),
        pooled_scores=measures.pooled_scores(
            results, baseline=asked, confidence=confidence, seed=seed
        ),
    )


def _unmatched(results: Results, baseline: str | None) -> list[str]:
    """Returns a sentence on each arm that has nothing to be compared with."""
    if baseline is None:
        names = ", ".join(results.arms["strategy"].unique())
        return [f"there is no baseline among {names}: choose one with --baseline"]
    others = results.arms[~is_baseline(results.arms, baseline)]
    return [
        f"{arm['env']}: {arm['arm']} is not compared, because no single arm of {baseline} has the "
        "same other settings"
        for _, arm in others.iterrows()
        if baseline_of(arm, results.arms, baseline)[0] is None
    ]


def of_env(table: pd.DataFrame, env: str) -> pd.DataFrame:
    """Returns the rows of a table that are about an environment."""
    return table[table["env"] == env] if "env" in table else table.iloc[:0]


@dataclass(frozen=True)
class View:
    """A table to be read.

    Attributes:
        title: What it shows.
        columns: The cells of each column, by its name with unit.
        note: What has to be known to read it.
        num_texts: How many columns, from the left, are text and not numbers.
        marked: Numbers of the rows that stand out.
    """

    title: str
    columns: Mapping[str, Sequence[str]]
    note: str = ""
    num_texts: int = 1
    marked: set[int] = field(default_factory=set)

    @property
    def rows(self) -> list[list[str]]:
        """The cells, row by row."""
        return [list(row) for row in zip(*self.columns.values(), strict=True)]


def _cells(table: pd.DataFrame, form: Callable[..., str], *names: str) -> list[str]:
    """Returns a cell per row: what `form` makes of the row's values in some columns."""
    return [form(*values) for values in zip(*(table[name] for name in names), strict=True)]


def _intervals(table: pd.DataFrame, name: str) -> list[str]:
    return _cells(table, with_interval, name, f"{name}_low", f"{name}_high")


def with_interval(
    value: float,
    low: float,
    high: float,
    form: Callable[[float], str] = format_number,
    unit: str = "",
) -> str:
    """Returns a value and its interval as text."""
    if not math.isfinite(value):
        return ABSENT
    is_known = math.isfinite(low) and math.isfinite(high)
    return f"{form(value)}{unit}" + (f" [{form(low)}, {form(high)}]" if is_known else "")


def _percent(value: float, low: float, high: float) -> str:
    return with_interval(value, low, high, "{:.1f}".format, " %")


def _probability(value: float, low: float, high: float) -> str:
    return with_interval(value, low, high, "{:.2f}".format)


def _reached(num_reached: float, num_runs: float) -> str:
    return ABSENT if math.isnan(num_runs) else f"{num_reached:.0f} of {num_runs:.0f}"


def _mean_time(mean: float, low: float, high: float, num_reached: float) -> str:
    if num_reached == 0 and math.isfinite(mean):
        return f"> {format_number(mean)}"
    return with_interval(mean, low, high)


def _mean_times(table: pd.DataFrame, clock: str) -> list[str]:
    names = (f"{name}_{clock}" for name in ("mean", "low", "high"))
    return _cells(table, _mean_time, *names, "num_reached")


def headline(tables: Tables, env: str) -> View:
    """Returns the table that answers the main questions: how fast, how good, how sure."""
    finals = of_env(tables.final_returns, env)
    times = of_env(tables.convergence, env).set_index("arm").reindex(finals["arm"])
    compared = of_env(tables.comparisons, env).set_index("arm")
    steps, better = (
        compared[compared["measure"] == measure].reindex(finals["arm"])
        for measure in ("env steps to threshold", "final return")
    )
    limit = tables.thresholds[env]
    reach = f"steps to {format_number(limit.value)}" if limit.exists else "steps to threshold"
    sizes = tables.runs[tables.runs["counts"]].groupby(["env", "arm"]).size()

    wins = ("probability", "probability_low", "probability_high")
    own = tables.baseline_arms(env)
    return View(
        "At a glance",
        {
            "arm": list(finals["arm"]),
            "faster than baseline": _cells(steps, _percent, "effect", "low", "high"),
            f"mean {reach}": _mean_times(times, "env_steps"),
            "final return (reward)": _intervals(finals, "final"),
            "reached it (runs)": _cells(times, _reached, "num_reached", "num_runs"),
            "seeds": [str(sizes[env, arm]) for arm in finals["arm"]],
            "P(first to it)": _cells(steps, _probability, *wins),
            "P(higher final return)": _cells(better, _probability, *wins),
        },
        f"In brackets: {tables.level} intervals. Bold: the baseline. {ABSENT}: cannot be said.",
        marked={number for number, arm in enumerate(finals["arm"]) if arm in own},
    )


def convergence_view(tables: Tables, env: str) -> View | None:
    """Returns times to the threshold by both clocks."""
    table = of_env(tables.convergence, env)
    if table.empty:
        return None
    horizon, seconds = (
        format_number(table[f"horizon_{clock}"].iat[0]) for clock in ("env_steps", "time_s")
    )
    return View(
        "Time to the threshold",
        {
            "arm": list(table["arm"]),
            "reached it (runs)": _cells(table, _reached, "num_reached", "num_runs"),
            "mean env steps": _mean_times(table, "env_steps"),
            "median env steps": _cells(table, format_number, "median_env_steps"),
            "mean wall time (s)": _mean_times(table, "time_s"),
            "median wall time (s)": _cells(table, format_number, "median_time_s"),
        },
        f"Means are restricted to {horizon} steps and {seconds} s, up to which all arms are known. "
        "Wall time is training time, on whatever else the machine did.",
    )


def finals_view(tables: Tables, env: str) -> View:
    """Returns final returns in training and on held-out seeds."""
    table = of_env(tables.final_returns, env)

    def num_runs(count: int, left_out: int) -> str:
        return f"{count} (+{left_out} unfinished)" if left_out else str(count)

    note = (
        "A run without evaluation in its config, or that ended before its first "
        "`evaluation_interval` was over, has no held-out return."
    )
    return View(
        "Final return",
        {
            "arm": list(table["arm"]),
            "runs": _cells(table, num_runs, "num_runs", "num_unfinished"),
            "training seeds (reward)": _intervals(table, "final"),
            "runs with evaluation": _cells(table, str, "num_held_out"),
            "held-out seeds (reward)": _intervals(table, "held_out"),
            "training minus held-out (reward)": _intervals(table, "gap"),
        },
        "" if table["num_held_out"].all() else note,
    )


def pooled_view(tables: Tables) -> View | None:
    """Returns the scores over all environments."""
    table = tables.pooled_scores.sort_values("score", ascending=False, kind="stable")
    if len(table) < 2:
        return None
    return View(
        "Over all environments",
        {
            "arm": list(table["arm"]),
            "score": _cells(table, with_interval, "score", "low", "high"),
            "runs": _cells(table, str, "num_runs"),
            "environments": _cells(table, str, "num_envs"),
        },
        "Score of a run: 0 at the baseline's first value, 1 at its final return. Each environment "
        "counts the same. Arms that are not in all of them have none.",
    )


def drops_view(tables: Tables, env: str) -> View | None:
    """Returns how often workers were dropped."""
    table = of_env(tables.drops, env)
    if table.empty:
        return None
    return View(
        "Dropped workers",
        {
            "arm": list(table["arm"]),
            "runs with a merge history": _cells(table, str, "num_runs"),
            "dropped (workers x rounds)": _cells(table, "{:,}".format, "num_dropped"),
            "of all (%)": [f"{100 * part:.2g} %" for part in table["dropped_fraction"]],
        },
    )


def provenance(tables: Tables, env: str) -> list[View]:
    """Returns where an environment's numbers come from: runs, versions, settings."""
    views = [arms_view(tables, env), origins_view(tables, env), settings_view(tables, env)]
    return [view for view in views if view is not None]


def arms_view(tables: Tables, env: str) -> View:
    """Returns the runs of each arm: settings, seeds, machines, dates."""
    arms = of_env(tables.arms, env)
    counting = of_env(tables.runs[tables.runs["counts"]], env)
    runs = [counting[counting["arm"] == arm] for arm in arms["arm"]]

    def seeds(values: pd.Series) -> str:
        return listed(values.dropna().sort_values().astype(str), _MOST_SEEDS) or "none"

    def dates(values: pd.Series) -> str:
        known = sorted({date[:10] for date in values if date})
        return " – ".join(dict.fromkeys([known[0], known[-1]])) if known else ABSENT

    return View(
        "Arms",
        {
            "arm": list(arms["arm"]),
            "strategy": list(arms["strategy"]),
            "minimum weight": _cells(arms, format_number, "min_weight"),
            "settings that vary": [
                ", ".join(f"{name}={value}" for name, value in varied.items()) or ABSENT
                for varied in arms["varied"]
            ],
            "seeds": [seeds(part["seed"]) for part in runs],
            "machine": [
                listed(filter(None, part["host"]), _MOST_SEEDS) or "unknown" for part in runs
            ],
            "last results": [dates(part["date"]) for part in runs],
            "wall time, median (s)": [f"{part['time_s'].median():,.0f}" for part in runs],
            "workers": [str(number or ABSENT) for number in arms["num_workers"]],
        },
        num_texts=7,
    )


def origins_view(tables: Tables, env: str) -> View | None:
    """Returns with which versions and on which system the runs were recorded."""
    table = of_env(tables.origins, env)
    if table.empty:
        return None
    what = [name for name in table.columns if name not in ("env", "arm", "run")]
    groups = table.fillna("").groupby(what, sort=False)["arm"].agg(", ".join).reset_index()
    note = "As the merge history of one run of each arm says: the one of the lowest seed."
    columns = {"arms": list(groups["arm"]), **{name: _cells(groups, str, name) for name in what}}
    return View("Recorded with", columns, note, num_texts=len(columns))


def settings_view(tables: Tables, env: str) -> View:
    """Returns the settings that all arms of an environment share."""
    every = list(of_env(tables.arms, env)["settings"])
    shared = [
        (name, shorten(value, 200))
        for name, value in sorted(every[0].items() if every else ())
        if all(other.get(name) == value for other in every)
    ]
    columns = {"setting": [name for name, _ in shared], "value": [value for _, value in shared]}
    return View("Settings that all arms share", columns, num_texts=2)


def runs_view(tables: Tables) -> View:
    """Returns the single runs."""
    runs = tables.runs
    columns = {
        "environment": list(runs["env"]),
        "arm": list(runs["arm"]),
        "seed": [ABSENT if pd.isna(seed) else str(seed) for seed in runs["seed"]],
        "rounds": _cells(runs, str, "num_rounds"),
        "steps": _cells(runs, "{:,}".format, "env_steps"),
        "wall time (s)": _cells(runs, "{:,.1f}".format, "time_s"),
        "final return (reward)": _cells(runs, format_number, "final"),
        "held-out (reward)": _cells(runs, format_number, "held_out"),
        "came to its end": ["yes" if finished else "no" for finished in runs["finished"]],
        "counts": ["yes" if counts else "no: repeats a seed" for counts in runs["counts"]],
        "read from": list(runs["source"]),
        "folder": list(runs["path"]),
    }
    return View("Runs", columns, num_texts=2)


def versions_view() -> View:
    """Returns the versions that are installed where the report is made."""
    found = versions(_DISTRIBUTIONS)
    found |= {"Python": platform.python_version(), "machine": platform.platform()}
    columns = {"what": list(found), "version": list(found.values())}
    return View("Made with", columns, num_texts=2)
