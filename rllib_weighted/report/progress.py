"""Reads what a trial logged round by round: Tune's files, and the merge history."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from rllib_weighted.records.reading import HistoryFolder, read_folder
from rllib_weighted.report.trials import PROGRESS, RESULT, Trial

ROUND = "training_iteration"
ENV_STEPS = "num_env_steps_sampled_lifetime"
TIME = "time_total_s"
CLOCKS = (ROUND, ENV_STEPS, TIME)
DIAGNOSTICS = "merge/diagnostics/"
"""What the metrics of gradients begin with; they are read wherever they were logged."""
HELD_OUT = "evaluation/env_runners/episode_return_mean"
NUM_BINS = 100
"""Ranges of rounds that a merge history is reduced to, at most."""
NUM_EPISODES = 100
"""Episodes that the mean return is taken over, as RLlib's default is."""

_LARGEST = 2**53  # Up to here floating-point numbers count one by one.
_TEXTS = ("done", "hostname", "trial_id", "date")
_BLOCK = 1 << 18  # bytes read at once from the end of a file
_LEVEL_COLUMNS = ["trial_id", "round", "worker", "levels", "level_returns"]
_HISTORY_COLUMNS = [
    *("trial_id", "round", "worker", "env_steps", "share", "weight"),
    *("episode_return", "num_episodes", "dropped"),
]


@dataclass
class Progress:
    """What was logged of a trial.

    Attributes:
        rows: A row per round, in their order; without any, nothing was logged. Columns: `ROUND`;
            `ENV_STEPS` and `TIME` (s of training) up to its end, the latter NaN if it was not
            logged; and the metrics asked for, as far as they were.
        columns: Names of all metrics that were logged.
        finished: Whether the trial came to its own end.
        facts: "hostname", "trial_id" and "date" (of the last round).
        source: File that this is from.
    """

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    columns: Sequence[str] = ()
    finished: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    source: str = ""

    def has(self, metrics: Sequence[str]) -> bool:
        """Whether any of the metrics was logged."""
        return not self.rows.columns.intersection(metrics).empty


def read_progress(trial: Trial, metrics: Sequence[str]) -> tuple[Progress, list[str]]:
    """Reads a trial's progress from Tune's files.

    `RESULT` is many times as large as `PROGRESS`: it is read only if the other is missing or has
    none of the metrics (its columns are those of the first round).

    Args:
        trial: The trial.
        metrics: Metrics to read, with their levels joined by "/".

    Returns:
        The progress, without rounds if there is none, and a sentence on whatever is left out.
    """
    problems: list[str] = []
    progress = Progress()
    for name, read in ((PROGRESS, _read_csv), (RESULT, _read_json)):
        if name not in trial.files or progress.has(metrics):
            continue
        try:
            with trial.filesystem.open_input_stream(trial.file(name)) as stream:
                found, left_out = read(stream.read(), metrics)
        except (OSError, ValueError, pa.ArrowException) as error:
            problems.append(f"left out {trial.file(name)}: {error}")
            continue
        problems += [f"left out {what} of {trial.file(name)}" for what in left_out]
        if found.has(metrics) or progress.rows.empty:
            progress = found
    return progress, problems


def _read_csv(content: bytes, metrics: Sequence[str]) -> tuple[Progress, list[str]]:
    whole = content.rfind(b"\n") + 1
    left_out = ["a torn last line"] if whole < len(content) else []
    head = content[: content.find(b"\n") + 1].decode("utf-8", errors="replace")
    columns = next(csv.reader(io.StringIO(head)), [])
    if ROUND not in columns or ENV_STEPS not in columns:
        raise ValueError(f"it has no column {ROUND} or {ENV_STEPS}, so it is not RLlib's")
    of_gradients = [name for name in columns if name.startswith(DIAGNOSTICS)]
    wanted = dict.fromkeys((*CLOCKS, *metrics, *of_gradients), pa.float64())
    every = wanted | dict.fromkeys(_TEXTS, pa.string())
    types = {name: kind for name, kind in every.items() if name in columns}
    invalid: list[Any] = []

    def skip(row: Any) -> str:
        invalid.append(row)
        return "skip"

    table = pacsv.read_csv(
        pa.py_buffer(memoryview(content)[:whole]),
        read_options=pacsv.ReadOptions(use_threads=False),
        parse_options=pacsv.ParseOptions(invalid_row_handler=skip),
        convert_options=pacsv.ConvertOptions(include_columns=list(types), column_types=types),
    )
    if invalid:
        left_out.append(f"{len(invalid)} lines with too few or too many values")
    data = table.select([name for name in wanted if name in types]).to_pandas()
    last = table.slice(max(0, table.num_rows - 1)).to_pylist()
    facts = {name: str(row[name]) for row in last for name in _TEXTS if name in types}
    return _progress(data, columns, facts, PROGRESS), left_out


def _read_json(content: bytes, metrics: Sequence[str]) -> tuple[Progress, list[str]]:
    lines = [line for line in content.split(b"\n") if line.strip()]
    results = [result for line in lines if (result := parse_result(line)) is not None]
    torn = len(lines) - len(results)
    left_out = [f"{torn} torn or foreign lines"] if torn else []
    results = [result for result in results if ROUND in result and ENV_STEPS in result]
    if not results:
        return Progress(), left_out
    last = pd.json_normalize({**results[-1], "config": None}, sep="/")
    columns = list(last.select_dtypes("number"))
    of_gradients = [name for name in columns if name.startswith(DIAGNOSTICS)]
    names = dict.fromkeys((*CLOCKS, *metrics, *of_gradients))
    data = pd.DataFrame({name: [lookup(result, name) for result in results] for name in names})
    missing = [name for name in metrics if name not in columns and data[name].isna().all()]
    data = data.drop(columns=missing)
    facts = {name: str(results[-1].get(name, "")) for name in _TEXTS}
    return _progress(data, columns, facts, RESULT), left_out


def _progress(
    data: pd.DataFrame, columns: Sequence[str], facts: dict[str, str], source: str
) -> Progress:
    """Returns the progress; of a round that was logged twice (around a restore), the last row."""
    data = data.dropna(subset=[ROUND, ENV_STEPS])
    if data.empty:
        return Progress()
    for name in (ROUND, ENV_STEPS):
        if not data[name].between(0, _LARGEST).all():
            found = data.loc[~data[name].between(0, _LARGEST), name].iat[0]
            raise ValueError(f"{name} should be a count, found {found:g}")
    if not (data[ROUND].diff()[1:] > 0).all():
        data = data.drop_duplicates(ROUND, keep="last").sort_values(ROUND)
    rows = data.reindex(columns=list(dict.fromkeys([*CLOCKS, *data.columns])))
    rows = rows.astype({ROUND: np.int64, ENV_STEPS: np.int64}).reset_index(drop=True)
    finished = facts.pop("done", "").lower() == "true"
    return Progress(rows, columns, finished, facts, source)


def read_held_out(trial: Trial, first_round: int, interval: int) -> list[float]:
    """Reads the returns on held-out seeds from the end of a trial's `RESULT`.

    Args:
        trial: The trial.
        first_round: Where the rounds that count begin.
        interval: Rounds from one evaluation to the next. RLlib repeats an evaluation's result in
            rounds without one, which do not count again.

    Returns:
        The mean returns of the evaluations since `first_round`; without any, of the last one
        before it, if there was one.

    Raises:
        OSError: The file is out of reach.
    """
    found: list[float] = []
    for line in _lines_from_end(trial):
        result = parse_result(line)
        round = result.get(ROUND) if result is not None else None
        if result is None or not isinstance(round, int):
            continue
        if round < first_round and (found or round < first_round - interval):
            break
        value = lookup(result, HELD_OUT)
        if round % interval == 0 and math.isfinite(value):
            found.append(value)
    return found[::-1]


def _lines_from_end(trial: Trial) -> Iterator[bytes]:
    """Yields the lines of `RESULT`, the last one first."""
    with trial.filesystem.open_input_file(trial.file(RESULT)) as file:
        end = file.size()
        rest = b""
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            lines = (file.read(end - start) + rest).split(b"\n")
            rest = lines[0]
            yield from (line for line in lines[:0:-1] if line.strip())
            end = start
        if rest.strip():
            yield rest


def parse_result(line: bytes) -> dict[str, Any] | None:
    """Returns one line of a `RESULT`; None if it is torn or foreign."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


def lookup(result: dict[str, Any], name: str) -> float:
    """Returns a metric of a nested result by its joined name; NaN if it is not there."""
    value: Any = result
    for key in name.split("/"):
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


@dataclass
class WorkerRounds:
    """A merge history as arrays.

    Attributes:
        rounds: Number of each recorded round, [R].
        env_steps: Environment steps up to its end, [R].
        starts: Where each round's rows begin, [R].
        columns: The history's columns, a value per (round, worker).
    """

    rounds: np.ndarray
    env_steps: np.ndarray
    starts: np.ndarray
    columns: dict[str, np.ndarray]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum over the workers of each round, [R]."""
        return np.add.reduceat(values, self.starts)


def read_worker_rounds(trial: Trial) -> tuple[WorkerRounds | None, str, list[str]]:
    """Reads a trial's merge history.

    Returns:
        The history or None, the trial's id in it or "", and a sentence on each file left out.
    """
    if trial.history is None:
        return None, "", []
    tables, problems = read_folder(trial.history, _HISTORY_COLUMNS)
    if not tables:
        return None, "", problems
    if len(tables) > 1:
        problems = [*problems, f"{trial.history.path} holds {len(tables)} trials: took the longest"]
    table = max(tables, key=lambda table: table.num_rows)
    columns = {name: table[name].to_numpy() for name in _HISTORY_COLUMNS[1:]}
    rounds, workers = columns.pop("round"), columns["worker"]
    starts = np.flatnonzero(np.diff(rounds, prepend=rounds[0] - 1))
    num_workers = np.diff(np.append(starts, rounds.size)).max()
    for what, numbers, first, last in (
        ("worker", workers, 0, num_workers - 1),
        ("round", rounds, 0, _LARGEST),
    ):
        if numbers.min() < first or numbers.max() > last:
            found = f"numbers from {numbers.min():,} to {numbers.max():,}"
            should = f"a {what}'s number should be from {first} to {last:,}"
            return None, "", [*problems, f"left out {trial.history.path}: {should}, found {found}"]
    env_steps = columns.pop("env_steps")[starts]
    history = WorkerRounds(rounds[starts], env_steps, starts, columns)
    return history, table["trial_id"][0].as_py(), problems


def progress_from_history(history: WorkerRounds, metric: str) -> Progress:
    """Derives a trial's mean return from its merge history, for want of anything better.

    The mean is over the last rounds that together hold at least `NUM_EPISODES` episodes; without
    as many, over all. It has no times.

    Args:
        history: The history.
        metric: Name under which the mean return is put.
    """
    episodes = history.columns["num_episodes"].astype(np.float64)
    returns = np.where(episodes > 0, np.nan_to_num(history.columns["episode_return"]), 0.0)
    total = np.concatenate([[0.0], np.cumsum(history.sum(returns * episodes))])
    count = np.concatenate([[0.0], np.cumsum(history.sum(episodes))])
    since = np.maximum(np.searchsorted(count, count[1:] - NUM_EPISODES, side="right") - 1, 0)
    values = _divide(total[1:] - total[since], count[1:] - count[since])
    clocks = {ROUND: history.rounds, ENV_STEPS: history.env_steps, TIME: math.nan}
    return Progress(pd.DataFrame({**clocks, metric: values}), source="merge history")


def summarize_weights(history: WorkerRounds, last_round: int) -> dict[str, np.ndarray]:
    """Returns what the weights did, as means over up to `NUM_BINS` equal ranges of rounds.

    Args:
        history: The history.
        last_round: The last round of the longest trial that this one is shown beside.

    Returns:
        Arrays of equal length: `round` and `env_steps` (at the end of the range, as far as the
        trial came), `effective_workers` (``(sum w)^2 / sum w^2``, dropped workers left out),
        `share_min`, `share_max`, `num_dropped` (sum), `num_worker_rounds` (sum).
    """
    kept = ~history.columns["dropped"]
    weights = np.where(kept, history.columns["weight"], 0.0)
    effective = _divide(history.sum(weights) ** 2, history.sum(weights**2), otherwise=0.0)
    shares = np.where(kept, history.columns["share"], np.nan)
    bins = round_bins(history.rounds, last_round)
    first = np.flatnonzero(np.diff(bins, prepend=-1))
    last = np.append(first[1:], bins.size) - 1

    def means(values: np.ndarray) -> np.ndarray:
        known = ~np.isnan(values)
        return _divide(
            np.add.reduceat(np.where(known, values, 0.0), first),
            np.add.reduceat(known.astype(np.float64), first),
        )

    return {
        "round": history.rounds[last],
        "env_steps": history.env_steps[last],
        "effective_workers": means(effective),
        "share_min": means(np.fmin.reduceat(shares, history.starts)),
        "share_max": means(np.fmax.reduceat(shares, history.starts)),
        "num_dropped": np.add.reduceat(history.sum(~kept), first).astype(np.int64),
        "num_worker_rounds": np.add.reduceat(history.sum(np.ones(kept.size, int)), first),
    }


def worker_shares(history: WorkerRounds, last_round: int) -> pd.DataFrame:
    """Returns each worker's share, as means over up to `NUM_BINS` equal ranges of rounds.

    Returns:
        A row per (range, worker): `round` (the range's last), `worker`, `share` (NaN where the
        worker was dropped throughout).
    """
    width = bin_width(last_round)
    sizes = np.diff(np.append(history.starts, history.columns["worker"].size))
    bins = np.repeat(round_bins(history.rounds, last_round), sizes)
    columns = {name: history.columns[name] for name in ("worker", "share", "dropped")}
    table = pd.DataFrame({"round": (bins + 1) * width, **columns})
    cells = pd.MultiIndex.from_product(
        [np.arange(bins.max() + 1) * width + width, np.arange(table["worker"].max() + 1)],
        names=["round", "worker"],
    )
    means = table[~table["dropped"]].groupby(["round", "worker"])["share"].mean()
    return means.reindex(cells).reset_index()


def read_levels(history: HistoryFolder, last_round: int) -> pd.DataFrame:
    """Reads which levels a trial played.

    Args:
        history: The trial's merge history.
        last_round: The last round of the longest trial that this one is shown beside.

    Returns:
        A row per (range of rounds, level) that was played there: `round` (the range's last),
        `level`, `episodes` that ended and `episode_return`, their mean. Empty without levels.
    """
    tables, _ = read_folder(history, _LEVEL_COLUMNS)
    if not tables:
        return pd.DataFrame(columns=["round", "level", "episodes", "episode_return"])
    rows = max(tables, key=len).select(_LEVEL_COLUMNS[1:]).to_pandas().dropna(subset=["levels"])
    plays = rows.explode(["levels", "level_returns"]).dropna(subset=["levels"])
    ranges = round_bins(plays["round"].to_numpy(), last_round)
    return (
        pd.DataFrame(
            {
                "round": (ranges + 1) * bin_width(last_round),
                "level": plays["levels"].astype(np.int64),
                "episode_return": plays["level_returns"].astype(np.float64),
            }
        )
        .groupby(["round", "level"], as_index=False)
        .agg(episodes=("level", "size"), episode_return=("episode_return", "mean"))
    )


def bin_width(last_round: int) -> int:
    """Returns how many rounds are shown as one."""
    return max(1, -(-last_round // NUM_BINS))


def round_bins(rounds: np.ndarray, last_round: int) -> np.ndarray:
    """Returns the range, from 0, that each round (from 1) falls into."""
    return np.maximum(rounds - 1, 0) // bin_width(last_round)


def _divide(total: np.ndarray, count: np.ndarray, otherwise: float = math.nan) -> np.ndarray:
    """Returns quotients, and `otherwise` where the divisor is not positive."""
    return np.divide(total, count, out=np.full(total.shape, otherwise), where=count > 0)
