"""The merge that is computed anew at every optimizer step, without a dozen tensor operations.

On a CPU, operations on N numbers cost what calling them costs, and numpy's are cheaper to call.
The definitions are those of `merge`, which takes over where the numbers are not plain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rllib_weighted.merging.merge import Merge
from rllib_weighted.merging.weightings import (
    BUILT_IN,
    LossWeighted,
    RewardWeighted,
    Weighting,
    checked_min_weight,
)


def is_quick(strategy: Weighting) -> bool:
    """Whether `quick_merge` knows a strategy: shares in proportion to signals, weights p + m."""
    return (
        isinstance(strategy, (LossWeighted, RewardWeighted))
        and type(strategy) in BUILT_IN
        and strategy.transform == "proportional"
        and strategy.direction == "high"
        and strategy.offset in ("auto", "min")
        and not strategy.normalize
    )


def quick_merge(strategy: Weighting, signals: Tensor, *, min_weight: float | None) -> Merge | None:
    """Shares and weights of N workers that all take part, as `merge` gives them.

    Args:
        strategy: One for which `is_quick`.
        signals: [N] float64 on the CPU.
        min_weight: m >= 0; None is 1/N.

    Returns:
        `Merge`; None if a signal is missing: then `merge` is to be asked.
    """
    shifted = signals.numpy() * 0.5
    lowest, highest = float(shifted.min()), float(shifted.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return None
    if strategy.offset == "min" or lowest < 0.0:  # type: ignore[attr-defined]
        shifted -= lowest
        highest -= lowest
    if highest == 0.0:
        shifted[:] = 1.0
    else:
        shifted /= highest
    shifted /= shifted.sum()
    weights = shifted + checked_min_weight(min_weight, len(shifted))
    return Merge(torch.from_numpy(shifted), torch.from_numpy(weights))
