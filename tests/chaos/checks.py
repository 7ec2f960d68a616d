"""What must hold of a sweep after its faults: nothing lost, nothing twice, nothing left behind."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from pyarrow import fs

from rllib_weighted.records import read_history
from tests.chaos.sweep import CHECKPOINT_FREQ, NAME, ROLES, ROOT, ROUNDS, Sweep, wait_until

NUM_WORKERS = 4
LEFT_S = 40.0  # Ray ends what has not ended by itself after some of these.
PARAMETERS = "learner_group/learner/rl_module/default_policy/module_state.pkl"
Parameters = dict[str, np.ndarray[Any, Any]]


class TrialFolder(NamedTuple):
    """A trial's folder in a storage."""

    filesystem: fs.FileSystem
    path: str

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    @property
    def strategy(self) -> str:
        return str(json.loads(self.read("params.json"))["merge_strategy"])

    @property
    def checkpoints(self) -> dict[int, str]:
        """The round that each checkpoint was written after, and its name."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path))
        names = sorted(i.base_name for i in found if i.base_name.startswith("checkpoint_"))
        return {self._round_of(name): name for name in names}

    def _round_of(self, checkpoint: str) -> int:
        state = pickle.loads(self.read(f"{checkpoint}/algorithm_state.pkl"))
        return int(state["weighted_ppo"]["round"])

    def parameters(self, checkpoint: str) -> Parameters:
        state = pickle.loads(self.read(f"{checkpoint}/{PARAMETERS}"))
        return {name: np.asarray(value) for name, value in state.items()}


def trial_folders(storage: str) -> list[TrialFolder]:
    """Returns the folders of the sweep's trials."""
    filesystem, root = fs.FileSystem.from_uri(storage)
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/{NAME}"))
    return [TrialFolder(filesystem, i.path) for i in found if "WeightedPPO_" in i.base_name]


def log_problems(trial: TrialFolder) -> list[str]:
    """Returns what is wrong with a finished trial's two logs: each has every round once."""
    expected = list(range(1, ROUNDS + 1))
    lines = trial.read("result.json").decode().splitlines()
    rows = csv.DictReader(io.StringIO(trial.read("progress.csv").decode()))
    found = {
        "result.json": [json.loads(line)["training_iteration"] for line in lines],
        "progress.csv": [int(row["training_iteration"]) for row in rows],
    }
    return [f"{name} has the rounds {got}" for name, got in found.items() if got != expected]


def history_of(trial: TrialFolder) -> list[dict[str, Any]]:
    return read_history(f"{trial.path}/merge_history", trial.filesystem).to_pylist()


def history_problems(rows: list[dict[str, Any]]) -> list[str]:
    """Returns what is wrong with a finished trial's history: one row per round and worker."""
    found = [(row["round"], row["worker"]) for row in rows]
    expected = {(r, w) for r in range(1, ROUNDS + 1) for w in range(NUM_WORKERS)}
    problems = []
    if missing := sorted(expected - set(found)):
        problems.append(f"the history lacks {missing}")
    if more := sorted({key for key in found if found.count(key) > 1 or key not in expected}):
        problems.append(f"the history has more than once, or too much: {more}")
    return problems


def drops_of(trial: TrialFolder) -> list[tuple[int, int]]:
    """Returns the rounds and workers in which one was left out of a merge."""
    return [(row["round"], row["worker"]) for row in history_of(trial) if row["dropped"]]


def last_drop(rows: list[dict[str, Any]]) -> int:
    """Returns the last round in which a worker was left out; 0 if there is none."""
    return max((row["round"] for row in rows if row["dropped"]), default=0)


def first_drop(rows: list[dict[str, Any]]) -> int:
    """Returns the first round in which a worker was left out; one after the last without any."""
    return min((row["round"] for row in rows if row["dropped"]), default=ROUNDS + 1)


def is_equal(left: Parameters, right: Parameters) -> bool:
    """Whether parameters are bit for bit the same."""
    return left.keys() == right.keys() and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def parameter_problems(
    trial: TrialFolder, undisturbed: dict[int, Parameters], rows: list[dict[str, Any]], folder: Path
) -> tuple[list[str], int]:
    """Compares a trial's checkpoints with those of undisturbed runs, bit for bit.

    Up to the first round in which a worker was left out, they are those of the run that nobody
    disturbed. What comes after the last such round is compared with a run that goes on from the
    first checkpoint after it, and is left alone.

    Returns:
        What is wrong, and how many checkpoints were compared.
    """
    checkpoints = trial.checkpoints
    before = first_drop(rows)
    expected = {r: undisturbed[r] for r in checkpoints if r < before}
    after = [r for r in sorted(checkpoints) if last_drop(rows) <= r < ROUNDS]
    if before <= ROUNDS and after and ROUNDS in checkpoints:
        expected[ROUNDS] = replayed(trial, checkpoints[after[0]], folder)
    wrong = [
        r for r, own in expected.items() if not is_equal(own, trial.parameters(checkpoints[r]))
    ]
    found = [f"the parameters after the rounds {wrong} are others"] if wrong else []
    if ROUNDS not in checkpoints:
        found.append(f"no checkpoint after the last round, only after {sorted(checkpoints)}")
    return found, len(expected)


def replayed(trial: TrialFolder, checkpoint: str, folder: Path) -> Parameters:
    """Returns the parameters at the end of a run that goes on undisturbed from a checkpoint."""
    copy = Path(tempfile.mkdtemp(prefix="replay-", dir=folder))
    fs.copy_files(
        f"{trial.path}/{checkpoint}",
        str(copy / "from"),
        source_filesystem=trial.filesystem,
        destination_filesystem=fs.LocalFileSystem(),
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.replay", str(copy / "from"), str(copy / "to")],
        cwd=ROOT,
        env={**os.environ, "RAY_TMPDIR": os.environ["RAY_TMPDIR"]},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return TrialFolder(fs.LocalFileSystem(), str(copy)).parameters("to")


def all_parameters(trials: list[TrialFolder]) -> dict[str, dict[int, Parameters]]:
    """Returns strategy -> round -> the parameters of its checkpoint."""
    return {
        trial.strategy: {r: trial.parameters(name) for r, name in trial.checkpoints.items()}
        for trial in trials
    }


def sweep_problems(
    sweep: Sweep, undisturbed: dict[str, dict[int, Parameters]], folder: Path
) -> tuple[list[str], int]:
    """Returns what is wrong with a sweep that has come to its end, and how much was compared."""
    with mock.patch.dict(os.environ, sweep.variables):
        trials = trial_folders(sweep.storage)
        problems = [] if len(trials) == len(undisturbed) else [f"there are {len(trials)} trials"]
        compared = 0
        for trial in trials:
            rows = history_of(trial)
            own, count = parameter_problems(trial, undisturbed[trial.strategy], rows, folder)
            compared += count
            found = [*log_problems(trial), *history_problems(rows), *own]
            problems += [f"{trial.strategy}: {problem}" for problem in found]
    return problems, compared


def exit_problems(sweep: Sweep, struck_driver: bool) -> list[str]:
    """Returns what is wrong with how the command has ended, if not by a kill."""
    if struck_driver or sweep.exit_code == 0:
        return []
    output = sweep.output
    problems = []
    if sweep.exit_code not in (1, 143):
        problems.append(f"the command ended with {sweep.exit_code}")
    if f"--resume --name {NAME}" not in output:
        problems.append("the command does not say how to go on")
    if "\nTraceback" in output:
        problems.append("the command shows a traceback")
    return [f"{problem}:\n{output[-3000:]}" for problem in problems]


def left_behind(sweep: Sweep, patience: float) -> list[str]:
    """Returns which processes of trials are still there some time after the command's end."""

    def left() -> list[str]:
        return [f"{role} {p.pid} ({p.status()})" for role in ROLES for p in sweep.of_role(role)]

    return [] if wait_until(lambda: not left(), LEFT_S * patience) else [f"left running: {left()}"]


assert ROUNDS % CHECKPOINT_FREQ, "the last round should have a checkpoint because it is the last"
