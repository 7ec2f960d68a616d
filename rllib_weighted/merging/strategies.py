"""Strategies: signals of N workers -> N shares -> N weights.

A strategy is a `Weighting`. Those built in are frozen dataclasses, whose fields are the
`merge_options` of that strategy. They know nothing of models or gradients.
"""

from __future__ import annotations

import abc
import math
import numbers
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, FiniteFloat, PositiveInt
from torch import Tensor

from rllib_weighted.merging import shares as transforms
from rllib_weighted.merging.shares import Direction, NegativeSignalError, Offset, Transform
from rllib_weighted.merging.signals import LossName, LossScope, loss_signal


class Weighting(abc.ABC):
    """Base of all merge strategies: maps workers' signals to shares, and shares to weights.

    A subclass declares which `signals` it reads and defines `shares`; the minimum weight is added
    here. Make it a frozen dataclass to give it options: each field is one, and is checked by its
    annotation.

    Examples:
        >>> import torch
        >>> from rllib_weighted.merging import Weighting, merge
        >>> class RewardPerLoss(Weighting):
        ...     signals = ("return", "loss")
        ...
        ...     def shares(self, returns, losses, *, generator=None):
        ...         return torch.softmax(returns / losses, dim=0)
        >>> merged = merge(RewardPerLoss(), {"return": [2.0, 1.0], "loss": [2.0, 1.0]})
        >>> merged.shares.tolist()
        [0.5, 0.5]

    Attributes:
        uses_min_weight: Whether `min_weight` changes its weights.
        has_own_floor: Whether no minimum weight is added unless one is set, because the rule gives
            every worker something by itself.
        aggregates_gradients: Whether it merges the gradient matrix itself, by `aggregate`, and has
            no weights of its own; see `TorchJD`.
        optional_signals: Those of its signals that no worker may have; `shares` then gets NaN.
        smoothing: Where an object has it (as an option, say), the learner gives it moving averages
            of its signals, s <- b s_before + (1 - b) s, with b = `smoothing` in [0, 1).
        per_worker_parameters: What the setting of this name is if the config leaves it at None.
            In a user's class also under its older name, `own_parameters`.
        signal: The older way to declare a signal: "reward" (the signal `return`), "loss" (that of
            `loss` and `scope`, if the class has such options) or "none".
    """

    uses_min_weight: ClassVar[bool] = True
    has_own_floor: ClassVar[bool] = False
    aggregates_gradients: ClassVar[bool] = False
    per_worker_parameters: ClassVar[bool] = False
    optional_signals: ClassVar[tuple[str, ...]] = ()
    signal: ClassVar[str]

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Takes the older names of what a class declares for the new ones."""
        super().__init_subclass__(**kwargs)
        declared = vars(cls)
        if "signal" in declared and "signals" not in declared:
            cls.signals = Weighting.signals  # type: ignore[method-assign]
        if "own_parameters" in declared:
            cls.per_worker_parameters = declared["own_parameters"]

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals (in `SIGNALS`) that `shares` is given, in this order.

        A class attribute, `signals = ("return", "loss")`, or a property if it depends on options.
        """
        if self.signal == "loss":
            options = getattr(self, "loss", "total"), getattr(self, "scope", "minibatch")
            return (loss_signal(*options),)
        return ("return",) if self.signal == "reward" else ()

    @abc.abstractmethod
    def shares(self, *signals: Any, **kwargs: Any) -> Tensor:  # Any: subclasses name theirs.
        """Each worker's share of the merge.

        Args:
            signals: One argument for each name in `signals`: [N] float64, all finite (a missing
                one is already filled), N >= 1 workers that take part. Not to be written to. A
                strategy without signals gets one argument, zeros.
            kwargs: `generator`, a `torch.Generator` or None: the random stream of strategies that
                draw.

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
        if min_weight is None:
            return shares + 1.0 / len(shares)
        is_number = isinstance(min_weight, numbers.Real) and not isinstance(min_weight, bool)
        if not (is_number and 0.0 <= min_weight < math.inf):
            raise ValueError(
                f"min_weight should be a finite number >= 0, found {min_weight!r}: "
                "use None for 1/N (N = number of workers), or 0 for no minimum"
            )
        return shares + float(min_weight)

    def problems(self) -> list[str]:
        """What is wrong with the options: should be, found, remedy, a sentence each.

        Only what their annotations cannot say (which may be pydantic's, `PositiveInt` say). Start
        a sentence with the name of its option in backquotes.
        """
        return []


class _Unweighted(Weighting):
    """Every worker counts the same; what its gradient is multiplied by, a subclass says."""

    signals = ()
    signal = "none"
    uses_min_weight: ClassVar[bool] = False

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """p_i = 1/N: [N] -> [N]."""
        return torch.full_like(signals, 1.0 / len(signals), dtype=torch.float64)


@dataclass(frozen=True)
class Average(_Unweighted):
    """The mean of the workers' gradients: w_i = 1/N. Baseline; the minimum weight is ignored.

    Examples:
        >>> from rllib_weighted.merging import Average, merge
        >>> merge(Average(), [3.0, 1.0]).weights.tolist()
        [0.5, 0.5]
    """

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = 1/N: [N] -> [N]."""
        return torch.full_like(shares, 1.0 / len(shares), dtype=torch.float64)


@dataclass(frozen=True)
class Sum(_Unweighted):
    """The sum of the workers' gradients: w_i = 1. Baseline; the minimum weight is ignored.

    Examples:
        >>> from rllib_weighted.merging import Sum, merge
        >>> merge(Sum(), [3.0, 1.0]).weights.tolist()
        [1.0, 1.0]
    """

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = 1: [N] -> [N]."""
        return torch.ones_like(shares, dtype=torch.float64)


@dataclass(frozen=True)
class ActorAverage(Average):
    """`Average` with parameters per worker (Actor-avg): g_i' = g_i + mean_j g_j.

    Idea from arXiv 2304.12778: global consistency, individual exploration; it breaks when the
    workers drift too far apart.

    Examples:
        >>> from rllib_weighted import WeightedPPOConfig
        >>> WeightedPPOConfig().training(
        ...     merge_strategy="actor_average"
        ... ).uses_per_worker_parameters
        True
    """

    per_worker_parameters: ClassVar[bool] = True


@dataclass(frozen=True)
class ActorSum(Sum):
    """`Sum` with parameters per worker (Actor-sum): g_i' = g_i + sum_j g_j.

    Idea from arXiv 2304.12778; see `ActorAverage`.

    Examples:
        >>> from rllib_weighted.merging import ActorSum, merge
        >>> merge(ActorSum(), [3.0, 1.0]).weights.tolist()
        [1.0, 1.0]
    """

    per_worker_parameters: ClassVar[bool] = True


Smoothing: TypeAlias = Annotated[FiniteFloat, Field(ge=0, lt=1)]
EffectiveWorkers: TypeAlias = Annotated[FiniteFloat, Field(ge=1)] | None


@dataclass(frozen=True)
class _SignalWeighted(Weighting):
    """Weights that follow a signal; the options that reward and loss have in common."""

    offset: Offset = "auto"
    direction: Direction = "high"
    transform: Transform = "proportional"
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    top_k: PositiveInt | None = None
    normalize: bool = False
    smoothing: Smoothing = 0.0
    min_effective_workers: EffectiveWorkers = None

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Shares of the signals, turned by `direction` and shifted by `offset`: [N] -> [N].

        Softmax, rank and top-k do not change under a shift, so they read the unshifted signals:
        same shares, no rounding; a numeric offset is still checked.

        Raises:
            NegativeSignalError: If a numeric offset leaves a signal negative.
        """
        oriented = signals.neg() if self.direction == "low" else signals
        if not isinstance(self.offset, str):
            worker = int(oriented.argmin())
            if float(oriented[worker]) + self.offset < 0:
                signal = float(signals[worker])
                raise NegativeSignalError(worker, signal, self.offset, self.direction)
        if self.transform == "softmax":
            return transforms.softmax(oriented, self.temperature)
        if self.transform == "rank":
            return transforms.rank(oriented)
        if self.transform == "top_k":
            assert self.top_k is not None  # `problems` says so.
            return transforms.best_k(oriented, self.top_k)
        shares = transforms.proportional(oriented, self.offset)
        return transforms.permuted(shares, generator) if self.transform == "random" else shares

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = p_i + m, [N] -> [N]; with `normalize`, w / sum w.

        Raises:
            ValueError: if `min_weight` is not a finite number >= 0.
        """
        weights = super().weights(shares, min_weight=min_weight)
        weights = transforms.at_least_effective(weights, self.min_effective_workers)
        if self.normalize:
            parts = weights / weights.amax()  # before the sum, which a large m would overflow
            return parts / parts.sum()
        return weights

    def problems(self) -> list[str]:
        """See `Weighting.problems`."""
        if self.transform == "top_k" and self.top_k is None:
            return [
                "`top_k` should be a whole number >= 1 when transform='top_k', found None: "
                "set it to the number of workers to keep"
            ]
        return []


@dataclass(frozen=True)
class RewardWeighted(_SignalWeighted):
    """R-Weighted: the higher a worker's reward among the workers, the more its gradient weighs.

    The signal is the mean undiscounted return of the worker's episodes that ended in the round,
    or one that is new in every round, however long the episodes are; see `signal`.
    Idea from arXiv 2304.12778; the formula w_i = p_i + m is ours, after arXiv 2304.12778.

    Examples:
        >>> from rllib_weighted.merging import RewardWeighted, merge
        >>> merge(RewardWeighted(), [3.0, 1.0], min_weight=0.5).weights.tolist()
        [1.25, 0.75]

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
        smoothing: b in [0, 1) of a moving average of the signal over the rounds (of a loss on
            minibatches: over the steps), s <- b s_before + (1 - b) s.
        min_effective_workers: E >= 1: the weights are mixed with equal ones until
            (sum w)^2 / sum w^2 >= E. None: they are not.
        signal: "return"; "reward_rate", the mean reward per step of the round; or "value_target",
            the mean value target (advantage + value) of the round.
    """

    # Here an option, and no longer the older way to declare a signal.
    signal: Literal["return", "reward_rate", "value_target"] = "return"  # type: ignore[misc]

    @property
    def signals(self) -> tuple[str, ...]:
        """The signal of that name."""
        return (self.signal,)


@dataclass(frozen=True)
class LossWeighted(_SignalWeighted):
    """L-Weighted: the higher a worker's loss among the workers, the more its gradient weighs.

    The paper leaves the direction open: direction="low" favours low losses. Idea from
    arXiv 2304.12778; the formula w_i = p_i + m is ours, after arXiv 2304.12778.

    Examples:
        >>> from rllib_weighted.merging import LossWeighted, merge
        >>> LossWeighted(loss="policy", scope="round").signals
        ('round_policy_loss',)
        >>> merge(LossWeighted(direction="low"), [3.0, 2.0, 1.0], min_weight=0).shares.tolist()
        [0.0, 0.3333333333333333, 0.6666666666666666]

    Attributes:
        offset, direction, transform, temperature, top_k: as in `RewardWeighted`.
        normalize, smoothing, min_effective_workers: as in `RewardWeighted`.
        loss: which loss of the worker is the signal.
        scope: "minibatch": on the minibatch being merged, detached; "round": on the worker's
            whole batch, before the first step of the round.
    """

    signal = "loss"
    loss: LossName = "total"
    scope: LossScope = "minibatch"

    @property
    def signals(self) -> tuple[str, ...]:
        """The loss of that name and scope."""
        return (loss_signal(self.loss, self.scope),)


@dataclass(frozen=True)
class _Adaptive(Weighting):
    """Weights that sum to 1 and have a floor of their own; a minimum weight only if one is set."""

    has_own_floor: ClassVar[bool] = True
    smoothing: Smoothing = 0.0
    min_effective_workers: EffectiveWorkers = None

    def weights(self, shares: Tensor, *, min_weight: float | None = None) -> Tensor:
        """w_i = p_i, mixed with 1/N by `min_effective_workers`, + m: [N] -> [N].

        Raises:
            ValueError: if `min_weight` is not a finite number >= 0.
        """
        mixed = transforms.at_least_effective(shares, self._wanted(len(shares)))
        return super().weights(mixed, min_weight=0.0 if min_weight is None else min_weight)

    def _wanted(self, num_workers: int) -> float | None:
        return self.min_effective_workers


@dataclass(frozen=True)
class Learnability(_Adaptive):
    """The more a worker's outcomes vary between success and failure, the more it weighs.

        l_i = q_i (1 - q_i),  w_i = (1 - e) l_i / sum_j l_j + e / N

    q_i = (k + 1) / (n + 2) for k successes in n episodes, both moving averages. Without a notion of
    success, l_i is the variance of the worker's returns in units of their range. All l_i = 0:
    w_i = 1/N. After the score by which LILO (NeurIPS 2025) and arXiv 2408.15099 choose what to
    sample; as weights ours. It does nothing where all workers succeed alike.

    Examples:
        >>> from rllib_weighted.merging import Learnability, merge
        >>> signals = {
        ...     "success": [0.5, 1.0],
        ...     "success_episodes": [98.0, 98.0],
        ...     "return_variance": [0.0, 0.0],
        ... }
        >>> merge(Learnability(uniform=0.0), signals).shares.round(decimals=3).tolist()
        [0.962, 0.038]

    Attributes:
        uniform: e in [0, 1], the part that all workers share equally.
        success_return: An episode with at least this return has succeeded; None: as the
            environment says in `info["is_success"]` or `info["success"]` at its end.
        smoothing, min_effective_workers: as in `RewardWeighted`.
    """

    signals = ("success", "success_episodes", "return_variance")
    optional_signals = ("success", "success_episodes", "return_variance")
    uniform: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.25
    success_return: FiniteFloat | None = None

    def shares(
        self,
        success: Tensor,
        episodes: Tensor,
        variance: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[N] each -> [N]; NaN throughout where no worker has the signal."""
        smoothed = (success * episodes + 1) / (episodes + 2)
        learnability = smoothed * (1 - smoothed)
        if bool(torch.isnan(learnability).all()):
            learnability = variance.nan_to_num(nan=0.0)
        parts = transforms.proportional(learnability, "auto")
        return parts * (1 - self.uniform) + self.uniform / len(parts)


@dataclass(frozen=True)
class AdvantageScaled(_Adaptive):
    """Weights by the scale of a worker's advantages: w_i ~ clip(sd_i / mean sd, 1/4, 4)^a.

    Beside `advantage_normalization="worker"`, a = 1 undoes its levelling, close to normalising over
    the batch: workers that saw no reward are not listened to. a = -1 quietens those with outliers.
    After PopArt (arXiv 1809.04474); the rule is ours.

    Examples:
        >>> from rllib_weighted.merging import AdvantageScaled, merge
        >>> merge(AdvantageScaled(), [3.0, 1.0]).weights.tolist()
        [0.75, 0.25]

    Attributes:
        exponent: a in [-2, 2].
        smoothing, min_effective_workers: as in `RewardWeighted`.
    """

    signals = ("advantage_scale",)
    exponent: Annotated[FiniteFloat, Field(ge=-2, le=2)] = 1.0

    def shares(self, signals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Standard deviations [N] -> [N]."""
        mean = signals.mean()
        relative = (signals / mean).clamp(0.25, 4.0) if bool(mean > 0) else torch.ones_like(signals)
        return transforms.proportional(relative**self.exponent, 0.0)


@dataclass(frozen=True)
class InverseVariance(_Adaptive):
    """The noisier a worker's gradient, the less it weighs: w_i ~ 1 / (sigma_i^2 + tau^2).

    sigma_i^2 is the noise within the worker's batch, tau^2 the spread between workers (random
    effects, DerSimonian & Laird 1986; in reinforcement learning arXiv 2201.01666). A worker that is
    quiet because it sees nothing gets a high weight: not for sparse rewards.

    Examples:
        >>> from rllib_weighted.merging import InverseVariance, merge
        >>> signals = {"gradient_noise": [1.0, 3.0], "gradient_spread": [0.0, 0.0]}
        >>> merge(InverseVariance(), signals).weights.tolist()
        [0.75, 0.25]

    Attributes:
        smoothing: as in `RewardWeighted`.
        min_effective_workers: as in `RewardWeighted`; None is N/2.
    """

    signals = ("gradient_noise", "gradient_spread")
    smoothing: Smoothing = 0.95

    def shares(
        self, noise: Tensor, spread: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Variances, [N] each -> [N]."""
        variance = noise + spread
        if not bool((variance > 0).all()):  # Without noise at all: those workers, alike.
            return transforms.proportional((variance <= 0).to(torch.float64), 0.0)
        return transforms.proportional(variance.amin() / variance, 0.0)

    def _wanted(self, num_workers: int) -> float:
        return num_workers / 2 if self.min_effective_workers is None else self.min_effective_workers


BUILT_IN: dict[str, type[Weighting]] = {
    "average": Average,
    "sum": Sum,
    "reward_weighted": RewardWeighted,
    "loss_weighted": LossWeighted,
    "actor_average": ActorAverage,
    "actor_sum": ActorSum,
    "learnability": Learnability,
    "advantage_scaled": AdvantageScaled,
    "inverse_variance": InverseVariance,
}
"""Strategies by their names. The output of these classes (not of their subclasses) needs no check
at every merge."""

PREDICTED: dict[str, Weighting] = {
    **{name: cls() for name, cls in BUILT_IN.items() if not cls.per_worker_parameters},
    "advantage_scaled_inverse": AdvantageScaled(exponent=-1.0),
}
"""What diagnostics predict the speed of, by the name of the metric: strategies with their defaults,
and the one whose options turn it round. Those with parameters per worker weigh like two others."""
