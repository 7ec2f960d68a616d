from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.rllib.algorithms.ppo import PPO

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core import processes as threads
from rllib_weighted.core.processes import computing_with, cores_at_hand, num_threads, trial_cpus


@pytest.mark.parametrize(
    ("num_cpus", "cores", "asked", "expected"),
    [
        (3, 8, None, 3),  # Its own CPUs,
        (3, 2, None, 2),  # but no more than there are cores.
        (1, 2, None, 1),  # Two trials on two cores, each of 1 CPU.
        (2.5, 8, None, 2),  # Part of a core is none,
        (0.5, 8, None, 1),  # but one thread there is.
        (0, 8, None, 1),
        (4, 1.5, None, 1),  # A container with one and a half cores.
        (4, 0.5, None, 1),
        (33, 64, None, 8),  # More would wait for each other,
        (33, 64, "20", 20),  # unless the user says so.
        (3, 8, "6", 6),  # The user knows better,
        (3, 2, "1", 1),  # in both directions.
        (3, 8, "6,2", 6),  # OpenMP's form for nested regions.
        (3, 8, " 4 ", 4),
        (3, 8, "", 3),  # What is no number of threads is none.
        (3, 8, "0", 3),
        (3, 8, "many", 3),
    ],
)
def test_threads_for_cpus(num_cpus: float, cores: float, asked: str | None, expected: int) -> None:
    assert num_threads(num_cpus, cores=cores, asked=asked) == expected


@pytest.mark.parametrize(
    ("env_runners", "learners", "main", "expected"),
    [
        ((2, 0.5), {}, 1, 2.0),  # tuned_examples/cartpole.py: 1 + 2 x 0.5
        ((0, 1), {}, 1, 1.0),
        ((4, 1), {}, 3, 7.0),  # 3 + 4 x 1
        ((4, 1), {"num_cpus_per_learner": 2}, 1, 6.0),  # max(2, 1) + 4 x 1
        ((2, 1), {"num_gpus_per_learner": 1}, 1, 3.0),  # "auto" is 0 beside a GPU: max(0, 1) + 2
    ],
)
def test_cpus_of_a_trial_are_those_that_it_asks_ray_for(
    env_runners: tuple[int, float], learners: dict[str, Any], main: int, expected: float
) -> None:
    count, each = env_runners
    config = (
        WeightedPPOConfig()
        .env_runners(num_env_runners=count, num_cpus_per_env_runner=each)
        .env_runners(num_envs_per_env_runner=4)
        .training(merge_unit="env")
        .learners(**learners)
        .resources(num_cpus_for_main_process=main)
    )
    assert trial_cpus(config) == expected
    # RLlib's own request: ours is refused where the running Ray has no GPU.
    request = PPO.default_resource_request(config.environment("CartPole-v1"))
    assert sum(bundle.get("CPU", 0) for bundle in request.bundles) == expected


def test_learners_of_their_own_leave_the_trial_as_it_is() -> None:
    config = WeightedPPOConfig().env_runners(num_env_runners=2).learners(num_learners=2)
    assert threads.round_threads(config) is None


def test_a_process_of_the_users_keeps_fewer_threads_than_the_trial_has_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "cores_at_hand", lambda: 16)
    config = WeightedPPOConfig().env_runners(num_env_runners=4)
    with computing_with(2):
        assert threads.round_threads(config) == 2
    with computing_with(8):
        assert threads.round_threads(config) == 5  # 1 + 4 x 1 CPUs
        assert threads.round_threads(config, num_parameters=threads.SMALL) == 5
        assert threads.round_threads(config, num_parameters=threads.SMALL - 1) == 1
    monkeypatch.setenv(threads.VARIABLE, "7")
    assert threads.round_threads(config) == 7
    assert threads.round_threads(config, num_parameters=10) == 7


def test_threads_are_as_before_after_the_block() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        assert torch.get_num_threads() == before + 1
        raise KeyError

    with pytest.raises(KeyError), computing_with(before + 1):
        fail()
    assert torch.get_num_threads() == before
    with computing_with(None):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("before", [True, False])
def test_new_memory_is_filled_as_before_after_the_block(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", before)

    def fail() -> None:
        assert not torch.utils.deterministic.fill_uninitialized_memory
        raise KeyError

    with pytest.raises(KeyError), threads.unfilled_memory():
        fail()
    assert torch.utils.deterministic.fill_uninitialized_memory is before


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu.max": "900000 100000\n"}, 3.0),  # A quota of more than the cores.
        ({}, 3.0),
    ],
)
def test_cores_are_those_of_the_affinity_and_the_container(
    files: dict[str, str], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_OLD_QUOTA", tmp_path / "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    assert cores_at_hand() == expected


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("asked", [None, "1", "5"])
def test_a_trial_in_a_worker_of_ray_uses_its_env_runners_cpus(asked: str | None) -> None:
    """Ray sets the variable to 1 there: that is not the user's wish, the same from outside is."""
    variables = {} if asked is None else {threads.VARIABLE: asked}

    @ray.remote(num_cpus=1, runtime_env={"env_vars": {"A_NEW_WORKER": "1", **variables}})
    def ask(config: Any) -> tuple[str | None, int | None]:
        return os.environ.get(threads.VARIABLE), threads.round_threads(config)

    there = os.environ.get(threads.VARIABLE)  # What Ray's workers inherit from this run.
    config = WeightedPPOConfig().env_runners(num_env_runners=2)
    own = num_threads(3, cores=cores_at_hand(), asked=asked or there)
    assert ray.get(ask.remote(config)) == (asked or there or "1", own)


@pytest.mark.usefixtures("ray_session")
def test_a_round_is_computed_with_the_chosen_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.VARIABLE, "2")
    seen = []
    config = (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(merge_unit="env", train_batch_size=64, minibatch_size=32, num_epochs=1)
        .callbacks(on_sample_end=lambda **_: seen.append(torch.get_num_threads()))
        .debugging(seed=1)
    )
    before = torch.get_num_threads()
    algorithm = config.build_algo()
    try:
        algorithm.train()
    finally:
        algorithm.stop()
    assert seen == [2]
    assert torch.get_num_threads() == before
