"""Small dense networks on a GPU: the log says that a CPU is often faster."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted.core.observations import CastingPPOModule
from rllib_weighted.learning.device_hint import device_hint
from rllib_weighted.learning.learner import WeightedPPOLearner
from tests.learning.helpers import build_group, learner_of, small_config

VECTOR = gym.spaces.Box(-1, 1, (8,))
IMAGE = gym.spaces.Box(0, 255, (42, 42, 4), np.uint8)


def module_of(hiddens: list[int], space: gym.Space[Any] = VECTOR) -> Any:
    return RLModuleSpec(
        module_class=CastingPPOModule,
        observation_space=space,
        action_space=gym.spaces.Discrete(4),
        model_config=DefaultModelConfig(fcnet_hiddens=hiddens),
    ).build()


def test_small_dense_networks_on_a_gpu() -> None:
    # Shared layers: 8 x 64 + 64, 64 x 64 + 64; heads: 64 x 4 + 4, 64 + 1.
    assert "with 5,061 parameters" in str(device_hint("cuda:0", module_of([64, 64])))


@pytest.mark.parametrize(
    ("device", "hiddens", "space"),
    [("cpu", [64, 64], VECTOR), ("cuda", [512, 512], VECTOR), ("cuda", [64], IMAGE)],
    ids=["a CPU", "many parameters", "convolutions"],
)
def test_nothing_is_said_elsewhere(device: str, hiddens: list[int], space: Any) -> None:
    assert device_hint(device, module_of(hiddens, space)) is None


class OnAGpu(WeightedPPOLearner):
    """A learner that says that it is on a GPU; this machine may have none."""

    @property
    def device(self) -> Any:
        return torch.device("cuda:0")


def test_the_learner_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    learner = learner_of(build_group(small_config(2)))
    learner.__class__ = OnAGpu
    with caplog.at_level(logging.WARNING, "rllib_weighted"):
        networks = learner.closed_form_networks
        assert learner.closed_form_networks is networks
    (message,) = caplog.messages
    assert message.startswith("The learner is on a GPU with ")
