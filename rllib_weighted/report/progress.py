"""Reads what Tune logs of a trial round by round: `progress.csv`, or `result.json` without it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from rllib_weighted.report.locate import PROGRESS, RESULT, Trial

ROUND = "training_iteration"
ENV_STEPS = "num_env_steps_sampled_lifetime"
TIME = "time_total_s"
HELD_OUT = "evaluation/env_runners/episode_return_mean"
_TEXTS = ("done", "hostname", "trial_id", "date")
_BLOCK = 1 << 18  # bytes read at once from the end of a file


@dataclass
class Progress:
    """What was logged of a trial, a value per round.

    Attributes:
        rounds: Numbers of the rounds, rising.
        env_steps: Environment steps up to the end of each round.
        time_s: Seconds of training up to then; NaN if it was not logged.
        values: The metrics asked for, as far as they were logged.
        columns: Names of all metrics that were logged.
        finished: Whether the trial came to its own end.
        facts: "hostname", "trial_id" and "date" (of the last round).
        source: File that this is from.
    """

    rounds: np.ndarray
    env_steps: np.ndarray
    time_s: np.ndarray
    values: dict[str, np.ndarray]
    columns: Sequence[str] = ()
    finished: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    source: str = ""


def read_progress(trial: Trial, metrics: Sequence[str]) -> tuple[Progress | None, list[str]]:
    """Reads a trial's progress.

    `RESULT` is many times as large as `PROGRESS`: it is read only if the other is missing or has
    none of the metrics (its columns are those of the first round).

    Args:
        trial: The trial.
        metrics: Metrics to read, with their levels joined by "/".

    Returns:
        The progress, or None if there is none, and a sentence on whatever is left out.
    """
    problems: list[str] = []
    progress = None
    for name, read in ((PROGRESS, _read_csv), (RESULT, _read_json)):
        if name not in trial.files or (progress is not None and progress.values):
            continue
        try:
            found, left_out = read(trial, metrics)
        except (OSError, ValueError, pa.ArrowException) as error:
            problems.append(f"left out {trial.file(name)}: {error}")
            continue
        problems += [f"left out {count} of {trial.file(name)}" for count in left_out]
        if found is not None and (progress is None or found.values):
            progress = found
    return progress, problems


def _read_csv(trial: Trial, metrics: Sequence[str]) -> tuple[Progress | None, list[str]]:
    with trial.filesystem.open_input_stream(trial.file(PROGRESS)) as stream:
        content = stream.read()
    whole = content.rfind(b"\n") + 1
    left_out = ["a torn last line"] if whole < len(content) else []
    head = content[: content.find(b"\n") + 1].decode("utf-8", errors="replace")
    columns = next(csv.reader(io.StringIO(head)), [])
    if ROUND not in columns or ENV_STEPS not in columns:
        raise ValueError(f"it has no column {ROUND} or {ENV_STEPS}, so it is not RLlib's")
    numbers = [name for name in (ROUND, ENV_STEPS, TIME, *metrics) if name in columns]
    texts = [name for name in _TEXTS if name in columns]
    invalid: list[Any] = []

    def skip(row: Any) -> str:
        invalid.append(row)
        return "skip"

    table = pacsv.read_csv(
        pa.py_buffer(memoryview(content)[:whole]),
        read_options=pacsv.ReadOptions(use_threads=False),
        parse_options=pacsv.ParseOptions(invalid_row_handler=skip),
        convert_options=pacsv.ConvertOptions(
            include_columns=[*dict.fromkeys(numbers), *texts],
            column_types={
                **dict.fromkeys(numbers, pa.float64()),
                **dict.fromkeys(texts, pa.string()),
            },
        ),
    )
    if invalid:
        left_out.append(f"{len(invalid)} lines with too few or too many values")
    data = {name: table[name].to_numpy() for name in numbers}
    facts = {name: str(table[name][-1]) for name in texts} if table.num_rows else {}
    return _progress(data, metrics, facts, columns, PROGRESS), left_out


def _read_json(trial: Trial, metrics: Sequence[str]) -> tuple[Progress | None, list[str]]:
    with trial.filesystem.open_input_stream(trial.file(RESULT)) as stream:
        lines = stream.read().split(b"\n")
    results = [result for line in lines if (result := parse_result(line)) is not None]
    torn = sum(1 for line in lines if line.strip()) - len(results)
    left_out = [f"{torn} torn or foreign lines"] if torn else []
    results = [result for result in results if ROUND in result and ENV_STEPS in result]
    if not results:
        return None, left_out
    present = [
        name for name in metrics if any(lookup(result, name) is not None for result in results)
    ]
    data = {
        name: np.array([number(lookup(result, name)) for result in results])
        for name in (ROUND, ENV_STEPS, TIME, *present)
    }
    facts = {name: str(results[-1].get(name, "")) for name in _TEXTS}
    return _progress(data, metrics, facts, list(flatten(results[-1])), RESULT), left_out


def _progress(
    data: dict[str, np.ndarray],
    metrics: Sequence[str],
    facts: dict[str, str],
    columns: Sequence[str],
    source: str,
) -> Progress | None:
    """Returns the progress; of a round that was logged twice (around a restore), the last row."""
    valid = np.isfinite(data[ROUND]) & np.isfinite(data[ENV_STEPS])
    data = {name: values[valid] for name, values in data.items()}
    rounds = data[ROUND].astype(np.int64)
    if rounds.size == 0:
        return None
    if (np.diff(rounds) <= 0).any():
        _, from_end = np.unique(rounds[::-1], return_index=True)
        kept = rounds.size - 1 - from_end
        rounds, data = rounds[kept], {name: values[kept] for name, values in data.items()}
    finished = facts.pop("done", "").lower() == "true"
    return Progress(
        rounds=rounds,
        env_steps=data[ENV_STEPS].astype(np.int64),
        time_s=data.get(TIME, np.full(rounds.size, math.nan)),
        values={name: data[name] for name in metrics if name in data},
        columns=columns,
        finished=finished,
        facts=facts,
        source=source,
    )


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
        value = number(lookup(result, HELD_OUT))
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


def lookup(result: dict[str, Any], name: str) -> Any:
    """Returns a metric of a nested result by its joined name; None if it is not there."""
    value: Any = result
    for key in name.split("/"):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def number(value: Any) -> float:
    """Returns a value as a number; NaN if it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def flatten(result: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """Yields the joined names of all numbers in a nested result."""
    for key, value in result.items():
        if isinstance(value, dict) and key != "config":
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}"
