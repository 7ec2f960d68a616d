"""Signals: what each worker reports for a merge, one number per worker.

`SIGNALS` is the table of them; a strategy declares by name which of them it reads. Below it: how
signals that a caller gives are read, missing ones filled in, and dropped workers masked out.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

LossName: TypeAlias = Literal["total", "policy", "value"]
LossScope: TypeAlias = Literal["minibatch", "round"]


@dataclass(frozen=True)
class Signal:
    """One row of the table of signals.

    Attributes:
        name: What strategies call it.
        unit: Unit of its numbers.
        when: "round": known before the first step, the same at every step of the round.
            "minibatch": measured anew at every step, on the minibatch being merged.
        meaning: What is measured.
        loss: Which of a worker's losses it is; None for what is not a loss.
        measured_on: "batch": the worker's steps of the round, so it is new in every round.
            "episodes": those that ended; "gradients": half-batches, every K-th round (see
            `merge_diagnostics_interval`). These two are kept until they are measured again.
    """

    name: str
    unit: str
    when: LossScope
    meaning: str
    loss: LossName | None = None
    measured_on: Literal["episodes", "batch", "gradients"] = "batch"

    @property
    def is_kept(self) -> bool:
        """Whether a worker without a new value keeps its last known one."""
        return self.measured_on != "batch"


_RETURN = "mean undiscounted return of the episodes that ended in the round; else the last known"
_REWARD_RATE = "mean reward per step of the round, before any scaling by connectors"
_VALUE_TARGET = "mean GAE value target (advantage + value) over the round's steps"
_ADVANTAGE_SCALE = "standard deviation of the round's advantages, before any normalisation"
_SUCCESS = (
    "share of ended episodes that succeeded, by info['is_success'] or info['success'], or by a "
    "return of `success_return` or more; moving average over the rounds"
)
_EPISODES = "ended episodes that `success` is the share of, likewise averaged"
_VARIANCE = (
    "variance of the returns of the last 32 ended episodes / (highest - lowest return that any "
    "worker has seen)^2; 0 if that is 0"
)
_NOISE = "sigma_i^2: variance of the worker's gradient within its own batch, |g_a - g_b|^2 / 4"
_SPREAD = "tau^2: variance of the gradient between workers, the same for all"
_AGREEMENT = "c_i: cosine of the worker's gradient and the mean of the others'"
_ON_MINIBATCH = "on the minibatch being merged, detached"
_ON_BATCH = "on the worker's whole batch, before the first step of the round"

SIGNALS: dict[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal("return", "reward", "round", _RETURN, measured_on="episodes"),
        Signal("reward_rate", "reward per step", "round", _REWARD_RATE),
        Signal("value_target", "that of the loss", "round", _VALUE_TARGET),
        Signal("success", "fraction", "round", _SUCCESS, measured_on="episodes"),
        Signal("success_episodes", "episodes", "round", _EPISODES, measured_on="episodes"),
        Signal("return_variance", "1", "round", _VARIANCE, measured_on="episodes"),
        Signal("advantage_scale", "that of the loss", "round", _ADVANTAGE_SCALE),
        Signal("gradient_noise", "squared gradient", "round", _NOISE, measured_on="gradients"),
        Signal("gradient_spread", "squared gradient", "round", _SPREAD, measured_on="gradients"),
        Signal("gradient_agreement", "1", "round", _AGREEMENT, measured_on="gradients"),
        Signal("loss", "loss", "minibatch", f"total loss {_ON_MINIBATCH}", "total"),
        Signal("policy_loss", "loss", "minibatch", f"policy loss {_ON_MINIBATCH}", "policy"),
        Signal("value_loss", "loss", "minibatch", f"value loss {_ON_MINIBATCH}", "value"),
        Signal("round_loss", "loss", "round", f"total loss {_ON_BATCH}", "total"),
        Signal("round_policy_loss", "loss", "round", f"policy loss {_ON_BATCH}", "policy"),
        Signal("round_value_loss", "loss", "round", f"value loss {_ON_BATCH}", "value"),
    )
}
"""All signals by name. A new one is a row here, and its values. Those of episodes come from the
driver (`core/episode_signals.py`) in the round's request, those of the batch and of gradients from
the learner (`learning/round_signals.py`), and losses from the minibatch."""


def loss_signal(loss: str, scope: str) -> str:
    """The name of the signal that is this loss, on the minibatch or on the whole batch."""
    name = "loss" if loss == "total" else f"{loss}_loss"
    return f"round_{name}" if scope == "round" else name


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
    if isinstance(value, Tensor) and value.numel() == 1:
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
