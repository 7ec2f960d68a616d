"""Taking lost env runners back, and replacing those that hang.

On RLlib's own manager, with actors that die or hang when told to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from rllib_weighted.fault_tolerance import replace_overdue, take_back

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0.1, max_restarts=-1)
class _Runner:
    def apply(self, func: Any) -> Any:
        return func(self)

    def ping(self) -> str:
        return "pong"


@pytest.fixture
def group(ray_session: None) -> Iterator[Any]:
    manager = FaultTolerantActorManager([_Runner.remote() for _ in range(2)], init_id=1)
    manager.foreach_actor(lambda runner: runner.ping())
    yield SimpleNamespace(_worker_manager=manager)
    manager.clear()


def config(**changes: Any) -> SimpleNamespace:
    settings = {
        "restart_failed_env_runners": True,
        "env_runner_restore_timeout_s": 60.0,
        "max_missed_rounds": 3,
    }
    return SimpleNamespace(**{**settings, **changes})


def lose(group: Any, index: int, *, for_good: bool = False) -> None:
    actor = group._worker_manager.actors()[index]
    pid = ray.get(actor.apply.remote(lambda runner: os.getpid()))
    ray.kill(actor, no_restart=for_good)
    while os.path.exists(f"/proc/{pid}"):  # Until it is dead, it answers.
        time.sleep(0.05)
    group._worker_manager.set_actor_state(index, healthy=False)


def test_nobody_is_taken_back_who_was_not_lost(group: Any) -> None:
    assert take_back(group, config()) == []
    assert group._worker_manager.healthy_actor_ids() == [1, 2]


def test_one_that_is_away_is_not_waited_for_and_taken_back_later(group: Any) -> None:
    lose(group, 2)
    started = time.monotonic()
    first = take_back(group, config())
    assert time.monotonic() - started < 1
    taken = [*first]
    while not taken and time.monotonic() < started + 60:
        time.sleep(0.1)
        taken += take_back(group, config())
    assert taken == [2]
    assert group._worker_manager.healthy_actor_ids() == [1, 2]
    assert group._worker_manager.total_num_restarts() == 1


def test_if_all_are_lost_it_waits_for_one(group: Any, caplog: pytest.LogCaptureFixture) -> None:
    lose(group, 1)
    lose(group, 2, for_good=True)
    assert take_back(group, config()) == [1]
    assert "All 2 env runners are lost: waiting up to 60 s for one." in caplog.text
    assert "Env runner(s) [1] are back." in caplog.text


def test_if_none_comes_back_in_time_it_says_so(group: Any) -> None:
    lose(group, 1, for_good=True)
    lose(group, 2, for_good=True)
    with pytest.raises(RuntimeError, match=r"`env_runner_restore_timeout_s`=1 s: give the cluster"):
        take_back(group, config(env_runner_restore_timeout_s=1.0))


def test_if_none_may_be_restarted_it_says_so_at_once(group: Any) -> None:
    lose(group, 1, for_good=True)
    lose(group, 2, for_good=True)
    with pytest.raises(RuntimeError, match="all 2 env runners are lost, and `restart_failed"):
        take_back(group, config(restart_failed_env_runners=False))


def test_without_remote_env_runners_there_is_nothing_to_do() -> None:
    group = SimpleNamespace(_worker_manager=FaultTolerantActorManager(init_id=1))
    assert take_back(group, config()) == []


# Replacing those that hang


class _Calls:
    """As `OpenCalls`."""

    def __init__(self, **missed: int) -> None:
        self.missed = {int(name[1:]): count for name, count in missed.items()}
        self.forgotten: list[int] = []

    def forget(self, index: int) -> None:
        self.forgotten.append(index)


def pid(group: Any, index: int) -> int:
    actor = group._worker_manager.actors()[index]
    return int(ray.get(actor.apply.remote(lambda runner: os.getpid())))


def test_one_that_hangs_is_killed_and_comes_back_as_another_process(
    group: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = pid(group, 2)
    group._worker_manager.actors()[2].apply.remote(lambda runner: time.sleep(1000))
    calls: Any = _Calls(_1=2, _2=3)
    assert replace_overdue(group, calls, config()) == [2]
    assert calls.forgotten == [2]
    assert group._worker_manager.healthy_actor_ids() == [1]
    assert "Env runner 2 has missed 3 rounds in a row (`max_missed_rounds`=3)" in caplog.text
    deadline = time.monotonic() + 60
    while take_back(group, config()) != [2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert pid(group, 2) != before


@pytest.mark.parametrize(
    "changes", [{"max_missed_rounds": None}, {"restart_failed_env_runners": False}], ids=str
)
def test_nobody_is_killed_who_would_not_come_back_or_should_not(
    changes: dict[str, Any],
) -> None:
    group: Any = SimpleNamespace(_worker_manager=FaultTolerantActorManager(init_id=1))
    calls: Any = _Calls(_1=9)  # There is none: killing it would raise.
    assert replace_overdue(group, calls, config(**changes)) == []
    with pytest.raises(KeyError):
        replace_overdue(group, calls, config())
