"""Policies that start with small movements."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import pytest
import torch
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import CautiousPPOCatalog
from rllib_weighted.core.observations import CastingPPOModule

FREE = DefaultModelConfig(fcnet_hiddens=[8], free_log_std=True)
MOVES = gym.spaces.Box(-1, 1, (3,))


def build(actions: gym.Space[Any], model: DefaultModelConfig, catalog: Any) -> Any:
    return RLModuleSpec(
        module_class=CastingPPOModule,
        observation_space=gym.spaces.Box(-1, 1, (2,)),
        action_space=actions,
        model_config=model,
        catalog_class=catalog,
    ).build()


def test_only_the_deviations_are_others() -> None:
    torch.manual_seed(0)
    plain = dict(build(MOVES, FREE, None).named_parameters())
    torch.manual_seed(0)
    cautious = dict(build(MOVES, FREE, CautiousPPOCatalog).named_parameters())
    different = [name for name in plain if not torch.equal(plain[name], cautious[name])]
    assert different == ["pi.log_std"]
    assert cautious["pi.log_std"].exp().tolist() == pytest.approx([math.exp(-2)] * 3)


@pytest.mark.parametrize(
    ("actions", "model"),
    [
        (MOVES, DefaultModelConfig(fcnet_hiddens=[8])),
        (gym.spaces.Discrete(2), DefaultModelConfig(fcnet_hiddens=[8])),
    ],
)
def test_it_says_what_it_needs(actions: gym.Space[Any], model: DefaultModelConfig) -> None:
    with pytest.raises(ValueError, match="should go with continuous actions and `free_log_std="):
        build(actions, model, CautiousPPOCatalog)
