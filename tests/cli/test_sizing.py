"""How large an experiment is, on a Ray with eight CPUs."""

from __future__ import annotations

import pytest
from ray import tune
from ray.tune import PlacementGroupFactory, TuneConfig

from rllib_weighted import WeightedPPOConfig, merge_grid
from rllib_weighted.cli import InputError
from rllib_weighted.cli.sizing import ExperimentSize, experiment_size

pytestmark = pytest.mark.usefixtures("ray_session")


def config() -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(merge_unit="env")
    )


def test_trials_of_a_grid_are_counted_and_how_many_run_at_once() -> None:
    # 1 of average and 3 of reward_weighted, 10 seeds each, twice.
    space = (
        config()
        .training(**merge_grid(["average", "reward_weighted"], [0.1, 0.2, 0.3]))
        .debugging(seed=tune.grid_search(list(range(10))))
    )
    size = experiment_size(space, TuneConfig(num_samples=2))
    assert size.num_trials == 80
    assert str(size) == "80, each 1 CPU, 0 GPUs; Ray has 8 CPUs, 0 GPUs: 8 at once"


def test_points_with_different_hardware() -> None:
    space = config().env_runners(num_env_runners=tune.grid_search([0, 1, 3]))
    size = experiment_size(space, TuneConfig())
    # 1, 2 and 4 CPUs: of the largest 8 / 4 = 2 run at once, of the others all 3.
    assert str(size) == "3, each 1 to 4 CPUs, 0 GPUs; Ray has 8 CPUs, 0 GPUs: 2 to 3 at once"


def test_the_users_own_limit_counts() -> None:
    size = experiment_size(config(), TuneConfig(num_samples=9, max_concurrent_trials=5))
    assert str(size).endswith(": 5 at once")


def test_a_search_without_end() -> None:
    size = experiment_size(config(), TuneConfig(num_samples=-1))
    assert str(size) == ("no end of trials, each 1 CPU, 0 GPUs; Ray has 8 CPUs, 0 GPUs: 8 at once")


def test_own_kinds_of_resources_are_named() -> None:
    request = PlacementGroupFactory([{"CPU": 1, "license": 1}, {"GPU": 0.5}])
    nodes = [{"CPU": 4, "GPU": 1, "license": 9}]
    assert str(ExperimentSize(7, [request], nodes)) == (
        "7, each 1 CPU, 0.5 GPUs, 1 license; Ray has 4 CPUs, 1 GPU, 9 license: 2 at once"
    )


def test_every_point_that_never_fits_is_told() -> None:
    space = config().env_runners(num_env_runners=tune.grid_search([0, 8, 9]))
    with pytest.raises(InputError) as caught:
        experiment_size(space, TuneConfig())
    message = str(caught.value)
    assert "2 kinds of trial can never run" in message
    assert "takes 9 CPUs and Ray has 8 CPUs" in message
    assert "takes 10 CPUs and Ray has 8 CPUs" in message
    assert "(at num_env_runners=9)" in message
    assert "--ray-num-cpus" in message


def test_gpus_that_are_not_there() -> None:
    space = config().learners(num_learners=1, num_gpus_per_learner=1)
    with pytest.raises(InputError, match=r"takes 1 GPU and Ray has 0 GPUs.*`num_gpus_per_learner`"):
        experiment_size(space, TuneConfig())


def test_a_cluster_that_grows_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLIB_WEIGHTED_CLUSTER_GROWS", "1")
    space = config().env_runners(num_env_runners=20).training(minibatch_size=None)
    size = experiment_size(space, TuneConfig())
    assert str(size) == "1, each 21 CPUs, 0 GPUs; Ray has 8 CPUs, 0 GPUs, and grows: 0 at once"
