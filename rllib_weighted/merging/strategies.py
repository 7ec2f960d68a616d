"""Strategies: signals of N workers -> N shares -> N weights.

A strategy is a `Weighting`. Those built in are frozen dataclasses, whose fields are the
`merge_options` of that strategy. They know nothing of models or gradients.
"""

from __future__ import annotations

import abc
import math
import numbers
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from rllib_weighted.merging.shares import Direction, Offset, Transform, signal_shares

Signal: TypeAlias = Literal["reward", "loss", "none"]
LossName: TypeAlias = Literal["total", "policy", "value"]
LossScope: TypeAlias = Literal["minibatch", "round"]


def checked_min_weight(min_weight: object, num_workers: int) -> float:
    """The minimum weight m to use: `min_weight`, or 1/N if it is None.

    Raises:
        ValueError: if it is neither None nor a finite number >= 0 (a bool is not a number).
    """
    if min_weight is None:
        return 1.0 / num_workers
    if isinstance(min_weight, numbers.Real) and not isinstance(min_weight, bool):
        value = float(min_weight)
        if 0.0 <= value < math.inf:
            return value
    raise ValueError(
        f"min_weight should be a finite number >= 0, found {min_weight!r}: "
        "use None for 1/N (N = number of workers), or 0 for no minimum"
    )


class Weighting(abc.ABC):
    """Base of all merge strategies.

    A subclass says which `signal` it reads and maps the signals to shares; the minimum weight is
    added here. Make it a frozen dataclass to give it options: each field is one, and is checked
    by its annotation.

    Attributes:
        signal: what a worker reports to it: "reward" (mean undiscounted return of its episodes),
            "loss" (its own loss on the minibatch being merged) or "none" (it is handed zeros).
        uses_min_weight: whether `min_weight` changes its weights.
        per_worker_parameters: whether every worker keeps parameters and an optimizer state,
            and adds the merged gradient to its own one: g_i' = g_i + sum_j w_j g_j, the gradient
            of worker j taken at its own parameters. False: all share one set, and only the merged
            gradient moves it.
    """

    signal: ClassVar[Signal]
    uses_min_weight: ClassVar[bool] = True
    per_worker_parameters: ClassVar[bool] = False

    @abc.abstractmethod
    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Each worker's share of the merge.

        Args:
            signals: [N] float64, all finite (a missing signal is already filled), N >= 1 workers
                that take part. Not to be written to.
            generator: random stream, for strategies that draw.

        Returns:
            [N] float64, >= 0, sum 1.
        """

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = p_i + m, so that sum w = 1 + N m (ours, after arXiv 2304.12778).

        Args:
            shares: [N] float64, as `shares` returned them.
            min_weight: m >= 0 (1/h in the paper); None is 1/N.

        Returns:
            [N] float64, >= 0.

        Raises:
            ValueError: if `min_weight` is not a finite number >= 0.
        """
        return shares + checked_min_weight(min_weight, len(shares))

    def problems(self) -> list[str]:
        """What is wrong with the values of the options: should be, found, remedy, a sentence each.

        Their types are checked before, from the annotations. Start a sentence with the name of
        its option in backquotes.
        """
        return []


def _uniform(like: Tensor) -> Tensor:
    return torch.full_like(like, 1.0 / len(like), dtype=torch.float64)


@dataclass(frozen=True)
class Average(Weighting):
    """The mean of the workers' gradients: w_i = 1/N. Baseline; the minimum weight is ignored."""

    signal: ClassVar[Signal] = "none"
    uses_min_weight: ClassVar[bool] = False

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """p_i = 1/N: [N] -> [N]."""
        return _uniform(signals)

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = 1/N: [N] -> [N]."""
        return _uniform(shares)


@dataclass(frozen=True)
class Sum(Weighting):
    """The sum of the workers' gradients: w_i = 1. Baseline; the minimum weight is ignored."""

    signal: ClassVar[Signal] = "none"
    uses_min_weight: ClassVar[bool] = False

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """p_i = 1/N: [N] -> [N]."""
        return _uniform(signals)

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = 1: [N] -> [N]."""
        return torch.ones_like(shares, dtype=torch.float64)


@dataclass(frozen=True)
class ActorAverage(Average):
    """Actor-avg: each worker keeps its own parameters, g_i' = g_i + mean_j g_j (w_j = 1/N).

    Idea from arXiv 2304.12778: global consistency, individual exploration; it breaks when the
    workers drift too far apart.
    """

    per_worker_parameters: ClassVar[bool] = True


@dataclass(frozen=True)
class ActorSum(Sum):
    """Actor-sum: each worker keeps its own parameters, g_i' = g_i + sum_j g_j (w_j = 1).

    Idea from arXiv 2304.12778; see `ActorAverage`.
    """

    per_worker_parameters: ClassVar[bool] = True


@dataclass(frozen=True)
class _SignalWeighted(Weighting):
    """Weights that follow a signal; the options that reward and loss have in common."""

    offset: Offset = "auto"
    direction: Direction = "high"
    transform: Transform = "proportional"
    temperature: float = 1.0
    top_k: int | None = None
    normalize: bool = False

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Shares of the shifted signals, [N] -> [N] (ours, after arXiv 2304.12778).

        Raises:
            ValueError: if a numeric offset leaves a signal negative; it names the worker.
        """
        return signal_shares(
            signals,
            offset=self.offset,
            direction=self.direction,
            transform=self.transform,
            temperature=self.temperature,
            top_k=self.top_k,
            generator=generator,
        )

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = p_i + m, [N] -> [N]; with `normalize`, w / sum w.

        Raises:
            ValueError: if `min_weight` is not a finite number >= 0.
        """
        weights = super().weights(shares, min_weight=min_weight)
        if self.normalize:
            parts = weights / weights.amax()  # before the sum, which a large m would overflow
            return parts / parts.sum()
        return weights

    def problems(self) -> list[str]:
        """Values that no merge can work with, one sentence each."""
        found = []
        if not isinstance(self.offset, str) and not math.isfinite(self.offset):
            found.append(
                f"`offset` should be 'auto', 'min' or a finite number, found {self.offset}: "
                "use 'auto'"
            )
        if not 0.0 < self.temperature < math.inf:
            found.append(
                f"`temperature` should be a finite number > 0, found {self.temperature}: "
                "use 1.0, or more to even out the shares"
            )
        if self.top_k is not None and self.top_k < 1:
            found.append(
                f"`top_k` should be a whole number >= 1, found {self.top_k}: "
                "use the number of workers to keep"
            )
        elif self.top_k is None and self.transform == "top_k":
            found.append(
                "`top_k` should be a whole number >= 1 when transform='top_k', found None: "
                "set it to the number of workers to keep"
            )
        return found


@dataclass(frozen=True)
class RewardWeighted(_SignalWeighted):
    """R-Weighted: the higher a worker's return among the workers, the more its gradient weighs.

    The signal is the mean undiscounted return of the worker's episodes that ended in the round.
    Idea from arXiv 2304.12778; the formula w_i = p_i + m is ours, after arXiv 2304.12778.

    Attributes:
        offset: what is added to every signal first, in the unit of the signal. "auto":
            max(0, -lowest), so non-negative signals stay proportional; "min": -lowest, always;
            a number: that number, an error if a signal stays negative.
        direction: "high": a higher signal weighs more; "low": the negated signal is used.
        transform: shifted signals -> shares. "proportional"; "softmax"; "rank" (1 ... N, ties
            the mean rank); "top_k" (1/k each to the k highest); "random" (the control: the
            proportional shares dealt out at random, so the spread is exactly the same).
        temperature: > 0, unit of the signal; of "softmax" only.
        top_k: k >= 1, of "top_k" only, which needs it; more than N counts as N.
        normalize: divide the weights by their sum, so that strategies differ in direction and
            not in step size.
    """

    signal: ClassVar[Signal] = "reward"


@dataclass(frozen=True)
class LossWeighted(_SignalWeighted):
    """L-Weighted: the higher a worker's loss among the workers, the more its gradient weighs.

    The paper leaves the direction open: direction="low" favours low losses. Idea from
    arXiv 2304.12778; the formula w_i = p_i + m is ours, after arXiv 2304.12778.

    Attributes:
        offset, direction, transform, temperature, top_k, normalize: as in `RewardWeighted`.
        loss: which loss of the worker is the signal.
        scope: "minibatch": on the minibatch being merged, detached; "round": on the worker's
            whole batch, before the first step of the round.
    """

    signal: ClassVar[Signal] = "loss"
    loss: LossName = "total"
    scope: LossScope = "minibatch"


BUILT_IN: frozenset[type[Weighting]] = frozenset(
    {Average, Sum, RewardWeighted, LossWeighted, ActorAverage, ActorSum}
)
"""Strategies whose output needs no check at every merge. Their subclasses are not in it."""
