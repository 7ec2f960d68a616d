"""Weighted merging of the gradients of differently seeded RLlib workers."""

from ray import tune

from rllib_weighted.algorithm import WeightedPPO
from rllib_weighted.config import WeightedPPOConfig
from rllib_weighted.grids import merge_grid
from rllib_weighted.learning.connectors import ScaleRewards
from rllib_weighted.merging import (
    ActorAverage,
    ActorSum,
    Average,
    LossWeighted,
    RewardWeighted,
    Sum,
    Weighting,
    merge_weights,
    register_strategy,
)

__version__ = "0.1.0"

__all__ = [
    "ActorAverage",
    "ActorSum",
    "Average",
    "LossWeighted",
    "RewardWeighted",
    "ScaleRewards",
    "Sum",
    "WeightedPPO",
    "WeightedPPOConfig",
    "Weighting",
    "merge_grid",
    "merge_weights",
    "register_strategy",
]

tune.register_trainable("WeightedPPO", WeightedPPO)
