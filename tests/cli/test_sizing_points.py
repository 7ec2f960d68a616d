"""The points of a search space: each is checked, and they are those of the Tuner."""

from __future__ import annotations

from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_weighted.cli.sizing import config_problems, variants


def ppo() -> PPOConfig:
    return PPOConfig().environment("CartPole-v1", env_config={"size": 1})


def test_good_config_has_no_problems_and_is_not_changed() -> None:
    config = ppo()
    before = config.to_dict()
    assert config_problems(config) == []
    assert config.to_dict() == before


def test_environment_is_checked() -> None:
    (problem,) = config_problems(PPOConfig().environment("NoSuchEnv-v0"))
    assert "NoSuchEnv" in problem


def test_rllibs_own_checks_are_reported() -> None:
    config = ppo().training(train_batch_size_per_learner=10, minibatch_size=100)
    (problem,) = config_problems(config)
    assert "minibatch_size" in problem


def test_each_point_of_a_grid_is_checked_and_named() -> None:
    config = ppo().training(
        train_batch_size_per_learner=50, minibatch_size=tune.grid_search([10, 50, 60, 70])
    )
    problems = config_problems(config)
    assert len(problems) == 2
    assert "(at minibatch_size=60)" in problems[0]
    assert "(at minibatch_size=70)" in problems[1]


def test_points_are_those_of_the_tuner() -> None:
    """`sample_from` sees the drawn values of the others, as it does there."""
    config = ppo().training(
        num_epochs=tune.choice([3, 4]),
        minibatch_size=tune.sample_from(lambda config: 10 * config["num_epochs"]),
        lr=tune.grid_search([0.1, 0.2]),
    )
    points = list(variants(config))
    assert [point.lr for _, point in points] == [0.1, 0.2]
    for name, point in points:
        assert name == f"num_epochs={point.num_epochs}, lr={point.lr}"
        assert point.minibatch_size == 10 * point.num_epochs
    assert not isinstance(config.lr, float)


def test_an_empty_space_is_a_problem() -> None:
    (problem,) = config_problems(ppo().training(lr=tune.grid_search([])))
    assert "each grid should list one or more values" in problem


def test_a_space_that_raises_is_a_problem() -> None:
    (problem,) = config_problems(ppo().training(lr=tune.sample_from(lambda config: 1 / 0)))
    assert problem == "the search space cannot be drawn from: ZeroDivisionError: division by zero"
