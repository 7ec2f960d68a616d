"""What `--resume` finds after a learner's death, a signal, a second start: logs without a hole."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rllib_weighted.records import read_history

pytestmark = pytest.mark.slow

FILE = """
import functools
from pathlib import Path

import ray

from rllib_weighted import WeightedPPOConfig


def kill_a_learner(algorithm, *, marker, **kwargs):
    if algorithm.rounds_done == 7 and not marker.exists():
        marker.touch()
        ray.kill(algorithm.learner_group._workers[-1])


config = (
    WeightedPPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    .training(merge_unit="env", train_batch_size=64, minibatch_size=32, num_epochs=1)
    .debugging(seed=1)
)
stop = {"training_iteration": 12}
"""
DYING = """
config.learners(num_learners=2, num_cpus_per_learner=0.5)
config.callbacks(
    on_train_result=functools.partial(kill_a_learner, marker=Path(__file__).with_name("killed"))
)
"""
COMMAND = [sys.executable, "-m", "rllib_weighted", "train", "file"]


def started(file: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    where = ["--storage-path", str(file.parent), "--name", "run", "--ray-num-cpus", "2"]
    return subprocess.Popen(
        [*COMMAND, str(file), *where, *options],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(file: Path, *options: str, **variables: str) -> tuple[int, str]:
    process = started(file, *options, **variables)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def logged(folder: Path) -> list[int]:
    lines = (folder / "result.json").read_text().splitlines()
    return [json.loads(line)["training_iteration"] for line in lines]


def recorded(folder: Path) -> list[int]:
    rows = read_history(folder).to_pydict()
    keys = list(zip(rows["round"], rows["worker"], strict=True))
    assert len(keys) == len(set(keys))
    return [round for round, worker in keys if worker == 0]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("options", [(), ("--checkpoint-freq", "3")])
def test_after_a_learners_death_the_logs_are_whole(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Tune knows of no checkpoint, or of one of round 6: what was rescued is newer."""
    file = tmp_path / "train_me.py"
    file.write_text(FILE + DYING)
    code, output = run(file, *options)
    assert code == 1, output
    assert "Learner 2 of 2 died" in output
    (folder,) = (tmp_path / "run").glob("WeightedPPO_*")
    assert len(list(folder.glob("checkpoint_*"))) == (2 if options else 0)
    assert logged(folder) == list(range(1, 8))
    code, output = run(file, "--resume", *options)
    assert code == 0, output
    assert "goes on after round 7, rescued when a learner failed" in output
    assert logged(folder) == recorded(folder) == list(range(1, 13))
    table = (folder / "progress.csv").read_text().splitlines()
    column = table[0].split(",").index("training_iteration")
    assert [row.split(",")[column] for row in table[1:]] == [str(k) for k in range(1, 13)]
    since = json.loads((folder / "result.json").read_text().splitlines()[-1])
    assert since["iterations_since_restore"] <= 5  # Not from the start.


FRAGILE = """
from rllib_weighted import WeightedPPO


class Fragile(WeightedPPO):
    def save_checkpoint(self, checkpoint_dir):
        marker = Path(__file__).with_name("failed")
        if self.rounds_done == 4 and not marker.exists():
            marker.touch()
            raise OSError("the store is away")
        super().save_checkpoint(checkpoint_dir)


config.algo_class = Fragile
"""


def test_a_trial_whose_checkpoint_failed_goes_on_to_its_end(tmp_path: Path) -> None:
    """Tune itself ends it after its first checkpoint: it has saved that the trial is to stop."""
    file = tmp_path / "train_me.py"
    file.write_text(FILE + FRAGILE)
    code, output = run(file, "--checkpoint-freq", "2")
    assert code == 1, output
    assert "the store is away" in output
    code, output = run(file, "--resume")
    assert code == 0, output
    (folder,) = (tmp_path / "run").glob("Fragile_*")
    assert logged(folder) == recorded(folder) == list(range(1, 13))


def test_a_running_experiment_is_left_alone_and_a_stopped_one_agrees_with_itself(
    tmp_path: Path,
) -> None:
    file = tmp_path / "train_me.py"
    file.write_text(FILE)
    first = started(file, "--stop", '{"training_iteration": 1000000}')
    wait_for(lambda: list(tmp_path.glob("run/*/result.json")), first)
    for options in (["--resume"], []):
        code, output = run(file, *options)
        assert code == 2, output
        assert "is being trained by " in output
        assert f"process {first.pid}, since" in output
        assert "Traceback" not in output
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 143, output
    (folder,) = (tmp_path / "run").glob("WeightedPPO_*")
    assert recorded(folder) == logged(folder)
    assert not (tmp_path / "run" / ".rllib_train.lock").exists()
    last = len(logged(folder)) + 3
    code, output = run(file, "--resume", "--stop", f'{{"training_iteration": {last}}}')
    assert code == 0, output
    assert recorded(folder) == logged(folder) == list(range(1, last + 1))


def test_a_killed_one_is_taken_over_at_once(tmp_path: Path) -> None:
    file = tmp_path / "train_me.py"
    file.write_text(FILE)
    first = started(file, "--stop", '{"training_iteration": 1000000}', "--checkpoint-freq", "3")
    wait_for(lambda: list(tmp_path.glob("run/*/checkpoint_000004")), first)
    time.sleep(2.5)  # What the last two seconds brought, Tune has not recorded yet.
    first.kill()
    first.communicate()
    (folder,) = (tmp_path / "run").glob("WeightedPPO_*")
    until = max(logged(folder)) + 3
    code, output = run(file, "--resume", "--stop", f'{{"training_iteration": {until}}}')
    assert code == 0, output
    assert recorded(folder) == logged(folder) == list(range(1, until + 1))
    since = json.loads((folder / "result.json").read_text().splitlines()[-1])
    assert since["iterations_since_restore"] < until


def mount_small(folder: Path, size: str) -> None:
    """Puts a disk with next to no room there, or skips."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip(
            "only root mounts; what else there is to claim, tests/core/test_durable.py does"
        )


BIG = """
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[256]))
stop = {"training_iteration": 40}
"""


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    file = tmp_path / "train_me.py"
    file.write_text(FILE + BIG)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_small(disk, "3m")
    try:
        options = ["--storage-path", str(disk), "--checkpoint-freq", "2"]
        # The disk may be full within the two seconds in which Tune saves nothing of its own.
        code, output = run(file, *options, TUNE_GLOBAL_CHECKPOINT_S="0.1")
        assert code == 1, output
        assert re.search(r"[Nn]o space left", output), output
        assert f"no space    {disk}" in output or f"'{disk}" in output, output
        assert "Ran out of input" not in output
        (folder,) = (disk / "run").glob("WeightedPPO_*")
        before = logged(folder)
        assert before == list(range(1, len(before) + 1))
        # The newest one may have been under way when it ended.
        *whole, _ = sorted(folder.glob("checkpoint_*"))
        names = [frozenset(p.relative_to(one) for p in one.rglob("*")) for one in whole]
        assert len(set(names)) == 1
        remount = ["mount", "-o", "remount,size=200m", str(disk)]
        subprocess.run(remount, check=True)
        (command,) = re.findall(r"try again +rllib (.*)$", output, re.MULTILINE)
        resumed = subprocess.run(
            [sys.executable, "-m", "rllib_weighted", *shlex.split(command)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert logged(folder) == recorded(folder) == list(range(1, 41))
        since = json.loads((folder / "result.json").read_text().splitlines()[-1])
        assert since["iterations_since_restore"] < 40
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
