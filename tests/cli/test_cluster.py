"""Ray's messages stay off the screen; its start, and its end under a training."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from rllib_weighted.cli import InputError, cluster
from rllib_weighted.cli.cluster import start_ray, watching_ray
from rllib_weighted.cli.options import TrainOptions

IMPORTED_LATER = """
import logging
from rllib_weighted.cli.cluster import quiet_ray
with quiet_ray(verbose=False):
    import ray.rllib
    assert not logging.getLogger("ray").isEnabledFor(logging.WARNING)
    assert not logging.getLogger("ray.rllib").isEnabledFor(logging.WARNING)
assert logging.getLogger("ray.rllib").isEnabledFor(logging.WARNING)
"""


def test_rllib_is_quiet_also_where_it_had_not_been_imported() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED_LATER], check=True, timeout=300)


NOISY_FILE = """
import warnings
import a_noisy_package
from ray.rllib.algorithms.ppo import PPOConfig

config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
config.training(learner_connector=None)  # Deprecated.
warnings.warn("my own words")
"""


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [False, True])
def test_a_command_opens_with_no_others_words(tmp_path: Path, verbose: bool) -> None:
    """What the file warns of itself is shown; what it imports and RLlib say, only with `-v`."""
    (tmp_path / "a_noisy_package.py").write_text("import warnings\nwarnings.warn('noise')")
    file = tmp_path / "train_me.py"
    file.write_text(NOISY_FILE)
    command = [sys.executable, "-m", "rllib_weighted.cli.main", "train", "file", str(file)]
    done = subprocess.run(
        [*command, "--dry-run", *["-v"] * verbose],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith("Would train PPO on CartPole-v1\n")
    assert "UserWarning: my own words" in done.stderr
    if verbose:
        assert "UserWarning: noise" in done.stderr
        assert "has been deprecated" in done.stderr
    else:
        assert len(done.stderr.splitlines()) == 2  # The warning, and the line that it is of.


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("x", r"cannot join the Ray cluster at 'x', which should be its HOST:PORT.*bad address"),
        (None, "cannot start Ray: bad address"),
    ],
)
@pytest.mark.parametrize("kind", [ConnectionError, OSError, RuntimeError, ValueError])
def test_a_ray_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, address: str | None, message: str, kind: type[Exception]
) -> None:
    def init(**options: Any) -> None:
        raise kind("bad address")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=message):
        start_ray(TrainOptions(ray_address=address), None)


def _never() -> None:
    raise AssertionError("this was not to be called")


@pytest.mark.parametrize(
    ("ended", "is_told"),
    [([], False), (["log_monitor"], False), (["gcs_server"], True), (["raylet", "x"], True)],
)
def test_the_end_of_ray_is_told_once(
    monkeypatch: pytest.MonkeyPatch, ended: list[str], is_told: bool
) -> None:
    monkeypatch.setattr(cluster, "_WATCH_S", 0.01)
    monkeypatch.setattr(cluster, "ended_ray_processes", lambda: ended)
    monkeypatch.setattr(cluster, "control_process_answers", lambda timeout_s: True)
    told: list[bool] = []
    with watching_ray(lambda: told.append(True), _never):
        time.sleep(0.2)
    assert told == [True] * is_told


def _hangs(timeout_s: float) -> bool:
    time.sleep(60)  # As Ray may, where the process has died.
    return True


@pytest.mark.parametrize(
    ("answers", "is_told"),
    [(lambda timeout_s: False, True), (_hangs, True), (lambda timeout_s: True, False)],
)
def test_a_control_process_that_does_not_answer_counts_as_ended_after_a_while(
    monkeypatch: pytest.MonkeyPatch, answers: Any, is_told: bool
) -> None:
    monkeypatch.setattr(cluster, "_WATCH_S", 0.01)
    monkeypatch.setattr(cluster, "_SILENCE_S", 2.0)
    monkeypatch.setattr(cluster, "ended_ray_processes", list)
    monkeypatch.setattr(cluster, "control_process_answers", answers)
    told: list[str] = []
    with watching_ray(lambda: told.append(cluster.ended_ray()), _never):
        time.sleep(1)
        assert told == []  # Not at once.
        time.sleep(2)
    assert told == ["gcs_server (no answer for 2 s)"] * is_told
    with watching_ray(_never, _never):
        assert cluster.ended_ray() == ""  # The next training begins with another one.


def test_where_nothing_ends_the_training_it_is_ended_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "_WATCH_S", 0.01)
    monkeypatch.setattr(cluster, "_GRACE_S", 0.5)
    monkeypatch.setattr(cluster, "ended_ray_processes", lambda: ["gcs_server"])
    monkeypatch.setattr(cluster, "control_process_answers", lambda timeout_s: True)
    told: list[str] = []
    with watching_ray(lambda: told.append("end"), lambda: told.append("stuck")):
        time.sleep(0.2)
        assert told == ["end"]
        time.sleep(1)
    assert told == ["end", "stuck"]
