"""Signals of N workers -> N weights -> one merged gradient.

Pure tensors, no RLlib. The idea is that of arXiv 2304.12778; the formulas are ours, after it.
"""

from rllib_weighted.merging.aggregators import TorchJD
from rllib_weighted.merging.diagnostics import Diagnostics, GradientSums, diagnose
from rllib_weighted.merging.merge import (
    Merge,
    is_quick,
    merge,
    merge_weights,
    quick_merge,
    quick_weights,
    weighted_sum,
)
from rllib_weighted.merging.registry import (
    MergeChoice,
    register_strategy,
    resolve_strategy,
    strategy_names,
    strategy_problems,
    unregister_strategy,
)
from rllib_weighted.merging.signals import SIGNALS, Signal
from rllib_weighted.merging.strategies import (
    ActorAverage,
    ActorSum,
    AdvantageScaled,
    Average,
    InverseVariance,
    Learnability,
    LossWeighted,
    RewardWeighted,
    Sum,
    Weighting,
)

__all__ = [
    "SIGNALS",
    "ActorAverage",
    "ActorSum",
    "AdvantageScaled",
    "Average",
    "Diagnostics",
    "GradientSums",
    "InverseVariance",
    "Learnability",
    "LossWeighted",
    "Merge",
    "MergeChoice",
    "RewardWeighted",
    "Signal",
    "Sum",
    "TorchJD",
    "Weighting",
    "diagnose",
    "is_quick",
    "merge",
    "merge_weights",
    "quick_merge",
    "quick_weights",
    "register_strategy",
    "resolve_strategy",
    "strategy_names",
    "strategy_problems",
    "unregister_strategy",
    "weighted_sum",
]
