"""Reads any number of trials into the few tables that everything else is computed from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import fs

from rllib_weighted.records import metrics as names
from rllib_weighted.records.origin import read_origin
from rllib_weighted.records.reading import Locations
from rllib_weighted.report.arms import assign_arms, name_arms
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.progress import (
    DIAGNOSTICS,
    ENV_STEPS,
    HELD_OUT,
    ROUND,
    TIME,
    Progress,
    progress_from_history,
    read_held_out,
    read_levels,
    read_progress,
    read_worker_rounds,
    summarize_weights,
    worker_shares,
)
from rllib_weighted.report.trials import (
    RESULT,
    ReportError,
    Settings,
    Trial,
    counted,
    find_trials,
    read_settings,
    unknown,
)
from rllib_weighted.text import html_paragraphs, html_table, printable

METRIC = f"{names.MERGE}/{names.EPISODE_RETURN_MEAN}"
STOCK_METRIC = "env_runners/episode_return_mean"
FINAL_FRACTION = 0.1
"""The part of a run's environment steps, at its end, that its final return is the mean over."""

_NO_ID = "default"  # What RLlib calls every trial outside of Tune.
_NUM_THREADS = 8  # Parquet and CSV are decoded without Python's lock; a remote store makes wait.


@dataclass(frozen=True)
class Results:
    """Trials as tables.

    Attributes:
        runs: A row per trial that has results. Columns:
            run (number, the index of the other tables), env, arm (label), strategy,
            min_weight (NaN if it has none), seed (missing if it has none), num_rounds,
            env_steps, time_s (of the whole run), final (mean of the metric over the last
            `FINAL_FRACTION` of its steps), held_out (mean of the evaluations then; NaN
            without), finished (it came to its own end), source (what the metric is from), host,
            date (of the last round), trial_id, path, counts (whether it takes part: see
            `load_results`), has_weights.
        arms: A row per arm; see `assign_arms`.
        progress: A row per (run, round): run, round, env_steps, time_s, value (of the metric;
            where a round has none, the last one before; NaN before the first).
        weights: A row per (run, range of rounds); see `summarize_weights`.
        shares: A row per (arm, range of rounds, worker): env, arm, run, seed, round, worker,
            share: of the run of each arm that has the lowest seed.
        origins: A row per arm with a merge history: env, arm, run, and what that run was
            recorded with (versions, system), as its history says; the runs are those of `shares`.
        metric: The metric that `value` is.
        problems: A sentence on everything that was left out, or taken otherwise than expected.
        diagnostics: A row per measurement of gradients and metric: env, arm, run, env_steps, name
            (below `merge/diagnostics/`), value. Empty where nothing was measured.
        levels: A row per (arm, range of rounds, level): env, arm, run, and what `read_levels`
            returns; the runs are those of `shares`. Empty without levels.
    """

    runs: pd.DataFrame
    arms: pd.DataFrame
    progress: pd.DataFrame
    weights: pd.DataFrame
    shares: pd.DataFrame
    origins: pd.DataFrame
    metric: str
    problems: list[str] = field(default_factory=list)
    diagnostics: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"env": [], "arm": []}))
    levels: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"env": [], "arm": []}))

    @property
    def envs(self) -> list[str]:
        """The environments."""
        return list(self.arms["env"].unique())

    def counting(self, env: str) -> pd.DataFrame:
        """Returns the runs of an environment that count."""
        return self.runs[self.runs["counts"] & (self.runs["env"] == env)]

    def by_arm(self, env: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yields the arms of an environment, in their order, and the runs of each that count."""
        runs = self.counting(env)
        for arm in self.arms.loc[self.arms["env"] == env, "arm"]:
            yield arm, runs[runs["arm"] == arm]

    def _repr_html_(self) -> str:
        """What a notebook shows: a row per arm, and what was left out."""
        rows = [
            (
                env,
                arm,
                len(runs),
                format_number(runs["env_steps"].mean()),
                format_number(runs["final"].mean()),
            )
            for env in self.envs
            for arm, runs in self.by_arm(env)
        ]
        head = ("environment", "arm", "runs", "env steps, mean", f"final {self.metric}, mean")
        return html_table(head, rows) + html_paragraphs(self.problems)


def load_results(
    locations: Locations,
    *,
    metric: str | None = None,
    names: Mapping[str, str] | None = None,
    filesystem: fs.FileSystem | None = None,
) -> Results:
    """Reads all trials under some folders.

    Of several runs of one arm with the same seed, the longest counts: a repeated seed is no new
    evidence. A trial whose id was met before is a copy and left out.

    Args:
        locations: One or many folders of trials or experiments: local paths, or URIs such as
            ``s3://bucket/results``.
        metric: The metric to compare, with its levels joined by "/". None takes
            ``merge/episode_return_mean`` or, if any run lacks it (stock PPO does),
            ``env_runners/episode_return_mean`` for all.
        names: Arms by the names that they shall have; see `name_arms`.
        filesystem: Where the locations lie; None to tell from each location.

    Raises:
        ReportError: There is no trial, none has results yet, none has the metric, or no run is
            what `names` wants to name.
    """
    trials, problems = find_trials(locations, filesystem)
    wanted = [METRIC, STOCK_METRIC] if metric is None else [metric]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        runs = list(pool.map(lambda trial: _read_alone(trial, [*wanted, HELD_OUT]), trials))
        problems += [problem for run in runs for problem in run.problems]
        runs = _without_copies([run for run in runs if len(run.progress.rows)], problems)
        chosen = _choose_metric(runs, metric, problems)
        runs = [run for run in runs if chosen in run.progress.rows]
        labels, arms = assign_arms(name_arms([run.settings for run in runs], names or {}))
        table = _runs_table(runs, labels, chosen)
        problems += _cautions(table)
        arms = arms[arms["arm"].isin(table["arm"])].reset_index(drop=True)
        histories = _read_histories(pool, runs, table, problems)
    table["has_weights"] = table["run"].isin(histories["weights"]["run"])
    return Results(
        runs=table,
        arms=arms,
        progress=_progress_table(runs, chosen),
        **histories,
        diagnostics=_diagnostics_table(runs, table),
        metric=printable(chosen),
        problems=list(dict.fromkeys(map(printable, problems))),
    )


@dataclass
class Run:
    """One trial while it is read."""

    trial: Trial
    settings: Settings
    progress: Progress
    problems: list[str]
    trial_id: str = ""
    held_out: float = math.nan


def read_run(trial: Trial, metrics: Sequence[str]) -> Run:
    """Reads a trial: its settings, its progress, and its returns on held-out seeds.

    Args:
        trial: The trial.
        metrics: Metrics to read, the last one `HELD_OUT`. Without any of the others the mean
            return is derived from the merge history, if it is among them.
    """
    settings, problem = read_settings(trial)
    progress, problems = read_progress(trial, metrics)
    run = Run(trial, settings, progress, ([problem] if problem else []) + problems)
    if not progress.has(metrics[:-1]):
        history, trial_id, more = read_worker_rounds(trial)
        run.problems += more
        if history is not None and METRIC in metrics:
            run.progress, run.trial_id = progress_from_history(history, METRIC), trial_id
            run.problems.append(f"{trial.path}: returns are taken from its merge history")
        elif progress.rows.empty:
            run.problems.append(f"{trial.path} has no results yet")
    if len(run.progress.rows):
        logged = run.progress.facts.get("trial_id", "")
        run.trial_id = run.trial_id or ("" if logged == _NO_ID else logged)
        run.held_out = _held_out(run)
    return run


def _read_alone(trial: Trial, metrics: Sequence[str]) -> Run:
    """Reads a trial; of one that cannot be read, whatever is wrong with it, only that is kept."""
    try:
        return read_run(trial, metrics)
    except Exception as error:
        return Run(trial, Settings(), Progress(), [_left_out(trial.path, error)])


def _left_out(what: str, error: Exception) -> str:
    return f"left out {what}: {type(error).__name__}: {error}"


def _held_out(run: Run) -> float:
    """Returns the mean return on held-out seeds at the end of a run; NaN without one."""
    rows, interval = run.progress.rows, run.settings.evaluation_interval
    late = is_late(rows)
    found: Sequence[float] | pd.Series = []
    if HELD_OUT in rows:
        logged = rows[HELD_OUT]
        known = (rows[ROUND] % max(1, interval) == 0) & np.isfinite(logged)
        found = logged[known & late] if (known & late).any() else logged[known][-1:]
    elif interval > 0 and RESULT in run.trial.files:
        try:
            found = read_held_out(run.trial, int(rows.loc[late, ROUND].iat[0]), interval)
        except OSError as error:
            run.problems.append(f"left out the evaluations of {run.trial.path}: {error}")
    return float(np.mean(found)) if len(found) else math.nan


def is_late(rows: pd.DataFrame) -> pd.Series:
    """Whether a round is in the part of a run that its final return is taken from."""
    return rows[ENV_STEPS] > (1 - FINAL_FRACTION) * rows[ENV_STEPS].iat[-1]


def carried(values: pd.Series) -> pd.Series:
    """Returns values with those that are not finite replaced by the last finite one before."""
    return values.where(np.isfinite(values)).ffill()


def _without_copies(runs: Iterable[Run], problems: list[str]) -> list[Run]:
    paths: dict[str, str] = {}
    kept = []
    for run in runs:
        path, trial_id = run.trial.path, run.trial_id
        if trial_id and (first := paths.setdefault(trial_id, path)) != path:
            problems.append(f"left out {path}: {first} is the same trial ({trial_id})")
        else:
            kept.append(run)
    return kept


def _choose_metric(runs: Sequence[Run], metric: str | None, problems: list[str]) -> str:
    """Returns the metric to compare by.

    Raises:
        ReportError: No run has it, or there are no runs.
    """
    if not runs:
        details = "".join(f"\n- {problem}" for problem in problems[:5])
        raise ReportError(f"none of the trials has results yet{details}")
    having = Counter(name for run in runs for name in run.progress.rows)
    chosen = metric or (METRIC if having[METRIC] >= having[STOCK_METRIC] else STOCK_METRIC)
    if not having[chosen]:
        known = {name for run in runs for name in run.progress.columns}
        ranked = sorted(known, key=lambda name: (not name.startswith(("merge/", "env_r")), name))
        raise unknown("metric", chosen, [name for name in ranked if "return" in name] + ranked)
    if lacking := len(runs) - having[chosen]:
        problems.append(f"left out {counted(lacking, 'run')} without the metric {chosen}")
    if metric is None and chosen == STOCK_METRIC:
        problems.append(
            f"compared by {STOCK_METRIC}: {counted(len(runs) - having[METRIC], 'run')} without "
            f"{METRIC}; it is the mean over the episodes of a round, not over the last 100"
        )
    return chosen


def _runs_table(runs: Sequence[Run], labels: Sequence[str], metric: str) -> pd.DataFrame:
    rows = [_run_row(run, label, metric) for run, label in zip(runs, labels, strict=True)]
    table = pd.DataFrame(rows)
    table.insert(0, "run", np.arange(len(rows)))
    table["seed"] = table["seed"].astype("Int64")
    by_length = table.sort_values("env_steps", ascending=False, kind="stable")
    repeated = by_length.duplicated(["env", "arm", "seed"]) & by_length["seed"].notna()
    table["counts"] = ~repeated.sort_index()
    return table


def _run_row(run: Run, label: str, metric: str) -> dict[str, Any]:
    progress, rows = run.progress, run.progress.rows
    rows[metric] = carried(rows[metric])
    return {
        "env": run.settings.env,
        "arm": label,
        "strategy": run.settings.strategy,
        "min_weight": run.settings.min_weight,
        "seed": run.settings.seed,
        "num_rounds": len(rows),
        "env_steps": rows[ENV_STEPS].iat[-1],
        "time_s": rows[TIME].iat[-1],
        "final": rows.loc[is_late(rows), metric].mean(),
        "held_out": run.held_out,
        "finished": progress.finished,
        "source": progress.source,
        "host": printable(progress.facts.get("hostname", "")),
        "date": printable(progress.facts.get("date", "")),
        "trial_id": printable(run.trial_id),
        "path": printable(run.trial.path),
    }


def _cautions(table: pd.DataFrame) -> list[str]:
    """Returns sentences on runs that do not count, and on those that have not come to an end."""
    repeated = table[~table["counts"]].groupby(["env", "arm"], sort=False).size()
    unfinished = table[table["counts"] & ~table["finished"]].groupby("env", sort=False).size()
    return [
        f"{env}, {arm}: left out {counted(count, 'run')} with a seed that another run has; the "
        "longest run of a seed counts"
        for (env, arm), count in repeated.items()
    ] + [
        f"{env}: {counted(count, 'run')} still going or cut off: counted as far as they came"
        for env, count in unfinished.items()
    ]


def _progress_table(runs: Sequence[Run], metric: str) -> pd.DataFrame:
    parts = [run.progress.rows for run in runs]
    table = pd.concat(parts, ignore_index=True)
    names = {"round": ROUND, "env_steps": ENV_STEPS, "time_s": TIME, "value": metric}
    columns = {name: table[logged] for name, logged in names.items()}
    numbers = np.arange(len(parts), dtype=np.int32)
    return pd.DataFrame({"run": np.repeat(numbers, [len(part) for part in parts]), **columns})


def _diagnostics_table(runs: Sequence[Run], table: pd.DataFrame) -> pd.DataFrame:
    """Returns what the runs that count measured of gradients, each measurement once."""
    parts = [
        pd.DataFrame({"env": [], "arm": [], "run": [], "env_steps": [], "name": [], "value": []})
    ]
    for index in table.loc[table["counts"], "run"].tolist():
        rows = runs[index].progress.rows
        columns = [name for name in rows if name.startswith(DIAGNOSTICS)]
        found = rows[columns].dropna(how="all")
        # In rounds in between, the last measurement is logged again.
        found = found[(found != found.shift()).any(axis=1)]
        if found.empty:
            continue
        found.columns = found.columns.str.removeprefix(DIAGNOSTICS)
        found = found.assign(env_steps=rows.loc[found.index, ENV_STEPS])
        long = found.melt("env_steps", var_name="name").dropna(subset=["value"])
        parts.append(long.assign(**table.loc[index, ["env", "arm", "run"]].to_dict()))
    return pd.concat(parts if len(parts) == 1 else parts[1:], ignore_index=True)


def _read_histories(
    pool: ThreadPoolExecutor, runs: Sequence[Run], table: pd.DataFrame, problems: list[str]
) -> dict[str, pd.DataFrame]:
    """Returns weights, shares, origins and levels, from the histories of the runs that count."""
    last_rounds = pd.Series([run.progress.rows[ROUND].iat[-1] for run in runs])
    longest = last_rounds.groupby(table["env"].to_numpy()).transform("max").tolist()
    has_history = np.array([run.trial.history is not None for run in runs], dtype=bool)
    counting = table[table["counts"] & has_history]
    by_seed = counting.sort_values("seed", kind="stable")
    examples = set(by_seed.drop_duplicates(["env", "arm"])["run"])

    def read(index: int) -> tuple[dict[str, pd.DataFrame], list[str]]:
        found: dict[str, pd.DataFrame] = {}
        trial = runs[index].trial
        history, _, left_out = read_worker_rounds(trial)
        facts = table.loc[index, ["env", "arm", "run", "seed"]].to_dict()
        if history is not None:
            weights = summarize_weights(history, longest[index])
            found["weights"] = pd.DataFrame({"run": np.int32(index), **weights})
        if history is not None and index in examples:
            shares = worker_shares(history, longest[index])
            found["shares"] = pd.DataFrame({**facts, **shares})
        if index in examples and trial.history:
            levels = read_levels(trial.history, longest[index])
            found |= {"levels": pd.DataFrame({**facts, **levels})} if len(levels) else {}
        if index in examples and trial.history and (origin := read_origin(trial.history)):
            origin = {printable(name): printable(value) for name, value in origin.items()}
            found["origins"] = pd.DataFrame([{**facts, **origin}]).drop(columns="seed")
        return found, left_out

    def read_alone(index: int) -> tuple[dict[str, pd.DataFrame], list[str]]:
        try:
            return read(index)
        except Exception as error:
            return {}, [_left_out(f"the merge history of {runs[index].trial.path}", error)]

    found = list(pool.map(read_alone, counting["run"].tolist()))
    problems += [problem for _, left_out in found for problem in left_out]
    empty = {
        "weights": ["run"],
        "shares": ["arm"],
        "origins": ["env", "arm", "run"],
        "levels": ["env", "arm", "run"],
    }
    return {
        name: pd.concat(
            [parts[name] for parts, _ in found if name in parts]
            or [pd.DataFrame(columns=columns, dtype=float)],
            ignore_index=True,
        )
        for name, columns in empty.items()
    }
