from __future__ import annotations

import pytest

from rllib_weighted.core.workers import WorkerLayout


def test_remote_sub_environments_by_hand() -> None:
    # 3 runners (1, 2, 3) with 4 sub-environments each: runner 2's third is 1 * 4 + 2 = 6.
    layout = WorkerLayout(3, 4, "env")
    assert (layout.num_runners, layout.num_slots, layout.num_workers) == (3, 12, 12)
    assert layout.slot(2, 2) == 6
    assert layout.worker(2, 2) == 6
    assert layout.env_runner(6) == 2
    assert layout.env_index(6) == 2
    assert layout.first_slot(6) == 6


def test_remote_env_runners_by_hand() -> None:
    layout = WorkerLayout(3, 4, "env_runner")
    assert (layout.num_runners, layout.num_slots, layout.num_workers) == (3, 12, 3)
    assert layout.slot(2, 2) == 6
    assert layout.worker(2, 2) == 1
    assert layout.env_runner(1) == 2
    assert layout.env_index(1) is None
    assert layout.first_slot(1) == 4


def test_the_local_env_runner_is_number_0() -> None:
    envs = WorkerLayout(0, 2, "env")
    assert (envs.num_runners, envs.num_slots, envs.num_workers) == (1, 2, 2)
    assert [envs.worker(0, index) for index in range(2)] == [0, 1]
    assert [envs.env_runner(worker) for worker in range(2)] == [0, 0]
    runner = WorkerLayout(0, 2, "env_runner")
    assert (runner.num_workers, runner.worker(0, 1), runner.env_runner(0)) == (1, 0, 0)


@pytest.mark.parametrize("unit", ["env", "env_runner"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("num_runners", [0, 1, 2, 5])
def test_the_numbering_has_no_gaps_and_inverts(num_runners: int, num_envs: int, unit: str) -> None:
    layout = WorkerLayout(num_runners, num_envs, unit)  # type: ignore[arg-type]
    indices = range(1, num_runners + 1) if num_runners else [0]
    places = [(runner, index) for runner in indices for index in range(num_envs)]
    assert [layout.slot(*place) for place in places] == list(range(layout.num_slots))
    workers = [layout.worker(*place) for place in places]
    assert sorted(set(workers)) == list(range(layout.num_workers))
    for (runner, index), worker in zip(places, workers, strict=True):
        assert layout.env_runner(worker) == runner
        assert layout.env_index(worker) in (None, index)
        assert layout.first_slot(worker) <= layout.slot(runner, index)
        assert layout.slot(runner, layout.env_index(worker) or 0) == layout.first_slot(worker)
