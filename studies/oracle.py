"""A merge that is told the weights: the bound that a rule which finds them out could reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rllib_weighted.merging import Weighting, register_strategy


@register_strategy("study_oracle")
@dataclass(frozen=True)
class Oracle(Weighting):
    """Worker i's share is proportional to the i-th of some numbers, from the start again.

    Weights are the shares: they sum to 1. For runs in which no worker is ever dropped.

    Attributes:
        listen_to: The numbers, >= 0.
    """

    signals = ()
    uses_min_weight: ClassVar[bool] = False
    listen_to: tuple[float, ...] = (1.0,)

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Shares [N]."""
        numbers = [self.listen_to[i % len(self.listen_to)] for i in range(len(signals))]
        parts = torch.tensor(numbers, dtype=torch.float64)
        return parts / parts.sum()

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = p_i, [N]."""
        return shares
