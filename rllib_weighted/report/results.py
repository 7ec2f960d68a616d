"""Reads any number of trials into the few tables that everything else is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import fs

from rllib_weighted.records.origin import read_origin
from rllib_weighted.records.reading import Locations
from rllib_weighted.report.arms import assign_arms
from rllib_weighted.report.errors import ReportError, counted, unknown
from rllib_weighted.report.histories import read_worker_rounds, summarize_weights, worker_shares
from rllib_weighted.report.locate import find_trials
from rllib_weighted.report.progress import HELD_OUT
from rllib_weighted.report.reading import METRIC, STOCK_METRIC, Run, carried, read_run, run_row

_NUM_THREADS = 8  # Parquet and CSV are decoded without Python's lock; a remote store makes wait.


@dataclass(frozen=True)
class Results:
    """Trials as tables.

    Attributes:
        runs: A row per trial that has results. Columns:
            run (number, the index of the other tables), env, arm (label), strategy,
            min_weight (NaN if it has none), seed (missing if it has none), num_rounds,
            env_steps, time_s (of the whole run), final (mean of the metric over the last
            `reading.FINAL_FRACTION` of its steps), held_out (mean of the evaluations then; NaN
            without), finished (it came to its own end), counts (whether it takes part: see
            `load_results`), has_weights, source (what the metric is from), host, date (of the
            last round), trial_id, path.
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
    """

    runs: pd.DataFrame
    arms: pd.DataFrame
    progress: pd.DataFrame
    weights: pd.DataFrame
    shares: pd.DataFrame
    origins: pd.DataFrame
    metric: str
    problems: list[str] = field(default_factory=list)


def load_results(
    locations: Locations,
    *,
    metric: str | None = None,
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
        filesystem: Where the locations lie; None to tell from each location.

    Raises:
        ReportError: There is no trial, none has results yet, or none has the metric.
    """
    trials, problems = find_trials(locations, filesystem)
    wanted = [METRIC, STOCK_METRIC] if metric is None else [metric]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        runs = list(pool.map(lambda trial: read_run(trial, [*wanted, HELD_OUT]), trials))
        problems += [problem for run in runs for problem in run.problems]
        runs = _without_copies([run for run in runs if run.progress is not None], problems)
        chosen = _choose_metric(runs, metric, problems)
        runs = [run for run in runs if run.progress is not None and chosen in run.progress.values]
        labels, arms = assign_arms([run.settings for run in runs])
        table = _runs_table(runs, labels, chosen)
        problems += _repeated(table) + _unfinished(table)
        arms = arms[arms["arm"].isin(table["arm"])].reset_index(drop=True)
        progress = _progress_table(runs, chosen)
        weights, shares = _weights_tables(pool, runs, table, problems)
        origins = _origins_table(runs, table)
    table["has_weights"] = table["run"].isin(weights["run"].unique())
    problems = list(dict.fromkeys(problems))
    return Results(table, arms, progress, weights, shares, origins, chosen, problems)


def _without_copies(runs: Iterable[Run], problems: list[str]) -> list[Run]:
    seen: dict[str, str] = {}
    kept = []
    for run in runs:
        first = seen.setdefault(run.trial_id, run.trial.path) if run.trial_id else run.trial.path
        if first == run.trial.path:
            kept.append(run)
        else:
            problems.append(
                f"left out {run.trial.path}: {first} is the same trial ({run.trial_id})"
            )
    return kept


def _choose_metric(runs: Sequence[Run], metric: str | None, problems: list[str]) -> str:
    """Returns the metric to compare by.

    Raises:
        ReportError: No run has it, or there are no runs.
    """
    if not runs:
        details = "".join(f"\n- {problem}" for problem in problems[:5])
        raise ReportError(f"none of the trials has results yet{details}")
    having = {
        name: sum(1 for run in runs if run.progress and name in run.progress.values)
        for name in ([metric] if metric else [METRIC, STOCK_METRIC])
    }
    chosen = metric or (METRIC if having[METRIC] >= having[STOCK_METRIC] else STOCK_METRIC)
    if not having[chosen]:
        known = {name for run in runs if run.progress for name in run.progress.columns}
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
    rows = [run_row(run, label, metric) for run, label in zip(runs, labels, strict=True)]
    table = pd.DataFrame(rows)
    table.insert(0, "run", np.arange(len(rows)))
    table["seed"] = table["seed"].astype("Int64")
    by_length = table.sort_values("env_steps", ascending=False, kind="stable")
    repeated = by_length.duplicated(["env", "arm", "seed"]) & by_length["seed"].notna()
    table["counts"] = ~repeated.sort_index()
    return table


def _repeated(table: pd.DataFrame) -> list[str]:
    groups = table[~table["counts"]].groupby(["env", "arm"], sort=False).size()
    return [
        f"{env}, {arm}: left out {counted(count, 'run')} with a seed that another run has; the "
        "longest run of a seed counts"
        for (env, arm), count in groups.items()
    ]


def _unfinished(table: pd.DataFrame) -> list[str]:
    groups = table[table["counts"] & ~table["finished"]].groupby("env", sort=False).size()
    return [
        f"{env}: {counted(count, 'run')} still going or cut off: counted as far as they came"
        for env, count in groups.items()
    ]


def _progress_table(runs: Sequence[Run], metric: str) -> pd.DataFrame:
    parts = [run.progress for run in runs if run.progress is not None]
    sizes = [part.rounds.size for part in parts]
    columns = {
        "run": np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
        "round": np.concatenate([part.rounds.astype(np.int32) for part in parts]),
        "env_steps": np.concatenate([part.env_steps for part in parts]),
        "time_s": np.concatenate([part.time_s for part in parts]),
        "value": np.concatenate([carried(part.values[metric]) for part in parts]),
    }
    return pd.DataFrame(columns, copy=False)


def _weights_tables(
    pool: ThreadPoolExecutor, runs: Sequence[Run], table: pd.DataFrame, problems: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the merge histories of the runs that count."""
    last_rounds = [run.last_round for run in runs]
    longest = pd.Series(last_rounds).groupby(table["env"].to_numpy()).max()
    example = _examples(runs, table)
    counting = np.flatnonzero(table["counts"]).tolist()
    numbers = [index for index in counting if runs[index].trial.history is not None]

    def reduce(index: int) -> tuple[int, Any, Any, list[str]]:
        history, _, left_out = read_worker_rounds(runs[index].trial)
        if history is None:
            return index, None, None, left_out
        last = int(longest[table["env"].iat[index]])
        shares = worker_shares(history, last) if index in example else None
        return index, summarize_weights(history, last), shares, left_out

    weights: list[dict[str, np.ndarray]] = []
    shares: list[pd.DataFrame] = []
    for index, summary, cells, left_out in pool.map(reduce, numbers):
        problems += left_out
        if summary is not None:
            size = summary["round"].size
            weights.append({"run": np.full(size, index, dtype=np.int32), **summary})
        if cells is not None:
            row = table.iloc[index]
            facts = {name: row[name] for name in ("env", "arm", "run", "seed")}
            shares.append(pd.DataFrame({**facts, **cells}))
    names = weights[0] if weights else ["run"]
    return (
        pd.DataFrame({name: _joined([part[name] for part in weights]) for name in names}),
        pd.concat(shares, ignore_index=True) if shares else pd.DataFrame({"arm": []}),
    )


def _origins_table(runs: Sequence[Run], table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for index in sorted(_examples(runs, table)):
        history = runs[index].trial.history
        found = read_origin(history) if history is not None else {}
        if found:
            row = table.iloc[index]
            rows.append({**{name: row[name] for name in ("env", "arm", "run")}, **found})
    return pd.DataFrame(rows, columns=None if rows else ["env", "arm", "run"])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0)


def _examples(runs: Sequence[Run], table: pd.DataFrame) -> set[int]:
    """Returns the run of the lowest seed of each arm, among those with a merge history."""
    has_history = np.array([run.trial.history is not None for run in runs], dtype=bool)
    candidates = table[has_history & table["counts"].to_numpy()]
    ordered = candidates.sort_values("seed", kind="stable", na_position="last")
    return set(ordered.drop_duplicates(["env", "arm"])["run"])


def runs_of(results: Results, env: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the arms of an environment, in their order, and the runs of each that count."""
    counting = results.runs[results.runs["counts"] & (results.runs["env"] == env)]
    for arm in results.arms.loc[results.arms["env"] == env, "arm"]:
        yield arm, counting[counting["arm"] == arm]
