"""The ways to turn the signals of N workers into shares, which are >= 0 and sum to 1.

All formulas here are ours, after arXiv 2304.12778. N is the number of workers that take part.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from pydantic import FiniteFloat
from torch import Tensor

Offset: TypeAlias = Literal["auto", "min"] | FiniteFloat
Direction: TypeAlias = Literal["high", "low"]
Transform: TypeAlias = Literal["proportional", "softmax", "rank", "top_k", "random"]


class NegativeSignalError(ValueError):
    """A signal is still negative after a numeric offset.

    Attributes:
        worker: index of the lowest signal, among the signals that were given.
    """

    def __init__(self, worker: int, signal: float, offset: float, direction: str) -> None:
        self.worker = worker
        self._values = (signal, offset, direction)
        oriented = -signal if direction == "low" else signal
        found = "" if direction == "high" else f" ({oriented:g} in direction 'low')"
        super().__init__(
            f"worker {worker} has the signal {signal:g}{found}, which offset={offset:g} leaves at "
            f"{oriented + offset:g}: shifted signals should be >= 0; use an offset of at least "
            f"{-oriented:g}, or 'auto'"
        )

    def at(self, worker: int) -> NegativeSignalError:
        """The same error under another worker index."""
        return NegativeSignalError(worker, *self._values)


def proportional(oriented: Tensor, offset: Offset) -> Tensor:
    """p_i = (s_i + offset) / sum_j (s_j + offset); 1/N if all s_i + offset are 0.

    Args:
        oriented: [N] float64, finite, higher is better.
        offset: "auto" is max(0, -min_j s_j), "min" is -min_j s_j, a number is that number.

    Returns:
        [N] float64, >= 0, sum 1.
    """
    # Without a branch on a tensor's value: nothing here waits for an accelerator. Half the
    # signals and then parts of the highest, so that neither shift nor sum overflows.
    shifted = oriented * 0.5
    if offset == "auto":
        shifted.sub_(shifted.amin().clamp_(max=0.0))
    elif offset == "min":
        shifted.sub_(shifted.amin())
    else:
        shifted.add_(0.5 * offset)
    # 0/0 comes only from all shifted signals being 0: equal parts.
    parts = shifted.div_(shifted.amax()).nan_to_num_(nan=1.0)
    return parts.div_(parts.sum())


def softmax(oriented: Tensor, temperature: float) -> Tensor:
    """p_i = exp(s_i / T) / sum_j exp(s_j / T), from s_i - max_j s_j so that nothing overflows.

    Args:
        oriented: [N] float64, finite, higher is better.
        temperature: T > 0 in the unit of the signal: low is greedy, high is uniform.

    Returns:
        [N] float64, >= 0, sum 1.
    """
    return torch.softmax((oriented - oriented.amax()) / temperature, dim=0)


def rank(oriented: Tensor) -> Tensor:
    """p_i = r_i / (N (N + 1) / 2), r = 1 for the lowest to N for the highest, ties the mean rank.

    Args:
        oriented: [N] float64, finite, higher is better.

    Returns:
        [N] float64, > 0, sum 1.
    """
    ordered = oriented.sort().values
    below = torch.searchsorted(ordered, oriented, right=False)
    not_above = torch.searchsorted(ordered, oriented, right=True)
    num_workers = len(oriented)
    # The ranks below + 1 ... not_above belong to equal signals; twice their mean is a whole number.
    return (below + not_above + 1).to(torch.float64) / (num_workers * (num_workers + 1))


def best_k(oriented: Tensor, top_k: int) -> Tensor:
    """p_i = 1/k for the k highest, 0 for the rest; ties at the boundary split what is left.

    Args:
        oriented: [N] float64, finite, higher is better.
        top_k: k >= 1; more than N counts as N.

    Returns:
        [N] float64, >= 0, sum 1.
    """
    num_best = min(top_k, len(oriented))
    boundary = oriented.topk(num_best).values[-1]
    above = (oriented > boundary).to(torch.float64)
    tied = (oriented == boundary).to(torch.float64)
    return (above + tied * ((num_best - above.sum()) / tied.sum())) / num_best


def permuted(shares: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same shares, dealt out to the workers at random: the control of every comparison.

    Args:
        shares: [N].
        generator: random stream, on any device; None takes torch's global one.

    Returns:
        [N], a permutation of `shares`.
    """
    device = torch.device("cpu") if generator is None else generator.device
    order = torch.randperm(len(shares), generator=generator, device=device)
    return shares[order.to(shares.device)]


def at_least_effective(weights: Tensor, wanted: float | None) -> Tensor:
    """Mixes weights with equal ones until enough of them count: w <- (1 - l) w + l (sum w) / N.

    With the smallest l in [0, 1] for which (sum w)^2 / sum w^2 >= `wanted`. The sum stays.

    Args:
        weights: [N] float64, >= 0.
        wanted: Effective number of workers; None: nothing is mixed. More than N counts as N.

    Returns:
        [N] float64.
    """
    total = weights.sum()
    if wanted is None or not bool(total > 0):
        return weights
    equal = 1.0 / len(weights)
    parts = weights / total
    # sum ((1 - l) p + l / N)^2 = (1 - l)^2 (sum p^2 - 1/N) + 1/N
    excess = float(parts.square().sum()) - equal
    allowed = max(0.0, 1.0 / wanted - equal)
    if excess <= allowed:
        return weights
    kept = math.sqrt(allowed / excess)
    return (parts * kept + (1.0 - kept) * equal) * total
