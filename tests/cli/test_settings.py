"""Settings by name: known ones are set, unknown ones refused."""

from __future__ import annotations

import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.cli import InputError
from rllib_weighted.cli.settings import algorithm_config, apply_settings, use_single_process


def ppo() -> PPOConfig:
    return PPOConfig().environment("CartPole-v1", env_config={"size": 1})


def test_values_are_set() -> None:
    config = ppo()
    apply_settings(config, {"lr": 0.1, "lambda": 0.9, "num_env_runners": 0}, "--set")
    assert (config.lr, config.lambda_, config.num_env_runners) == (0.1, 0.9, 0)


def test_every_setting_of_the_package_can_be_set() -> None:
    config = WeightedPPOConfig()
    values = {"env_backend": "envpool", "per_worker_parameters": True, "actor_export": "mean"}
    apply_settings(config, values, "--set")
    assert {name: getattr(config, name) for name in values} == values


def test_old_names_are_those_of_today() -> None:
    config = ppo()
    apply_settings(config, {"num_workers": 3, "num_sgd_iter": 4, "sgd_minibatch_size": 5}, "f")
    assert (config.num_env_runners, config.num_epochs, config.minibatch_size) == (3, 4, 5)


def test_dotted_names_reach_into_dicts_and_leave_the_rest() -> None:
    config = ppo()
    apply_settings(config, {"env_config.walls.width": 2}, "--set")
    assert config.env_config == {"size": 1, "walls": {"width": 2}}


def test_model_config_by_dotted_name() -> None:
    config = ppo()
    apply_settings(config, {"model_config.fcnet_hiddens": [7]}, "--set")
    assert config.model_config["fcnet_hiddens"] == [7]


def test_dotted_name_into_a_number() -> None:
    with pytest.raises(InputError, match=r"--set gamma\.x: 'x' does not lie in a dict"):
        apply_settings(ppo(), {"gamma.x": 1}, "--set")


def test_unknown_names_are_refused_all_at_once_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        apply_settings(ppo(), {"lrr": 1, "gama": 2, "gamma": 0.9}, "--set")
    message = str(caught.value)
    assert "PPOConfig has no setting 'lrr'; did you mean 'lr'?" in message
    assert "'gama'; did you mean 'gamma'?" in message


def test_grid_of_a_text_file_becomes_a_search() -> None:
    config = ppo()
    apply_settings(config, {"lr": {"grid_search": [0.1, 0.2]}}, "f")
    assert config.lr == tune.grid_search([0.1, 0.2])


def test_grid_must_be_a_list() -> None:
    with pytest.raises(InputError, match="`grid_search` takes a list"):
        apply_settings(ppo(), {"lr": {"grid_search": 3}}, "f")


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_stock_algorithms_by_name(name: str) -> None:
    assert algorithm_config(name).algo_class.__name__ == name


def test_unknown_algorithm_suggests() -> None:
    with pytest.raises(InputError, match="unknown algorithm 'PPOO'; did you mean 'PPO'"):
        algorithm_config("PPOO")


def test_single_process_keeps_the_number_of_environments() -> None:
    config = ppo().env_runners(num_env_runners=2, num_envs_per_env_runner=4)
    use_single_process(config)
    assert (config.num_env_runners, config.num_envs_per_env_runner) == (0, 8)
    assert config.num_learners == 0
