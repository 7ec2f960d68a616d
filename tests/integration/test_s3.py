"""A whole run whose results, checkpoints and merge history lie in an S3-compatible store."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from rllib_weighted.cli.evaluate import evaluate_checkpoint
from rllib_weighted.records import read_history
from tests.s3 import S3Server

FILE = """
from rllib_weighted import WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=1, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5)
    .training(merge_unit="env", train_batch_size=64, minibatch_size=32, num_epochs=1)
    .debugging(seed=1)
)
"""
COMMAND = [sys.executable, "-m", "rllib_weighted"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train_me.py"
    path.write_text(FILE)
    return path


def train(file: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "train", "file", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def files_below(uri: str) -> list[str]:
    filesystem, path = fs.FileSystem.from_uri(uri)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return [info.path.removeprefix(f"{path}/") for info in found if info.is_file]


def rounds(uri: str) -> list[int]:
    return sorted(set(read_history(uri)["round"].to_pylist()))


@pytest.mark.slow
def test_a_run_on_s3_is_stopped_resumed_read_and_evaluated(s3_bucket: str, file: Path) -> None:
    storage = f"{s3_bucket}/results"
    where = ["--storage-path", storage, "--name", "run"]
    started = train(file, *where, "--stop", '{"training_iteration": 1000000}')
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("round "):
            break
    started.send_signal(signal.SIGINT)
    output, _ = started.communicate(timeout=120)
    assert started.returncode == 130, output
    (command,) = re.findall(r"^  resume +(.*)$", output, re.MULTILINE)
    (checkpoint,) = re.findall(r"^  checkpoint +(.*)$", output, re.MULTILINE)
    assert checkpoint.startswith(f"{storage}/run/")
    assert f"--storage-path {storage}" in command

    last = max(rounds(storage))
    until = last + 3
    resumed = subprocess.run(
        [*COMMAND, *shlex.split(command)[1:], "--stop", f'{{"training_iteration": {until}}}'],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert rounds(f"{storage}/run") == list(range(1, until + 1))
    names = files_below(f"{storage}/run")
    for part in ("result.json", "merge_history/rounds-", "checkpoint_", "tuner.pkl"):
        assert any(part in name for name in names), (part, names)
    assert not any("_tmp-" in name for name in names)

    of_the_trial = evaluate_checkpoint(f"{storage}/run", episodes=2, seed=1)
    assert of_the_trial.checkpoint in resumed.stdout
    assert evaluate_checkpoint(of_the_trial.checkpoint, episodes=2, seed=1) == of_the_trial
    assert evaluate_checkpoint(checkpoint, episodes=2, seed=1).checkpoint == checkpoint


@pytest.mark.slow
def test_a_store_that_cannot_be_used_is_refused_before_anything_starts(
    s3_bucket: str, s3_server: S3Server, file: Path
) -> None:
    def refused(*options: str) -> tuple[int, str, float]:
        begun = time.monotonic()
        process = train(file, *options)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output, time.monotonic() - begun

    code, output, seconds = refused("--storage-path", "s3://absent/results")
    assert (code, "there is no bucket 'absent'" in output) == (2, True), output
    assert "Traceback" not in output
    assert seconds < 60
    with s3_server.refusing():
        for options in ((), ("--resume",)):
            code, output, _ = refused("--storage-path", s3_bucket, *options)
            assert (code, "refuses access to the bucket" in output) == (2, True), output
            assert "Traceback" not in output
    assert files_below(s3_bucket) == []
