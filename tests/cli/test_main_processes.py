"""The command as a process of its own, stopped the way people and machines stop it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "rllib_weighted.cli.main"]
FILE = """
from ray.rllib.algorithms.ppo import PPOConfig

config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
    .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
)
stop = {"training_iteration": 10**6}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train_me.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def training(file: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that has come to its third round, in a process group like a terminal's."""
    options = ["--storage-path", str(tmp_path), "--name", "run", "--checkpoint-freq", "2"]
    process = subprocess.Popen(
        [*COMMAND, "train", "file", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(rounds(tmp_path)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def rounds(root: Path) -> list[int]:
    """Returns the rounds in the log of the only trial."""
    logs = list(root.glob("run/*/result.json"))
    lines = logs[0].read_text().splitlines() if logs else []
    return [json.loads(line)["training_iteration"] for line in lines if line.endswith("}")]


def resume(command: list[str], until: int) -> None:
    stop = json.dumps({"training_iteration": until})
    done = subprocess.run(
        [*command, "--stop", stop], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"training_iteration {until} >= {until}" in done.stdout


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_the_printed_command_resumes(
    training: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    os.killpg(training.pid, signum) if signum == signal.SIGINT else training.send_signal(signum)
    output, _ = training.communicate(timeout=90)
    assert training.returncode == status, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("  resume ")]
    last = max(rounds(tmp_path))
    command = shlex.split(line.removeprefix("  resume "))
    assert command[:3] == ["rllib", "train", "file"]
    resume([*COMMAND, *command[1:]], until=last + 2)
    # Nothing is lost and nothing is done twice.
    assert rounds(tmp_path) == list(range(1, last + 3))


def test_killed_training_resumes_from_its_last_checkpoint(
    training: subprocess.Popen[str], file: Path, tmp_path: Path
) -> None:
    time.sleep(3)  # The command lets Tune write its state every two; what is newer is unknown.
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    last = max(rounds(tmp_path))
    options = ["--resume", "--storage-path", str(tmp_path), "--name", "run"]
    resume([sys.executable, str(file), *options], until=last + 2)
    # Rounds behind the last checkpoint were trained again, and are there once.
    assert rounds(tmp_path) == list(range(1, last + 3))


def test_second_ctrl_c_stops_at_once(training: subprocess.Popen[str]) -> None:
    os.killpg(training.pid, signal.SIGINT)
    os.killpg(training.pid, signal.SIGINT)
    output, _ = training.communicate(timeout=30)
    assert training.returncode == 130
    assert "Traceback" not in output
    assert "Interrupted" in output or "stopped at once" in output
