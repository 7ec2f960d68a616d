"""Signals of N workers -> N weights -> one merged gradient.

Pure tensors: this package imports torch and nothing of the rest. The idea is that of
arXiv 2304.12778; the formulas are ours, after arXiv 2304.12778.
"""

from rllib_weighted.merging.actor_local import (
    actor_gradients,
    clip_rows,
    drift,
    finite_rows,
    parameter_mean,
    weighted_rows,
)
from rllib_weighted.merging.merge import Merge, merge, merge_weights, weighted_sum
from rllib_weighted.merging.quick import is_quick, quick_merge
from rllib_weighted.merging.registry import (
    register_strategy,
    resolve_strategy,
    strategy_names,
    strategy_problems,
    unregister_strategy,
)
from rllib_weighted.merging.stacked_adam import StackedAdam
from rllib_weighted.merging.weightings import (
    ActorAverage,
    ActorSum,
    Average,
    LossWeighted,
    RewardWeighted,
    Sum,
    Weighting,
)

__all__ = [
    "ActorAverage",
    "ActorSum",
    "Average",
    "LossWeighted",
    "Merge",
    "RewardWeighted",
    "StackedAdam",
    "Sum",
    "Weighting",
    "actor_gradients",
    "clip_rows",
    "drift",
    "finite_rows",
    "is_quick",
    "merge",
    "merge_weights",
    "parameter_mean",
    "quick_merge",
    "register_strategy",
    "resolve_strategy",
    "strategy_names",
    "strategy_problems",
    "unregister_strategy",
    "weighted_rows",
    "weighted_sum",
]
