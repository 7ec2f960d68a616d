"""Connectors that look back: the learner sees of each step what the module has seen."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.common.frame_stacking import FrameStacking
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import PrevActionsPrevRewards
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.tiny_atari_cnn_rlm import TinyAtariCNN

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.sampling.env_runner import needed_lookback
from tests.sampling.helpers import make_config, make_runner, sample


class Frames(gym.Env):
    """Frame t of an episode is filled with t + 1."""

    def __init__(self, context: Any = None) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (42, 42, 1), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._frame(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._frame(), 1.0, self.t == 30, False, {}

    def _frame(self) -> np.ndarray:
        return np.full((42, 42, 1), self.t + 1, np.float32)


class Watching(TinyAtariCNN):
    """Hands on which frames it has seen."""

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._forward(batch, **kwargs)
        return {**outputs, "seen": batch[Columns.OBS][:, 0, 0, :]}


def _config(**env_runners: Any) -> WeightedPPOConfig:
    stack = partial(FrameStackingEnvToModule, num_frames=4)
    config = make_config(
        Frames,
        env_to_module_connector=lambda env, spaces, device: stack(),
        num_envs_per_env_runner=1,
        **env_runners,
    )
    config.training(merge_strategy="average", train_batch_size=10, minibatch_size=None)
    return config.rl_module(rl_module_spec=RLModuleSpec(module_class=Watching))


@pytest.mark.parametrize("horizon", [1, 5])
def test_stacks_of_the_learner_are_those_of_the_module(
    horizon: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rllib_weighted"):
        runner = make_runner(_config(episode_lookback_horizon=horizon))
    assert ("raised from 1 to 3" in caplog.text) is (horizon == 1)
    learner = FrameStacking(num_frames=4, as_learner_connector=True)
    for round_ in (1, 2, 3, 4):
        episodes = sample(runner, round_).episodes
        batch: dict[str, Any] = {}
        learner(rl_module=None, batch=batch, episodes=episodes)
        for episode in episodes:
            (stacks,) = (
                items for key, items in batch[Columns.OBS].items() if key[0] == episode.id_
            )
            seen = episode.get_extra_model_outputs("seen")
            np.testing.assert_array_equal(np.stack(list(stacks[0]))[:, 0, 0, :], seen)
            # Inside an episode nothing is filled up.
            assert (seen[0].min() > 0) == (episode.t_started > 0)


def test_all_that_is_looked_at_is_counted() -> None:
    def pipeline(*pieces: Any) -> ConnectorPipelineV2:
        return ConnectorPipelineV2(connectors=list(pieces))

    previous = PrevActionsPrevRewards(n_prev_actions=2, n_prev_rewards=6)
    stack = FrameStackingEnvToModule(num_frames=4)
    assert needed_lookback(pipeline()) == 0
    assert needed_lookback(pipeline(stack)) == 3
    assert needed_lookback(pipeline(stack, pipeline(previous))) == 6
