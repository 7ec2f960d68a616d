"""What a training left behind: its trials, and the best checkpoint among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyarrow import fs

from rllib_weighted.cli import storage
from rllib_weighted.cli.checkpoints import DEFAULT_METRICS
from rllib_weighted.cli.progress import (
    NOTHING,
    ROUND,
    STEPS,
    TIME,
    TrialProgress,
    format_duration,
    format_number,
    lookup,
)
from rllib_weighted.cli.storage import child
from rllib_weighted.core.redaction import redact
from rllib_weighted.text import html_table, short_path

if TYPE_CHECKING:
    from ray.tune import Result, ResultGrid


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Args:
        results: Tune's results, one per trial.
        experiment: The experiment's folder or URI.
        exit_code: 0, or 130 or 143 if it was interrupted (and can be resumed).
        checkpoints: The last checkpoint of each trial that has one.
    """

    results: ResultGrid
    experiment: str
    exit_code: int = 0
    checkpoints: list[str] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """What a notebook shows: a row per trial."""
        head = ("trial", "strategy", "seed", "rounds", "steps", "time", "return", "ended")
        rows = [_cells(self.results[index]) for index in range(len(self.results))]
        return html_table(head, rows, short_path(redact(self.experiment)))


def _cells(trial: Result) -> list[str]:
    """Returns what a row says of a trial; see `TrainResult`."""
    config, last = trial.config or {}, trial.metrics or {}
    progress = TrialProgress("", {}, last=last)
    return [
        str(last.get("trial_id", NOTHING)).rpartition("_")[2],
        str(config.get("merge_strategy", NOTHING)),
        str(config.get("seed", NOTHING)),
        *(format_number(progress.value(key)) for key in (ROUND, STEPS)),
        format_duration(progress.value(TIME)),
        format_number(progress.mean_return),
        "failed" if trial.error else "done" if last.get("done") else "interrupted",
    ]


def rescue(trial: str) -> str | None:
    """Returns where the state lies that was saved when a learner of a trial died; None without."""
    from rllib_weighted.fault_tolerance import RESCUE_DIR

    folder = child(trial, RESCUE_DIR)
    filesystem, path = storage.open_storage(folder)
    return folder if filesystem.get_file_info(path).type == fs.FileType.Directory else None


def best_checkpoint(
    trials: Sequence[Result], metric: str | None, mode: str | None
) -> tuple[str, str, float] | None:
    """Returns the checkpoint that `rllib evaluate` takes of a sweep's folder; None without one.

    Args:
        trials: Tune's results.
        metric: The metric to choose by; None takes the mean return.
        mode: Whether it is to be the least (`"min"`) or, by default, the largest.

    Returns:
        Its path, and the metric's name and value in the round that it was saved in.
    """
    sign = -1.0 if mode == "min" else 1.0
    found: list[tuple[float, str, str]] = []
    for trial in trials:
        for checkpoint, result in trial.best_checkpoints or ():
            for name in (metric,) if metric else DEFAULT_METRICS:
                value = lookup(result, name)
                if isinstance(value, int | float) and math.isfinite(value):
                    found.append((sign * value, checkpoint.path, name))
                    break
    if not found:
        return None
    value, path, name = max(found)
    return path, name, sign * value
