"""`stop()` ends every process of an algorithm, whatever fails meanwhile."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import Any

import pytest
import ray

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted import algorithm as algorithm_module

pytestmark = pytest.mark.usefixtures("ray_session")


def build() -> WeightedPPO:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=1, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5)
        .learners(num_learners=1, num_cpus_per_learner=0.5)
        .evaluation(
            evaluation_interval=100,
            evaluation_num_env_runners=1,
            evaluation_config={"num_cpus_per_env_runner": 0.5},
        )
        .training(merge_unit="env", train_batch_size=64, minibatch_size=32, num_epochs=1)
        .build_algo()
    )


def actors(algorithm: WeightedPPO) -> list[Any]:
    groups = algorithm.env_runner_group, algorithm.eval_env_runner_group
    runners = [a for group in groups for a in group._worker_manager.actors().values()]
    return [*runners, *algorithm.learner_group._workers]


def living(processes: list[Any]) -> int:
    """Waits for their end, some seconds."""
    deadline = time.monotonic() + 20
    alive = len(processes)
    while alive and time.monotonic() < deadline:
        alive = 0
        for process in processes:
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(process.__ray_ready__.remote(), timeout=10)
                alive += 1
    return alive


def fails(error: type[Exception], *details: Any) -> Any:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise error(*details)

    return failing


@pytest.mark.slow
def test_a_full_disk_and_a_stuck_learner_group_leave_nobody_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm = build()
    algorithm.train()
    processes = actors(algorithm)
    assert len(processes) == 3
    no_space = errno.ENOSPC, "No space left on device", "/full"
    monkeypatch.setattr(algorithm._history, "close", fails(OSError, *no_space))
    monkeypatch.setattr(algorithm_module, "kill_unresponsive", fails(RuntimeError, "no answer"))
    monkeypatch.setattr(algorithm.learner_group, "shutdown", fails(RuntimeError, "no learner"))
    with pytest.raises(OSError, match="No space left"):  # The first cause; the log has the others.
        algorithm.stop()
    for other in ("no answer", "no learner"):
        assert other in caplog.text
    assert living(processes) == 0
    monkeypatch.undo()
    algorithm.learner_group.shutdown()  # Or Python would when it exits, after Ray's end.
