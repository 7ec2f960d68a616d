"""Records to write, and a disk that fails or dies at a chosen operation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, MergeHistory, WorkerRecord

NUM_WORKERS = 2


def record(worker: int = 0, **changes: Any) -> WorkerRecord:
    values: dict[str, Any] = {
        "worker": worker,
        "env_runner": 1,
        "env_index": worker,
        "seed": 1000 + worker,
        "signal": 10.0 + worker,
        "share": 0.5,
        "weight": 1.0,
        "loss": 0.25,
        "episode_return": 100.0 + worker,
        "num_episodes": 3,
        "dropped": False,
    }
    return WorkerRecord(**{**values, **changes})


def append_rounds(
    history: MergeHistory, rounds: range | list[int], num_workers: int = NUM_WORKERS, **changes: Any
) -> None:
    """Append rounds of 100 steps each."""
    for number in rounds:
        history.append(number, 100 * number, [record(i, **changes) for i in range(num_workers)])


def history_on(filesystem: fs.FileSystem, folder: Path | str, trial_id: str = "a") -> MergeHistory:
    """Open a history that flushes only when told to."""
    return MergeHistory(filesystem, str(folder), trial_id=trial_id, flush_seconds=math.inf)


def local_history(folder: Path | str, trial_id: str = "a") -> MergeHistory:
    return history_on(fs.LocalFileSystem(), folder, trial_id)


def write_trial(trial: Path, trial_id: str, rounds: range, **changes: float) -> Path:
    history = local_history(trial / HISTORY_DIR, trial_id)
    append_rounds(history, rounds, **changes)
    history.close()
    return trial / HISTORY_DIR


def rounds_of(table: pa.Table) -> list[int]:
    """Return the rounds of the rows, each once per row of worker 0; check that no row is double."""
    keys = list(
        zip(*(table[name].to_pylist() for name in ("trial_id", "round", "worker")), strict=True)
    )
    assert len(keys) == len(set(keys)), "rows are there twice"
    assert keys == sorted(keys)
    return [number for _, number, worker in keys if worker == 0]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """The process ends here. Not an Exception: nothing may catch it and clean up."""


class BadDisk(fs.LocalFileSystem):
    """A disk on which the operations from `fail_at` on go wrong.

    Args:
        fail_at: Number of the first operation that goes wrong; operations are those that change
            something, from 0.
        after: Whether the operation is carried out before it goes wrong. A stream that goes wrong
            before has half of its bytes written.
        error: What is raised.
    """

    def __init__(
        self, fail_at: float = math.inf, *, after: bool = False, error: BaseException | None = None
    ) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.after = after
        self.error = error or Killed()
        self.operations: list[str] = []

    @contextlib.contextmanager
    def _operation(self, name: str) -> Iterator[bool]:
        """Give whether to carry the operation out."""
        fails = len(self.operations) >= self.fail_at
        self.operations.append(name)
        yield self.after or not fails
        if fails:
            raise self.error

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        with self._operation("create_dir") as carry_out:
            if carry_out:
                super().create_dir(path, recursive=recursive)

    def move(self, src: str, dest: str) -> None:
        with self._operation("move") as carry_out:
            if carry_out:
                super().move(src, dest)

    def delete_file(self, path: str) -> None:
        with self._operation("delete_file") as carry_out:
            if carry_out:
                super().delete_file(path)

    def open_output_stream(self, path: str, **_: Any) -> Any:
        return _Stream(self, path)


class _Stream:
    def __init__(self, disk: BadDisk, path: str) -> None:
        self._disk, self._path = disk, path

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: pa.Buffer) -> None:
        content = data.to_pybytes()
        with self._disk._operation("write") as carry_out:
            Path(self._path).write_bytes(content if carry_out else content[: len(content) // 2])
