"""Finds the checkpoint that is meant: a given one, the newest below a folder, or the best."""

from __future__ import annotations

import itertools
import json
import math
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import fs

from rllib_weighted.cli import InputError, storage

MARK = "rllib_checkpoint.json"
_STATE = "algorithm_state.pkl"
# Of an experiment whose file names no metric of its own: ours, else that of RLlib.
DEFAULT_METRICS = ("merge/episode_return_mean", "env_runners/episode_return_mean")


def find_checkpoint(location: str | Path, *, best: bool | None = None) -> str:
    """Returns a checkpoint's location: the given one, or one below it.

    Args:
        location: A checkpoint, or the folder of a trial or experiment; a local path or a URI.
        best: Of several, the one with the best value of the experiment's metric in the round that
            it was saved in (True), or the newest (False). None: the best of several trials, the
            newest of one.

    Raises:
        InputError: There is none, or `best` is True and no value is known.
    """
    text = storage.absolute(str(location))
    storage.check_store(text)
    filesystem, folder = storage.open_storage(text)
    try:
        if filesystem.get_file_info(folder).type != fs.FileType.Directory:
            raise InputError(f"there is no folder {text}")
        if filesystem.get_file_info(f"{folder}/{MARK}").is_file:
            return text
        files = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    except OSError as error:
        raise InputError(f"{text} cannot be read: {error}") from None
    pattern = re.compile(rf"{re.escape(folder)}/([^/]+/)?checkpoint_[^/]*/{MARK}")
    marks = [info for info in files if pattern.fullmatch(info.path)]
    if not marks:
        raise InputError(
            f"{text} is no checkpoint and holds none; give the folder of a checkpoint, a trial "
            "or an experiment"
        )
    marks.sort(key=lambda info: (info.mtime_ns or 0, info.path))
    checkpoints = [posixpath.dirname(info.path) for info in marks]
    trials = {posixpath.dirname(path) for path in checkpoints}
    chosen = checkpoints[-1]
    if best or (best is None and len(trials) > 1):
        values = _values(text, filesystem, checkpoints)
        if values:
            chosen = max(checkpoints, key=lambda path: values.get(path, -math.inf))
        elif best:
            raise InputError(
                f"{text} should hold checkpoints whose rounds are in their trial's result.json, "
                f"with a value of the metric ({' or '.join(DEFAULT_METRICS)}, or that of the "
                "file's `tune_config`), found none: --last takes the newest"
            )
    return storage.locate(text, chosen)


def _values(root: str, filesystem: fs.FileSystem, checkpoints: Iterable[str]) -> dict[str, float]:
    """Returns checkpoint -> the experiment's metric when it was saved; higher is better."""
    values = {}
    for trial, own in itertools.groupby(sorted(checkpoints), posixpath.dirname):
        rows = _rows(filesystem, trial)
        record = storage.read_record(storage.parent(storage.locate(root, trial)))
        names = (record.metric,) if record and record.metric else DEFAULT_METRICS
        sign = -1.0 if record and record.mode == "min" else 1.0
        for checkpoint in own:
            row = dict(numbers(rows.get(_saved_in(filesystem, checkpoint), {})))
            value = next((row[name] for name in names if name in row), math.nan)
            if math.isfinite(value):
                values[checkpoint] = sign * value
    return values


def round_of(checkpoint: str) -> dict[str, Any]:
    """Returns what a checkpoint's trial reported in the round that it was saved in; {} if unknown.

    Args:
        checkpoint: Its location: a local folder or a URI.
    """
    filesystem, path = storage.open_storage(checkpoint)
    return _rows(filesystem, posixpath.dirname(path)).get(_saved_in(filesystem, path), {})


def _saved_in(filesystem: fs.FileSystem, checkpoint: str) -> int | None:
    """Returns the round that a checkpoint was saved in; None if it does not say."""
    import ray.cloudpickle as pickle

    try:
        with filesystem.open_input_stream(f"{checkpoint}/{_STATE}") as stream:
            return int(pickle.loads(stream.read())["training_iteration"])
    except Exception:  # Torn or foreign; or of classes that are not here: unpickling runs anything.
        return None


def _rows(filesystem: fs.FileSystem, trial: str) -> dict[int | None, dict[str, Any]]:
    """Returns round -> what a trial reported in it."""
    rows: dict[int | None, dict[str, Any]] = {}
    try:
        with filesystem.open_input_stream(f"{trial}/result.json") as stream:
            for line in stream.read().splitlines():
                row = json.loads(line)
                rows[int(row["training_iteration"])] = row  # The last of one that is there twice.
    except (OSError, ValueError, KeyError, TypeError):
        pass  # What is torn ends there.
    return rows


def numbers(row: dict[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[str, float]]:
    """Yields the numbers of a result, by their joined names."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from numbers(value, (*above, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield "/".join((*above, name)), float(value)
