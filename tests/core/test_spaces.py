"""Spaces that RLlib's default module cannot take are refused, with a remedy."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.rl_module import RLModuleSpec

from rllib_weighted.core.observations import DEFAULT_MODULES
from rllib_weighted.core.spaces import action_problem, check_spaces, observation_problem
from tests.sampling.helpers import make_config, make_runner, sample

VECTOR = spaces.Box(-1, 1, (2,))


class Samples(gym.Env[Any, Any]):
    """Ten steps of whatever its spaces hold."""

    def __init__(self, context: Any = None) -> None:
        self.observation_space, self.action_space = context["observations"], context["actions"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps >= 10, False, {}


def config_of(observations: gym.Space[Any], actions: gym.Space[Any], **env_runners: Any) -> Any:
    context = {"observations": observations, "actions": actions}
    return make_config(Samples, **env_runners).environment(env_config=context)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Dict(a=VECTOR, b=spaces.Discrete(3)),
        spaces.Discrete(4),
        spaces.MultiBinary(4),
        spaces.Box(-1, 1, (3, 4)),
        spaces.Box(-1, 1, ()),
    ],
    ids=lambda space: type(space).__name__,
)
def test_observations_without_a_default_network(space: gym.Space[Any]) -> None:
    problem = str(observation_problem(space))
    assert f"found {type(space).__name__}" in problem
    assert "FlattenObservation" in problem
    with pytest.raises(ValueError, match="observations should be a Box of one dimension"):
        make_runner(config_of(space, spaces.Discrete(2)))


@pytest.mark.parametrize("shape", [(3,), (84, 84, 4)])
def test_observations_with_a_default_network(shape: tuple[int, ...]) -> None:
    assert observation_problem(spaces.Box(0, 255, shape, np.uint8)) is None


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiBinary(3),
        spaces.Text(3),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Box(0, 4, (2,), np.int32),
        spaces.MultiDiscrete([[2, 3], [2, 2]]),
        spaces.Sequence(spaces.Discrete(2)),
    ],
    ids=lambda space: type(space).__name__,
)
def test_actions_without_a_distribution(space: gym.Space[Any]) -> None:
    assert f"found {type(space).__name__}" in str(action_problem(space))
    nested = spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([space]))
    assert f"found {type(space).__name__}" in str(action_problem(nested))
    assert " in Dict(" in str(action_problem(nested))
    with pytest.raises(ValueError, match="actions should be Discrete, MultiDiscrete or a Box"):
        make_runner(config_of(VECTOR, space))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2),
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-1, 1, (2,)),
        spaces.Box(-1, 1, ()),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([VECTOR])),
    ],
    ids=lambda space: type(space).__name__,
)
def test_what_is_not_refused_can_be_sampled_with(space: gym.Space[Any]) -> None:
    result = sample(make_runner(config_of(VECTOR, space)))
    assert result.episodes or result.columns


def test_both_problems_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"observations should be .*\. actions should be "):
        make_runner(config_of(spaces.Text(5), spaces.Text(3)))


class OwnCatalog(PPOCatalog):
    pass


def test_what_a_user_brings_is_left_alone() -> None:
    spec = RLModuleSpec(
        module_class=DEFAULT_MODULES[0],
        observation_space=spaces.Text(5),
        action_space=spaces.Text(3),
        catalog_class=OwnCatalog,
    )
    check_spaces(spec)
    with pytest.raises(ValueError, match="observations should be"):
        check_spaces(dataclasses.replace(spec, catalog_class=PPOCatalog))
    check_spaces(dataclasses.replace(spec, module_class=type("Own", DEFAULT_MODULES[:1], {})))


def test_an_env_runner_of_its_own_lives_and_says_what_is_wrong_with_its_module() -> None:
    """If its constructor raised, Ray would start it again and again, and the driver would wait."""
    runner = make_runner(
        config_of(spaces.Text(5), spaces.Discrete(2), num_env_runners=1), worker_index=1
    )
    assert runner.module is None
    with pytest.raises(AssertionError, match="observations should be a Box of one dimension"):
        sample(runner)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_driver_refuses_before_anything_is_sampled() -> None:
    config = config_of(spaces.Text(5), spaces.Discrete(2), num_env_runners=1)
    with pytest.raises(ValueError, match="observations should be a Box of one dimension"):
        config.build_algo()
