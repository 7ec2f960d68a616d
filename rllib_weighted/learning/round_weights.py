"""The merges of one round: signals to weights at every step, and the account of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest, UpdateResult
from rllib_weighted.core.seeding import Stream, torch_generator
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.signal_memory import SignalMemory, Values, values_of
from rllib_weighted.merging import SIGNALS, Merge, Signal, is_quick, merge, quick_merge
from rllib_weighted.merging.shares import NegativeSignalError


@dataclass(frozen=True)
class QuickLoss:
    """Weights that follow from the losses of a minibatch alone, as `merging.quick_weights` does.

    Attributes:
        part: The part of the loss that is the signal.
        from_lowest: Whether signals count from the lowest one.
    """

    part: str
    from_lowest: bool


class RoundWeights:
    """Weighs the workers of every step of a round and keeps what the report needs.

    Args:
        request: How the round's gradients are merged.
        memory: What the learner remembers of signals; None: nothing yet.
        part: Names the part of the loss that is weighed, where there are several.
    """

    def __init__(
        self, request: UpdateRequest, memory: SignalMemory | None = None, part: str = ""
    ) -> None:
        self._request = request
        self._memory = SignalMemory() if memory is None else memory
        self._smoothing = float(getattr(request.strategy, "smoothing", 0.0))
        # With a strategy that reads no signal, the workers' returns are what is reported.
        self._signals = [SIGNALS[name] for name in request.strategy.signals or ("return",)]
        self._quick = request.strategy if is_quick(request.strategy) else None
        self._part = part
        self._value: RoundWeights | None = None
        if request.value_strategy is not None:
            of_value = dataclasses.replace(
                request,
                strategy=request.value_strategy,
                min_weight=request.value_min_weight,
                value_strategy=None,
            )
            self._value = RoundWeights(of_value, self._memory, "value")
        self._of_round: dict[str, Values] = {}
        self.take({"return": request.reward_signals, **request.episode_signals})
        self.take(self._memory.gradients, fresh=())
        self._generator = torch_generator(request.root_seed, Stream.SHARES, request.round)
        self._fixed: dict[tuple[int, ...], tuple[Tensor, Merge]] = {}
        # Workers -> signals, shares, weights and losses, [n] each, of every step that they took.
        self._steps: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = {}
        self._drops: dict[int, str] = dict(request.invalid)
        self._num_skipped_steps = 0

    def needs(self, names: Iterable[str]) -> bool:
        """Whether the strategy reads one of these signals."""
        of_value = self._value is not None and self._value.needs(names)
        return of_value or any(signal.name in names for signal in self._signals)

    def take(self, signals: Mapping[str, Values], fresh: Iterable[int] | None = None) -> None:
        """Takes signals of the whole round, name -> worker -> value.

        Args:
            signals: Those that the strategy does not read are ignored.
            fresh: Workers whose values are new, for `smoothing`. None: those of episodes, where
                one has ended in this round; all, of other signals.
        """
        if self._value is not None:
            self._value.take(signals, fresh)
        ended = {worker for worker, age in self._request.ages.items() if age == 0}
        for signal in self._signals:
            if signal.name in signals:
                known = ended if signal.measured_on == "episodes" else None
                self._of_round[signal.name] = self._memory.smoothed(
                    self._part + signal.name,
                    signals[signal.name],
                    self._smoothing,
                    known if fresh is None else fresh,
                )

    @property
    def needs_round_losses(self) -> bool:
        """Whether a signal is each worker's loss over its whole batch before the first step."""
        of_value = self._value is not None and self._value.needs_round_losses
        return of_value or any(signal.loss and signal.when == "round" for signal in self._signals)

    def set_round_losses(self, workers: Sequence[int], losses: WorkerLosses) -> None:
        """Takes the losses that are signals of the whole round."""
        if self._value is not None:
            self._value.set_round_losses(workers, losses)
        for signal in self._signals:
            if signal.loss and signal.when == "round":
                numbers = losses.part(signal.loss).detach().double().cpu()
                self._of_round[signal.name] = self._memory.smoothed(
                    self._part + signal.name, values_of(workers, numbers), self._smoothing
                )

    def weigh(self, workers: Sequence[int], losses: WorkerLosses) -> tuple[Tensor, Merge]:
        """Returns signals and merge of the workers that take part in one step.

        Args:
            workers: Their indices.
            losses: Their losses on this minibatch, in the same order.

        Returns:
            The (first) signal [n] (NaN = missing), and weights and shares [n].

        Raises:
            ValueError: If a numeric offset leaves a signal negative; it names the worker.
        """
        key = tuple(workers)
        if key in self._fixed:
            return self._fixed[key]
        signals = {signal.name: self._values(signal, key, losses) for signal in self._signals}
        merged = self._merge(key, signals)
        if self._value is not None:
            _, of_value = self._value.weigh(workers, losses)
            merged = dataclasses.replace(merged, value_weights=of_value.weights)
        found = signals[self._signals[0].name], merged
        if self.is_fixed:
            self._fixed[key] = found
        return found

    @property
    def is_fixed(self) -> bool:
        """Whether the weights of some workers are the same at every step."""
        of_value = self._value is None or self._value.is_fixed
        return of_value and all(signal.when == "round" for signal in self._signals)

    @property
    def has_value_weights(self) -> bool:
        """Whether the value function's part of the loss has weights of its own."""
        return self._value is not None

    @property
    def quick_loss(self) -> QuickLoss | None:
        """How weights follow from the losses of a minibatch alone; None: they do not."""
        (signal, *_), strategy = self._signals, self._quick
        is_alone = self._value is None and not self._smoothing
        if strategy is None or not is_alone or signal.when != "minibatch" or signal.loss is None:
            return None
        return QuickLoss(signal.loss, strategy.offset == "min")

    def min_weight_of(self, num_workers: int) -> float:
        """The minimum weight of a merge of so many workers."""
        given = self._request.min_weight
        return 1.0 / num_workers if given is None else given

    def weigh_before(self, workers: Sequence[int]) -> tuple[Tensor, Merge]:
        """As `weigh`, before there is any loss; only where `is_fixed`."""
        return self.weigh(workers, WorkerLosses(torch.zeros(len(workers), dtype=torch.float64)))

    def _values(self, signal: Signal, workers: tuple[int, ...], losses: WorkerLosses) -> Tensor:
        if signal.when == "minibatch":
            assert signal.loss is not None  # Nothing else is measured on a minibatch.
            measured = losses.part(signal.loss).detach()
            if not self._smoothing:
                return measured
            now = values_of(workers, measured)
            known = self._memory.smoothed(self._part + signal.name, now, self._smoothing)
        else:
            known = self._of_round.get(signal.name, {})
        values = [known.get(worker, math.nan) for worker in workers]
        return torch.tensor(values, dtype=torch.float64, device=losses.total.device)

    def _merge(self, workers: tuple[int, ...], signals: dict[str, Tensor]) -> Merge:
        strategy, min_weight = self._request.strategy, self._request.min_weight
        if self._quick is not None:
            (values,) = signals.values()
            if values.is_cpu and (quick := quick_merge(self._quick, values, min_weight=min_weight)):
                return quick
        try:
            return merge(strategy, signals, min_weight=min_weight, generator=self._generator)
        except NegativeSignalError as error:
            raise error.at(workers[error.worker]) from None

    def record(
        self, workers: Sequence[int], signals: Tensor, merged: Merge, losses: WorkerLosses
    ) -> None:
        """Notes a step that was taken."""
        step = signals, merged.shares, merged.weights, losses.total.detach()
        self._steps.setdefault(tuple(workers), []).append(step)

    def drop(self, worker: int, reason: str) -> None:
        """Notes that a worker was left out of a merge."""
        self._drops.setdefault(worker, reason)

    def skip(self) -> None:
        """Notes a step that was not taken, because no worker was left."""
        self._num_skipped_steps += 1

    def result(self) -> UpdateResult:
        """Returns what the merges of this round did, averaged over its steps."""
        num_workers = self._request.num_workers
        sums = torch.zeros(4, num_workers, dtype=torch.float64)
        counts = torch.zeros(4, num_workers, dtype=torch.float64)
        for workers, steps in self._steps.items():
            columns = [torch.stack(column).double().cpu() for column in zip(*steps, strict=True)]
            values = torch.stack(columns)  # [4, steps, workers]
            known = torch.isfinite(values)
            index = torch.tensor(workers)
            sums[:, index] += torch.where(known, values, 0.0).sum(1)
            counts[:, index] += known.sum(1)
        taken = sum(map(len, self._steps.values()))
        means = (sums / counts).tolist()
        over_steps = (sums / max(1, taken)).tolist()
        return UpdateResult(
            signals=[None if math.isnan(x) else x for x in means[0]],
            shares=over_steps[1],
            weights=over_steps[2],
            losses=[None if math.isnan(x) else x for x in means[3]],
            drops=[self._drops.get(worker) for worker in range(num_workers)],
            num_steps=taken,
            num_skipped_steps=self._num_skipped_steps,
            ages=self._ages(),
        )

    def _ages(self) -> list[int | None]:
        """Rounds since each worker's (first) signal was measured."""
        signal, request = self._signals[0], self._request
        if signal.measured_on == "episodes":
            ages = request.ages
        elif signal.measured_on == "gradients":
            ages = self._memory.gradient_ages(request.round)
        elif signal.when == "round":
            ages = dict.fromkeys(self._of_round.get(signal.name, ()), 0)
        else:
            ages = dict.fromkeys((worker for workers in self._steps for worker in workers), 0)
        return [ages.get(worker) for worker in range(request.num_workers)]
