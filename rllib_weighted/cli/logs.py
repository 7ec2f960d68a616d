"""Keeps what Tune's loggers write right when a trial goes on in another process.

Tune (2.60) appends a resumed trial's results to those before, which after a kill may hold rounds
behind the last checkpoint, that are now trained again; and it writes them under the header of
progress.csv without a look at the names of its columns.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.air.constants import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE, TRAINING_ITERATION
from ray.tune.logger import CSVLoggerCallback

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.tune.experiment import Trial


class ProgressTable(CSVLoggerCallback):
    """Tune's writer of progress.csv, whose rows stay under their header.

    It reads attributes of Tune's that are not public; tested with Ray 2.60.
    """

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Writes a row; what has no column is left out, what has no value is empty."""
        if trial not in self._trial_files:
            self._setup_trial(trial)
        if self._trial_csv[trial] is None and self._trial_continue[trial]:
            with Path(trial.local_path or "", EXPR_PROGRESS_FILE).open(newline="") as stream:
                header = next(csv.reader(stream))
            self._trial_csv[trial] = csv.DictWriter(self._trial_files[trial], header)
        super().log_trial_result(iteration, trial, result)


def forget_rounds_behind_checkpoint(trial: Trial) -> None:
    """Removes the results behind a trial's last checkpoint from the files that it goes on with.

    Args:
        trial: A trial that is about to go on, or to start anew if it has no checkpoint.
    """
    if trial.storage is None:
        return
    saved = trial.latest_checkpoint_result
    last_round = int((saved.metrics or {}).get(TRAINING_ITERATION, 0)) if saved else 0
    filesystem, folder = trial.storage.storage_filesystem, trial.storage.trial_fs_path
    _keep_lines(filesystem, f"{folder}/{EXPR_RESULT_FILE}", _json_rounds, last_round)
    _keep_lines(filesystem, f"{folder}/{EXPR_PROGRESS_FILE}", _csv_rounds, last_round)


def _keep_lines(filesystem: FileSystem, path: str, rounds: Any, last_round: int) -> None:
    """Keeps the lines of a file up to a round. A last line that a kill has torn goes too."""
    try:
        with filesystem.open_input_stream(path) as stream:
            lines = stream.read().decode().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [
        line
        for line, round in zip(lines, rounds(lines), strict=True)
        if round is not None and round <= last_round
    ]
    if kept != lines:
        with filesystem.open_output_stream(path) as stream:
            stream.write("".join(kept).encode())


def _json_rounds(lines: list[str]) -> list[int | None]:
    def round_of(line: str) -> int | None:
        try:
            return int(json.loads(line)[TRAINING_ITERATION])
        except (ValueError, KeyError, TypeError):
            return None

    return [round_of(line) for line in lines]


def _csv_rounds(lines: list[str]) -> list[int | None]:
    """Returns the round of each line; the header counts as round 0."""
    table = [row for line in lines for row in csv.reader([line])]
    if not table or TRAINING_ITERATION not in table[0]:
        return [None] * len(lines)
    column, length = table[0].index(TRAINING_ITERATION), len(table[0])
    whole = [len(row) == length and row[column].isdigit() for row in table[1:]]
    rows = zip(table[1:], whole, strict=True)
    return [0, *(int(row[column]) if is_whole else None for row, is_whole in rows)]
