"""The merge that is computed anew at every optimizer step, without a dozen tensor operations.

On a CPU, operations on N numbers cost what calling them costs, and numpy's are cheaper to call.
The definitions are those of `merge`, which takes over where the numbers are not plain.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_weighted.merging.merge import Merge
from rllib_weighted.merging.weightings import (
    BUILT_IN,
    LossWeighted,
    RewardWeighted,
    Weighting,
)

_TINY = 1e-300  # Below, halving a signal as `merge` does loses digits.


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


def quick_merge(strategy: Any, signals: Tensor, *, min_weight: float | None) -> Merge | None:
    """Shares and weights of N workers that all take part, as `merge` gives them.

    Args:
        strategy: One for which `is_quick`.
        signals: [N] on the CPU.
        min_weight: m >= 0, not checked again; None is 1/N.

    Returns:
        `Merge`; None if the numbers are not plain (one is missing, they overflow, all are equal to
        the lowest): then `merge` is to be asked.
    """
    values = signals.numpy()
    lowest = float(np.minimum.reduce(values))
    shift = lowest if strategy.offset == "min" or lowest < 0.0 else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        shares = np.subtract(values, shift, dtype=np.float64)
        total = float(np.add.reduce(shares))
    if not _TINY < total < math.inf:
        return None
    shares /= total
    if min_weight is None:
        min_weight = 1.0 / len(shares)
    return Merge(torch.from_numpy(shares), torch.from_numpy(shares + min_weight))
