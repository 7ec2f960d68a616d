"""Signals -> shares: direction, offset, and the ways to turn shifted signals into shares.

All formulas here are ours, after arXiv 2304.12778. N is the number of workers that take part.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Offset: TypeAlias = Literal["auto", "min"] | float
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


def signal_shares(
    signals: Tensor,
    *,
    offset: Offset = "auto",
    direction: Direction = "high",
    transform: Transform = "proportional",
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shares of N workers from their signals (ours, after arXiv 2304.12778).

    Direction and offset come first, the transform is one of the shifted signals. Softmax, rank
    and top-k do not change under a shift, so they read the unshifted signals: same shares,
    no rounding; a numeric offset is still checked.

    Args:
        signals: [N] float64, all finite.
        offset: "auto", "min" or a number, in the unit of the signal; see `RewardWeighted`.
        direction: "high" or "low"; see `RewardWeighted`.
        transform: its name; see `RewardWeighted`.
        temperature: of "softmax", > 0, in the unit of the signal.
        top_k: of "top_k", k >= 1.
        generator: random stream of `transform="random"`; None takes torch's global one.

    Returns:
        [N] float64, >= 0, sum 1.

    Raises:
        ValueError: if a numeric offset leaves a signal negative, or an option is unknown.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction should be 'high' or 'low', found {direction!r}: use either")
    oriented = signals.neg() if direction == "low" else signals
    if not isinstance(offset, str):
        _check_offset(signals, oriented, float(offset), direction)
    if transform == "proportional":
        return proportional(oriented, offset)
    if transform == "softmax":
        return softmax(oriented, temperature)
    if transform == "rank":
        return rank(oriented)
    if transform == "top_k":
        return best_k(oriented, top_k)
    if transform == "random":
        return permuted(proportional(oriented, offset), generator)
    known = ", ".join(map(repr, get_args(Transform)))
    raise ValueError(f"transform should be one of {known}, found {transform!r}: use one of them")


def _check_offset(signals: Tensor, oriented: Tensor, offset: float, direction: str) -> None:
    worker = int(oriented.argmin())
    if float(oriented[worker]) + offset < 0:
        raise NegativeSignalError(worker, float(signals[worker]), offset, direction)


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
    elif isinstance(offset, str):
        raise ValueError(f"offset should be 'auto', 'min' or a number, found {offset!r}: use one")
    else:
        shifted.add_(0.5 * float(offset))
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


def best_k(oriented: Tensor, top_k: int | None) -> Tensor:
    """p_i = 1/k for the k highest, 0 for the rest; ties at the boundary split what is left.

    Args:
        oriented: [N] float64, finite, higher is better.
        top_k: k >= 1; more than N counts as N.

    Returns:
        [N] float64, >= 0, sum 1.

    Raises:
        ValueError: if `top_k` is not a whole number >= 1.
    """
    if top_k is None or top_k < 1:
        raise ValueError(
            f"top_k should be a whole number >= 1 when transform='top_k', found {top_k}: set it"
        )
    num_best = min(int(top_k), len(oriented))
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
