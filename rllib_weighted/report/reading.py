"""Reads one trial: its settings, its progress, and its returns on held-out seeds."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_weighted.records import metrics as names
from rllib_weighted.records.schema import parse_file_name
from rllib_weighted.report.histories import progress_from_history, read_worker_rounds
from rllib_weighted.report.locate import RESULT, Trial
from rllib_weighted.report.progress import HELD_OUT, Progress, read_held_out, read_progress
from rllib_weighted.report.settings import Settings, read_settings

METRIC = f"{names.MERGE}/{names.EPISODE_RETURN_MEAN}"
STOCK_METRIC = "env_runners/episode_return_mean"
_NO_ID = "default"  # What RLlib calls every trial outside of Tune.
FINAL_FRACTION = 0.1
"""The part of a run's environment steps, at its end, that its final return is the mean over."""


@dataclass
class Run:
    """One trial while it is read."""

    trial: Trial
    settings: Settings
    progress: Progress | None
    problems: list[str]
    trial_id: str = ""
    held_out: float = float("nan")

    @property
    def last_round(self) -> int:
        """The last round that either file knows of, told without reading the merge history."""
        history = self.trial.history
        files = history.files if history is not None else []
        bounds = [parse_file_name(posixpath.basename(path)) for path in files]
        logged = [] if self.progress is None else [int(self.progress.rounds[-1])]
        return max([bound[1] for bound in bounds if bound] + logged, default=1)


def read_run(trial: Trial, metrics: Sequence[str]) -> Run:
    """Reads a trial.

    Args:
        trial: The trial.
        metrics: Metrics to read. Without any of them the mean return is derived from the merge
            history, if it is among them.
    """
    settings, problem = read_settings(trial)
    progress, problems = read_progress(trial, [*metrics])
    run = Run(trial, settings, progress, ([problem] if problem else []) + problems)
    if progress is None or not progress.values.keys() & set(metrics[:-1]):
        history, trial_id, more = read_worker_rounds(trial)
        run.problems += more
        if history is not None and METRIC in metrics:
            run.progress, run.trial_id = progress_from_history(history, METRIC), trial_id
            run.problems.append(f"{trial.path}: returns are taken from its merge history")
        elif progress is None:
            run.problems.append(f"{trial.path} has no results yet")
    if run.progress is not None:
        logged = run.progress.facts.get("trial_id", "")
        run.trial_id = run.trial_id or ("" if logged == _NO_ID else logged)
        run.held_out = _held_out(run)
    return run


def _held_out(run: Run) -> float:
    """Returns the mean return on held-out seeds at the end of a run; NaN without one."""
    progress = run.progress
    assert progress is not None
    late_rounds = is_late(progress)
    logged = progress.values.pop(HELD_OUT, None)
    if logged is not None:
        every = max(1, run.settings.evaluation_interval)
        found = logged[(progress.rounds % every == 0) & np.isfinite(logged)]
        late = logged[late_rounds & (progress.rounds % every == 0) & np.isfinite(logged)]
        found = late if late.size else found[-1:]
    elif run.settings.evaluation_interval > 0 and RESULT in run.trial.files:
        try:
            first = int(progress.rounds[late_rounds][0])
            found = np.array(read_held_out(run.trial, first, run.settings.evaluation_interval))
        except OSError as error:
            run.problems.append(f"left out the evaluations of {run.trial.path}: {error}")
            found = np.empty(0)
    else:
        found = np.empty(0)
    return float(found.mean()) if found.size else float("nan")


def is_late(progress: Progress) -> np.ndarray:
    """Whether a round is in the part of a run that its final return is taken from."""
    return progress.env_steps > (1 - FINAL_FRACTION) * progress.env_steps[-1]


def run_row(run: Run, label: str, metric: str) -> dict[str, Any]:
    """Returns a run's row in the table of runs; see `Results.runs`."""
    progress = run.progress
    assert progress is not None
    values = carried(progress.values[metric])
    late = values[is_late(progress) & np.isfinite(values)]
    return {
        "env": run.settings.env,
        "arm": label,
        "strategy": run.settings.strategy,
        "min_weight": run.settings.min_weight,
        "seed": run.settings.seed,
        "num_rounds": progress.rounds.size,
        "env_steps": int(progress.env_steps[-1]),
        "time_s": float(progress.time_s[-1]),
        "final": float(late.mean()) if late.size else float("nan"),
        "held_out": run.held_out,
        "finished": progress.finished,
        "source": progress.source,
        "host": progress.facts.get("hostname", ""),
        "date": progress.facts.get("date", ""),
        "trial_id": run.trial_id,
        "path": run.trial.path,
    }


def carried(values: np.ndarray) -> np.ndarray:
    """Returns values with NaN replaced by the last number before it."""
    index = np.where(np.isfinite(values), np.arange(values.size), -1)
    last = np.maximum.accumulate(index)
    return np.where(last >= 0, values[np.maximum(last, 0)], np.nan)
