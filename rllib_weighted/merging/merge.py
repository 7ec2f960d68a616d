"""Weights x losses -> one merged loss, whose gradient is the merged gradient.

With weights held constant, sum_i w_i grad L_i = grad sum_i w_i L_i: one backward pass over the
weighted sum of the workers' losses gives the merged gradient. Dropped workers are masked out.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rllib_weighted.merging.registry import resolve_strategy
from rllib_weighted.merging.shares import Direction, NegativeSignalError, Offset, Transform
from rllib_weighted.merging.strategies import BUILT_IN, LossWeighted, RewardWeighted, Weighting

# What each worker reports for a merge: reading signals, filling missing ones, masking drops


Signals: TypeAlias = Tensor | Sequence[float | None]
"""One signal per worker, [N]; None, NaN and infinities mean "missing"."""

Present: TypeAlias = Tensor | Sequence[bool]
"""One bool per worker, [N]; False means "dropped from this merge"."""


def as_signals(signals: Signals) -> Tensor:
    """Read one signal per worker as a detached float64 tensor.

    Args:
        signals: [N], a tensor or a sequence of numbers; None stands for a missing signal. The
            unit is the caller's (return per episode, loss).

    Returns:
        [N] float64 on the device of `signals`; None has become NaN. It may share memory with
        `signals`: do not write to it.

    Raises:
        ValueError: if there is no signal, the shape is not [N], or an entry is not a real number.
    """
    if isinstance(signals, Tensor):
        if signals.dtype == torch.bool or signals.is_complex():
            raise ValueError(
                f"signals should be real numbers, found a tensor of {signals.dtype}: convert it"
            )
        values = signals.detach().to(torch.float64)
    else:
        values = torch.tensor(_numbers(signals), dtype=torch.float64)
    if values.ndim != 1:
        raise ValueError(
            f"signals should have the shape [N], one per worker, found {list(values.shape)}: "
            "reduce them to one number per worker"
        )
    if len(values) == 0:
        raise ValueError("signals should hold at least one worker, found none: a merge needs one")
    return values


def _numbers(signals: object) -> list[float]:
    """The entries of a sequence as floats, None as NaN."""
    if isinstance(signals, (str, bytes, Mapping, set, frozenset)) or not isinstance(
        signals, Iterable
    ):
        raise ValueError(
            f"signals should be a tensor or a sequence of numbers, found {type(signals).__name__}: "
            "give one number (or None) per worker, in the order of the workers"
        )
    return [_number(worker, value) for worker, value in enumerate(signals)]


def _number(worker: int, value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(
            f"the signal of worker {worker} should be a number or None, found {value!r} "
            f"({type(value).__name__}): give None if it is missing"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def fill_missing(values: Tensor) -> Tensor | None:
    """Give every non-finite signal the mean of the finite ones (ours, after arXiv 2304.12778).

    Args:
        values: [N] float64.

    Returns:
        [N] float64, all finite (`values` itself if nothing is missing), or None if no signal is
        finite, in which case the shares are 1/N whatever the strategy.
    """
    # The quick way out: a finite sum has finite terms. An infinite one may also be an overflow.
    if math.isfinite(values.sum().item()):
        return values
    finite = torch.isfinite(values)
    known = values[finite]
    if len(known) == 0:
        return None
    # Divided before summing, so that 1e308 does not overflow; clamped, so that the mean of equal
    # signals is that signal to the last bit. Otherwise offset="min" would blow up the rounding.
    mean = (known / len(known)).sum().clamp(known.amin(), known.amax())
    return torch.where(finite, values, mean)


def dropped_mask(present: Present | None, num_workers: int) -> Tensor | None:
    """Read which workers take part in the merge.

    Args:
        present: [N] bool, or None if all do.
        num_workers: N.

    Returns:
        [N] bool with at least one True and one False, or None if all workers are present.

    Raises:
        ValueError: if `present` is not [N] bool, or no worker is present.
    """
    if present is None:
        return None
    mask = torch.as_tensor(present)
    if mask.dtype != torch.bool:
        raise ValueError(
            f"present should hold bools, found {mask.dtype}: give True for each worker that "
            "takes part and False for each that is dropped"
        )
    if mask.shape != (num_workers,):
        raise ValueError(
            f"present should have the shape [{num_workers}], one bool per signal, found "
            f"{list(mask.shape)}: give one bool per worker"
        )
    if bool(mask.all()):
        return None
    if not bool(mask.any()):
        raise ValueError(
            f"present should keep at least one of the {num_workers} workers, found all dropped: "
            "skip this update"
        )
    return mask


@dataclass(frozen=True)
class Merge:
    """What a merge decided for each worker; 0 at dropped workers.

    Attributes:
        shares: [N] float64, sum 1.
        weights: [N] float64, what each worker's gradient is multiplied by.
    """

    shares: Tensor
    weights: Tensor


def merge(
    strategy: Weighting,
    signals: Signals,
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
        strategy: as `resolve_strategy` returns it; its options are not checked again here.
        signals: [N], the unit of the strategy's `signal`; ignored if that is "none".
        min_weight: m >= 0; None is 1/N.
        present: [N] bool, False for dropped workers; None if none is.
        generator: random stream, for strategies that draw.

    Returns:
        `Merge` on the device of `signals`.

    Raises:
        ValueError: if there is no worker or none is present, an argument is malformed, a numeric
            offset leaves a signal negative, or the strategy returns anything but N finite
            numbers >= 0.
    """
    values = as_signals(signals)
    mask = dropped_mask(present, len(values))
    if mask is None:
        return Merge(*_merge_present(strategy, values, min_weight, generator))
    workers = mask.nonzero().squeeze(1).to(values.device)
    try:
        remaining = _merge_present(strategy, values[workers], min_weight, generator)
    except NegativeSignalError as error:
        raise error.at(int(workers[error.worker])) from None
    zeros = torch.zeros_like(values)
    return Merge(*(zeros.index_copy(0, workers, column) for column in remaining))


def _merge_present(
    strategy: Weighting,
    values: Tensor,
    min_weight: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Shares and weights, [N] each, of workers that all take part."""
    trusted = type(strategy) in BUILT_IN
    filled = torch.zeros_like(values) if strategy.signal == "none" else fill_missing(values)
    if filled is None:
        shares = torch.full_like(values, 1.0 / len(values))
    elif trusted:
        shares = strategy.shares(filled, generator=generator)
    else:
        shares = strategy.shares(filled.clone(), generator=generator)
        shares = _checked(strategy, "shares", shares, like=values)
        if abs(float(shares.sum()) - 1.0) > 1e-6:
            raise ValueError(
                f"{type(strategy).__name__}.shares should sum to 1, found {float(shares.sum()):g}: "
                "divide them by their sum"
            )
    if trusted:
        return shares, strategy.weights(shares, min_weight=min_weight)
    weights = strategy.weights(shares.clone(), min_weight=min_weight)
    return shares, _checked(strategy, "weights", weights, like=values)


def _checked(strategy: Weighting, method: str, output: object, *, like: Tensor) -> Tensor:
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
    offset: Offset = "auto",
    direction: Direction = "high",
    transform: Transform = "proportional",
    normalize: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    present: Present | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The weights of N workers from their signals, as a pure function.

        p_i = (s_i + offset) / sum_j (s_j + offset),  w_i = p_i + m,  sum w = 1 + N m

    Ours, after arXiv 2304.12778. A worker with weight 2 moves the parameters exactly as two
    identical workers with weight 1 would.

    Args:
        signals: [N], a tensor or a sequence; None, NaN and infinities are missing.
        min_weight: m >= 0; None is 1/N.
        offset: added to every signal first: "auto", "min" or a number, in the unit of the signal.
        direction: "high": a higher signal weighs more; "low": a lower one does.
        transform: shifted signals -> shares: "proportional", "softmax", "rank", "top_k" or
            "random"; `RewardWeighted` says what each is.
        normalize: divide the weights by their sum.
        temperature: of "softmax", > 0, in the unit of the signal.
        top_k: of "top_k", which needs it: k >= 1.
        present: [N] bool, False for dropped workers, which get exactly 0; None if none is.
        generator: random stream of `transform="random"`; None takes torch's global one.

    Returns:
        [N] float64, on the device of `signals`.

    Raises:
        ValueError: as `merge`, and with all problems at once if options have wrong values.
    """
    strategy = RewardWeighted(
        offset=offset,
        direction=direction,
        transform=transform,
        temperature=temperature,
        top_k=top_k,
        normalize=normalize,
    )
    return merge(
        resolve_strategy(strategy),
        signals,
        min_weight=min_weight,
        present=present,
        generator=generator,
    ).weights


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


# The merge that is computed anew at every optimizer step, without a dozen tensor operations


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
