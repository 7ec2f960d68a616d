"""Discrete actions reach the environment as its space counts them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.actions import CountActions, counted_in, is_counted_elsewhere
from tests.sampling.envs import ImageEnv
from tests.sampling.helpers import make_config, make_runner, sample

_FROM_5 = gym.spaces.Discrete(3, start=5)
_MULTI = gym.spaces.MultiDiscrete([2, 3], start=[10, -1])
_BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
_NESTED = gym.spaces.Dict({"a": _FROM_5, "b": gym.spaces.Tuple([_MULTI, _BOX])})


def test_actions_are_counted_from_the_start_in_the_type_of_the_space() -> None:
    assert counted_in(_FROM_5, np.int32(2)) == 7
    assert counted_in(_FROM_5, np.int32(2)).dtype == np.int64
    small = gym.spaces.Discrete(3, dtype=np.int8)
    np.testing.assert_array_equal(counted_in(small, np.array([2, 0])), np.array([2, 0], np.int8))
    assert counted_in(small, np.array([2, 0])).dtype == np.int8
    np.testing.assert_array_equal(
        counted_in(_MULTI, np.array([[1, 0], [0, 2]])), [[11, -1], [10, 1]]
    )
    action = np.zeros(2, np.float32)
    assert counted_in(_BOX, action) is action


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Discrete(3), False),
        (gym.spaces.MultiDiscrete([2, 3]), False),
        (_BOX, False),
        (gym.spaces.Discrete(3, dtype=np.int32), False),
        (gym.spaces.Discrete(3, dtype=np.int8), True),
        (_FROM_5, True),
        (_MULTI, True),
        (_NESTED, True),
    ],
)
def test_which_spaces_count_otherwise(space: gym.Space[Any], expected: bool) -> None:
    assert is_counted_elsewhere(space) is expected


class Checking(gym.Env):
    """Ends if an action is not in its space."""

    def __init__(self, context: dict[str, Any]) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = context["actions"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == 5, False, {}


def _config(space: gym.Space[Any], **env_runners: Any) -> WeightedPPOConfig:
    return make_config(Checking, **env_runners).environment(env_config={"actions": space})


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("space", [_FROM_5, _MULTI, _NESTED], ids=["one", "several", "nested"])
def test_environments_get_actions_of_their_space(space: gym.Space[Any], mode: str) -> None:
    runner = make_runner(_config(space, gym_env_vectorize_mode=mode))
    try:
        episodes = sample(runner).episodes
        assert sum(map(len, episodes)) == 40
    finally:
        runner.stop()


@pytest.mark.parametrize("fast_sampling", [True, False])
def test_rollouts_hold_the_policys_own_actions(fast_sampling: bool) -> None:
    """So that the learner finds the logit of each."""
    runner = make_runner(_config(_FROM_5, fast_sampling=fast_sampling))
    assert (runner.fast_sampler is not None) is fast_sampling
    actions = np.concatenate([episode.get_actions() for episode in sample(runner).episodes])
    assert set(actions.tolist()) == {0, 1, 2}


def test_evaluation_gets_them_too() -> None:
    runner = make_runner(_config(_FROM_5))
    assert runner.sample(num_episodes=2, explore=False)


def test_rllibs_own_pipeline_is_left_alone_where_nothing_is_to_do() -> None:
    runner = make_runner(make_config(ImageEnv))
    assert CountActions not in map(type, runner._module_to_env.connectors)
    without_defaults = _config(_FROM_5)
    without_defaults.add_default_connectors_to_module_to_env_pipeline = False
    pipeline = without_defaults.build_module_to_env_connector(
        spaces={"__env_single__": (Checking({"actions": _FROM_5}).observation_space, _FROM_5)}
    )
    assert pipeline.connectors == []
