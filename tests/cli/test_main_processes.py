"""The command as a process of its own, stopped the way people and machines stop it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
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


def processes() -> dict[int, int]:
    """Returns the processes of this machine that run, and their parents."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    """Returns the processes that a process has started, and those that these have started."""
    parents = processes()
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return {*found[1:]}


def assert_ended(pids: set[int]) -> None:
    """Ray's processes end within seconds of the command."""
    deadline = time.monotonic() + 20
    while pids & processes().keys() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not pids & processes().keys()


@pytest.mark.parametrize(
    ("signum", "status", "to_group"),
    [
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGHUP, 129, False),
        (signal.SIGHUP, 129, True),
    ],
)
def test_signal_saves_and_the_printed_command_resumes(
    training: subprocess.Popen[str],
    tmp_path: Path,
    signum: signal.Signals,
    status: int,
    to_group: bool,
) -> None:
    of_ray = descendants(training.pid)
    assert len(of_ray) >= 4  # The control process, the node's, the trial, its env runner.
    os.killpg(training.pid, signum) if to_group else training.send_signal(signum)
    output, _ = training.communicate(timeout=90)
    assert training.returncode == status, output
    assert_ended(of_ray)
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


def test_a_terminal_that_closes_leaves_a_checkpoint(file: Path, tmp_path: Path) -> None:
    options = ["--storage-path", str(tmp_path), "--name", "run", "--checkpoint-freq", "1000"]
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [*COMMAND, "train", "file", str(file), *options])
    deadline = time.monotonic() + 120
    while len(rounds(tmp_path)) < 3 and time.monotonic() < deadline:
        os.read(terminal, 2**16)
    of_ray = descendants(pid)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert list(tmp_path.glob("run/*/checkpoint_*/rllib_checkpoint.json"))
    assert_ended(of_ray)


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_the_death_of_ray_ends_with_a_message_and_how_to_resume(
    training: subprocess.Popen[str], tmp_path: Path, name: str
) -> None:
    of_ray = descendants(training.pid)
    (process,) = [pid for pid in of_ray if Path(f"/proc/{pid}/comm").read_text().strip() == name]
    os.kill(process, signal.SIGKILL)
    output, _ = training.communicate(timeout=50)
    assert training.returncode == 1, output
    end = output[output.index("Error: ") :]
    assert end.startswith("Error: Ray has ended")
    assert name in end
    assert "rllib train file" in end
    assert "--resume --name run" in end
    assert_ended(of_ray)
