"""One open call per env runner, on RLlib's own manager with actors that hang when told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.sampling.collect import OpenCalls

pytestmark = pytest.mark.usefixtures("ray_session")

TIMEOUT_S = 1.0


@ray.remote(num_cpus=0.1, max_restarts=-1)
class _Runner:
    """Writes down which rounds and states it was given; hangs as long as a file is there."""

    def __init__(self, index: int, folder: str) -> None:
        self.index = index
        self.block = Path(folder, f"block-{index}")
        self.seen: list[Any] = []

    def apply(self, func: Any, **kwargs: Any) -> Any:
        return func(self, **kwargs)

    def sample_round(self, request: SampleRequest) -> SampleResult:
        self.seen.append(request.round)
        while self.block.exists():
            time.sleep(0.02)
        return SampleResult(env_runner=self.index, returns={self.index: [request.round]})

    def set_state(self, state: dict[str, Any]) -> None:
        self.seen.append(state)


@pytest.fixture(scope="module")
def runners(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("blocks")
    actors = [_Runner.remote(index, str(folder)) for index in (1, 2)]
    yield actors, folder / "block-2"
    for actor in actors:
        ray.kill(actor)


@pytest.fixture
def block(runners: Any) -> Path:
    """The second one hangs as long as this file is there."""
    found: Path = runners[1]
    return found


@pytest.fixture
def group(runners: Any) -> SimpleNamespace:
    manager = FaultTolerantActorManager(runners[0], init_id=1)
    manager.foreach_actor(lambda runner: runner.seen.clear())
    return SimpleNamespace(_worker_manager=manager, _num_env_runners_dropped_lifetime=0)


def seen(manager: Any) -> list[Any]:
    return [result.get() for result in manager.foreach_actor(lambda runner: runner.seen)]


def config(**changes: Any) -> SimpleNamespace:
    settings = {
        "sample_timeout_s": TIMEOUT_S,
        "restart_failed_env_runners": True,
        "ignore_env_runner_failures": False,
    }
    return SimpleNamespace(**{**settings, **changes})


def sample(calls: OpenCalls, group: Any, round: int, **changes: Any) -> dict[int, Any]:
    """Returns env runner -> the round that its result is of."""
    request = SampleRequest(round, 9, {"weights": np.zeros(1000)}, {})
    results = calls.sample(group, request, config(**changes))
    return {result.env_runner: result.returns[result.env_runner][0] for result in results}


def test_everybody_answers(group: Any) -> None:
    calls = OpenCalls()
    for round_ in (1, 2):
        assert sample(calls, group, round_, sample_timeout_s=None) == {1: round_, 2: round_}
    assert calls.missed == {}
    assert group._num_env_runners_dropped_lifetime == 0


def test_one_that_hangs_is_asked_once_and_counted_until_it_answers(group: Any, block: Path) -> None:
    calls = OpenCalls()
    block.touch()
    for round_ in (1, 2, 3):
        started = time.monotonic()
        assert sample(calls, group, round_) == {1: round_}
        assert time.monotonic() - started >= TIMEOUT_S
        assert calls.missed == {2: round_}
    assert group._num_env_runners_dropped_lifetime == 3
    block.unlink()
    # Its answer to round 1 comes meanwhile, and is nobody's any more.
    assert sample(calls, group, 4, sample_timeout_s=60) == {1: 4, 2: 4}
    assert calls.missed == {}
    assert seen(group._worker_manager) == [[1, 2, 3, 4], [1, 4]]


def test_one_that_is_free_again_in_the_middle_of_a_round_takes_part(
    group: Any, block: Path
) -> None:
    calls = OpenCalls()
    block.touch()
    assert sample(calls, group, 1) == {1: 1}
    timer = threading.Timer(0.5, block.unlink)
    timer.start()
    assert sample(calls, group, 2, sample_timeout_s=60) == {1: 2, 2: 2}
    timer.join()


def test_what_was_under_way_when_a_round_was_interrupted_is_nobodys(
    group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = OpenCalls()

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ray, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample(calls, group, 1)
    assert sample(calls, group, 1, sample_timeout_s=60) == {1: 1, 2: 1}
    assert seen(group._worker_manager) == [[1, 1], [1, 1]]


def test_a_state_reaches_those_that_are_free(group: Any, block: Path) -> None:
    calls = OpenCalls()
    block.touch()
    sample(calls, group, 1)
    calls.send_state(group, ray.put({"steps": 7}))
    block.unlink()
    assert seen(group._worker_manager) == [[1, {"steps": 7}], [1]]


def test_one_that_dies_is_out_of_service(
    group: Any, runners: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls = OpenCalls()
    ray.kill(runners[0][1])
    assert sample(calls, group, 1, sample_timeout_s=30) == {1: 1}
    assert group._worker_manager.healthy_actor_ids() == [1]
    assert "Env runner 2 is lost" in caplog.text
    assert calls.missed == {}
    assert group._num_env_runners_dropped_lifetime == 0
    assert sample(calls, group, 2) == {1: 2}
    group._worker_manager = FaultTolerantActorManager(runners[0], init_id=1)
    with pytest.raises(ray.exceptions.RayActorError):
        sample(OpenCalls(), group, 1, restart_failed_env_runners=False, sample_timeout_s=30)
