"""Runs what a part still lacks, with Tune. A kill loses the runs that are going on, no others."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from studies import store
from studies.design import Case, Part

logger = logging.getLogger("studies")


class StudyTrial(tune.Trainable):
    """A run as a single step of Tune; its process goes on to the next run.

    A new process per run would spend six seconds on imports.
    """

    def setup(self, config: dict[str, Any], part: Part) -> None:
        """Takes the first run to make."""
        self._part, self._case = part, Case(**config["case"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next run to make."""
        self._case = Case(**new_config["case"])
        return True

    def step(self) -> dict[str, Any]:
        """Makes the run; returns its row."""
        from studies.training import train

        case = self._case
        experiment = self._part.experiment(case.experiment)
        row = train(experiment.task, experiment.arm(case.arm), case.seed)
        return {"row": {**asdict(case), **row}, "done": True}


class _Recorder(tune.Callback):
    """Writes each run's row when it is there."""

    def __init__(self, part: str, folder: Path, num_cases: int) -> None:
        self._part, self._folder = part, folder
        self._num_cases, self._num_done = num_cases, 0
        self._started = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        row = {**result["row"], "commit": commit()}
        store.append(self._part, row, self._folder)
        self._num_done += 1
        logger.info(
            "%s: %d of %d in %.0f min: %s on %s, seed %d: %s steps, held out %s, %.0f s",
            self._part,
            self._num_done,
            self._num_cases,
            (time.monotonic() - self._started) / 60,
            row["arm"],
            row["experiment"],
            row["seed"],
            row["steps_to_threshold"] or "–",
            [round(value, 2) for value in row["held_out"]],
            row["seconds"],
        )


def run(
    part: Part,
    *,
    processes: int,
    hours: float | None = None,
    arms: Collection[str] = (),
    tasks: Collection[str] = (),
    folder: Path = store.HERE,
) -> int:
    """Makes the runs that a part still lacks, some at once; returns how many it still lacks.

    Args:
        part: The part.
        processes: Runs at a time, a process and a CPU each.
        hours: After this time no run goes on. None: until all are there.
        arms: Only these, if there are any.
        tasks: Likewise.
        folder: Where the results lie.

    Raises:
        StudyError: The results do not fit the part, or another process runs it.
    """
    with store.held(part.name, folder):
        cases = store.outstanding(part, store.read(part.name, folder))
        cases = [
            case
            for case in cases
            if (not arms or case.arm in arms) and (not tasks or case.experiment in tasks)
        ]
        if cases:
            _tune(part, cases, processes, hours, folder)
        return len(store.outstanding(part, store.read(part.name, folder)))


def _tune(part: Part, cases: list[Case], processes: int, hours: float | None, folder: Path) -> None:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Rows go into one file.
    if not ray.is_initialized():
        ray.init(
            address="local",  # Never a cluster of somebody else's.
            num_cpus=processes,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 1024**2,
        )
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(StudyTrial, part=part), {"cpu": 1}),
            param_space={"case": tune.grid_search([asdict(case) for case in cases])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=processes,
                reuse_actors=True,
                time_budget_s=None if hours is None else 3600 * hours,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_Recorder(part.name, folder, len(cases))],
                verbose=0,
            ),
        ).fit()


def commit() -> str:
    """Returns the commit that is checked out, with a "+" if code differs from it; "" if unknown."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        where = store.HERE.parent.parent
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=where, check=False
        )

    changed = git("diff", "--quiet", "HEAD", "--", ".", ":!studies/results").returncode
    return git("rev-parse", "--short", "HEAD").stdout.strip() + "+" * (changed == 1)
