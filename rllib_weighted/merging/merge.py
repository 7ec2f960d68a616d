"""Signals -> weights -> one merged loss, whose gradient is the merged gradient.

`merge` turns the workers' signals into weights. With weights held constant,
sum_i w_i grad L_i = grad sum_i w_i L_i: one backward pass over the weighted sum of the workers'
losses (`weighted_sum`) gives the merged gradient. Dropped workers are masked out. At the end:
`quick_merge`, the same merge in NumPy, for weights that are computed anew at every optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from rllib_weighted.merging.registry import resolve_strategy
from rllib_weighted.merging.shares import NegativeSignalError
from rllib_weighted.merging.signals import Present, Signals, as_signals, dropped_mask, fill_missing
from rllib_weighted.merging.strategies import BUILT_IN, LossWeighted, RewardWeighted, Weighting


@dataclass(frozen=True)
class Merge:
    """What a merge decided for each worker; 0 at dropped workers.

    Attributes:
        shares: [N] float64, sum 1.
        weights: [N] float64, what each worker's gradient is multiplied by.
        value_weights: [N] float64, the same for the value function's part of the loss; None: it
            has the same weights as the rest.
    """

    shares: Tensor
    weights: Tensor
    value_weights: Tensor | None = None

    def take(self, workers: Sequence[int]) -> Merge:
        """Returns what it decided for some of the workers, by their positions."""
        places = list(workers)
        of_value = None if self.value_weights is None else self.value_weights[places]
        return Merge(self.shares[places], self.weights[places], of_value)


def merge(
    strategy: Weighting,
    signals: Signals | Mapping[str, Signals],
    *,
    min_weight: float | None = None,
    present: Present | None = None,
    generator: torch.Generator | None = None,
) -> Merge:
    """Shares and weights of N workers (ours, after arXiv 2304.12778).

    A missing signal (None, NaN, infinite) takes the mean of the finite ones; if there is none,
    all shares are 1/N. A dropped worker counts as if it had never been there: N, the mean, the
    shares and the default minimum weight are those of the workers that remain.

    Args:
        strategy: As `resolve_strategy` returns it; its options are not checked again here.
        signals: [N], the signal that the strategy reads. Of a strategy that reads several: a
            mapping from their names to [N] each; of one that reads none, only N counts.
        min_weight: m >= 0; None is 1/N.
        present: [N] bool, False for dropped workers; None if none is.
        generator: Random stream, for strategies that draw.

    Returns:
        `Merge` on the device of the (first) signal.

    Raises:
        ValueError: If there is no worker or none is present, an argument is malformed, a numeric
            offset leaves a signal negative, or the strategy returns anything but N finite
            numbers >= 0.
    """
    values = _signals_of(strategy, signals)
    mask = dropped_mask(present, len(values[0]))
    if mask is None:
        return Merge(*_merge_present(strategy, values, min_weight, generator))
    workers = mask.nonzero().squeeze(1).to(values[0].device)
    remaining = [signal[workers] for signal in values]
    try:
        merged = _merge_present(strategy, remaining, min_weight, generator)
    except NegativeSignalError as error:
        raise error.at(int(workers[error.worker])) from None
    zeros = torch.zeros_like(values[0])
    return Merge(*(zeros.index_copy(0, workers, column) for column in merged))


def _signals_of(strategy: Weighting, signals: Signals | Mapping[str, Signals]) -> list[Tensor]:
    """The signals that the strategy reads, [N] each; if it reads none, any one, for its N."""
    names = strategy.signals
    if not isinstance(signals, Mapping) and len(names) < 2:
        return [as_signals(signals)]
    given = signals if isinstance(signals, Mapping) else {}
    if not given or any(name not in given for name in names):
        raise ValueError(
            f"signals of {type(strategy).__name__} should be a mapping with the keys "
            f"{list(names)}, found {list(given) or signals!r}: give N numbers under each of them"
        )
    values = [as_signals(given[name]) for name in names or list(given)[:1]]
    if len({len(signal) for signal in values}) > 1:
        raise ValueError(
            "signals should all have the same shape [N], found "
            f"{', '.join(str(list(signal.shape)) for signal in values)}: "
            "give one number per worker under each name"
        )
    return values


def _merge_present(
    strategy: Weighting,
    signals: list[Tensor],
    min_weight: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Shares and weights, [N] each, of workers that all take part."""
    like, is_built_in = signals[0], type(strategy) in BUILT_IN.values()
    if not strategy.signals:
        signals = [torch.zeros_like(like)]
    filled = []
    for name, signal in zip(strategy.signals or ("",), signals, strict=True):
        known = fill_missing(signal)
        if known is None and name in strategy.optional_signals:
            known = torch.full_like(signal, math.nan)
        if known is not None:
            filled.append(known)
    if len(filled) < len(signals):
        shares = torch.full_like(like, 1.0 / len(like))
    elif is_built_in:
        shares = strategy.shares(*filled, generator=generator)
    else:
        copies = [signal.clone() for signal in filled]
        shares = _checked(strategy, "shares", strategy.shares(*copies, generator=generator), like)
        if abs(float(shares.sum()) - 1.0) > 1e-6:
            raise ValueError(
                f"{type(strategy).__name__}.shares should sum to 1, found {float(shares.sum()):g}: "
                "divide them by their sum"
            )
    if is_built_in:
        return shares, strategy.weights(shares, min_weight=min_weight)
    weights = strategy.weights(shares.clone(), min_weight=min_weight)
    return shares, _checked(strategy, "weights", weights, like)


def _checked(strategy: Weighting, method: str, output: object, like: Tensor) -> Tensor:
    """What a user's strategy returned, as detached float64, or a ValueError that names it."""
    name = f"{type(strategy).__name__}.{method}"
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{name} should return a tensor, found {type(output).__name__}: return torch.Tensor [N]"
        )
    if output.shape != like.shape:
        raise ValueError(
            f"{name} should return the shape {list(like.shape)}, one number per worker, found "
            f"{list(output.shape)}: return as many as it was given"
        )
    result = output.detach().to(device=like.device, dtype=torch.float64)
    bad = ~(torch.isfinite(result) & (result >= 0))
    if bool(bad.any()):
        worker = int(bad.nonzero()[0])
        raise ValueError(
            f"{name} should return finite numbers >= 0, found {float(result[worker]):g} at "
            f"position {worker} of the {len(result)} workers that take part: correct the strategy"
        )
    return result


def merge_weights(
    signals: Signals,
    *,
    min_weight: float | None = None,
    present: Present | None = None,
    generator: torch.Generator | None = None,
    **options: object,
) -> Tensor:
    """The weights of N workers from their signals, as a pure function.

        p_i = (s_i + offset) / sum_j (s_j + offset),  w_i = p_i + m,  sum w = 1 + N m

    Ours, after arXiv 2304.12778. A worker with weight 2 moves the parameters exactly as two
    identical workers with weight 1 would.

    Examples:
        >>> from rllib_weighted import merge_weights
        >>> merge_weights([1.0, 3.0], offset="min").tolist()
        [0.5, 1.5]

    Args:
        signals: [N], a tensor or a sequence; None, NaN and infinities are missing.
        min_weight: m >= 0; None is 1/N.
        present: [N] bool, False for dropped workers, which get exactly 0; None if none is.
        generator: Random stream of `transform="random"`; None takes torch's global one.
        options: Those of `RewardWeighted`: offset, direction, transform, temperature, top_k and
            normalize.

    Returns:
        [N] float64, on the device of `signals`.

    Raises:
        ValueError: As `merge`, and with all problems of the options at once.
    """
    strategy = resolve_strategy("reward_weighted", options)
    merged = merge(strategy, signals, min_weight=min_weight, present=present, generator=generator)
    return merged.weights


def weighted_sum(losses: Tensor | Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_i w_i L_i over the workers with w_i != 0, by a mask and never by a product with 0.

    A loss with weight 0 may be NaN: neither the value nor the gradient with respect to `losses`
    sees it, which is exactly 0 there. Autograd still carries that 0 back through whatever
    computed the loss, and 0 x NaN is NaN: if a dropped worker's *samples* are not finite, take
    them out before the loss is computed, or give the losses as separate scalars, each with its
    own forward pass: then nothing is carried back to those with weight 0.

    Args:
        losses: [N], or N scalars; each the mean loss of one worker over its samples.
        weights: [N], taken as constants (detached), cast to the losses' dtype and device.

    Returns:
        [] scalar, dtype and device of the losses.

    Raises:
        ValueError: if `losses` and `weights` are not [N] each.
    """
    found = losses.shape if isinstance(losses, Tensor) else (len(losses),)
    if weights.ndim != 1 or weights.shape != found or len(weights) == 0:
        raise ValueError(
            "losses and weights should have the same shape [N], one of each per worker, found "
            f"{list(found)} and {list(weights.shape)}: reduce each worker's losses to one"
        )
    if not isinstance(losses, Tensor):
        kept = weights.nonzero().squeeze(1).tolist() or list(range(len(losses)))
        losses, weights = torch.stack([losses[worker] for worker in kept]), weights[kept]
    constants = weights.detach().to(device=losses.device, dtype=losses.dtype)
    return (losses.masked_fill(constants == 0, 0.0) * constants).sum()


def is_quick(strategy: Weighting) -> TypeGuard[LossWeighted | RewardWeighted]:
    """Whether `quick_merge` knows a strategy: shares in proportion to signals, weights p + m."""
    return (
        isinstance(strategy, (LossWeighted, RewardWeighted))
        and type(strategy) in BUILT_IN.values()
        and strategy.transform == "proportional"
        and strategy.direction == "high"
        and strategy.offset in ("auto", "min")
        and not strategy.normalize
        and strategy.min_effective_workers is None
    )


def quick_weights(
    signals: Tensor, from_lowest: bool, min_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `quick_merge`, on any device, and without a look at a number.

    Args:
        signals: [N] float64.
        from_lowest: Whether signals count from the lowest one; else only if that is negative.
        min_weight: m >= 0, [].

    Returns:
        Shares [N]; weights [N]; and whether the numbers are plain, []. If not, `merge` is to be
        asked.
    """
    lowest = signals.min()
    shares = signals - (lowest if from_lowest else lowest.clamp(max=0.0))
    total = shares.sum()
    shares = shares / total
    return shares, shares + min_weight, (total > _TINY) & torch.isfinite(total)


_TINY = 1e-300  # Below, halving a signal as `merge` does loses digits.


def quick_merge(
    strategy: LossWeighted | RewardWeighted, signals: Tensor, *, min_weight: float | None
) -> Merge | None:
    """Shares and weights of N workers that all take part, as `merge` gives them.

    A handful of NumPy calls in place of a dozen small tensor operations, whose overhead adds up
    over the steps of a round.

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
