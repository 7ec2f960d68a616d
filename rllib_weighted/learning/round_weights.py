"""The merges of one round: signals to weights at every step, and the account of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest, UpdateResult
from rllib_weighted.core.seeding import Stream, torch_generator
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.merging import SIGNALS, Merge, Signal, is_quick, merge, quick_merge
from rllib_weighted.merging.shares import NegativeSignalError


class RoundWeights:
    """Weighs the workers of every step of a round and keeps what the report needs.

    Args:
        request: How the round's gradients are merged.
    """

    def __init__(self, request: UpdateRequest) -> None:
        self._request = request
        # With a strategy that reads no signal, the workers' returns are what is reported.
        self._signals = [SIGNALS[name] for name in request.strategy.signals or ("return",)]
        self._quick = request.strategy if is_quick(request.strategy) else None
        self._of_round: dict[str, dict[int, float]] = {"return": request.reward_signals}
        self._generator = torch_generator(request.root_seed, Stream.SHARES, request.round)
        self._fixed: dict[tuple[int, ...], tuple[Tensor, Merge]] = {}
        # Workers -> signals, shares, weights and losses, [n] each, of every step that they took.
        self._steps: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = {}
        self._drops: dict[int, str] = dict(request.invalid)
        self._num_skipped_steps = 0

    @property
    def needs_round_losses(self) -> bool:
        """Whether a signal is each worker's loss over its whole batch before the first step."""
        return any(signal.loss and signal.when == "round" for signal in self._signals)

    def set_round_losses(self, workers: Sequence[int], losses: WorkerLosses) -> None:
        """Takes the losses that are signals of the whole round."""
        for signal in self._signals:
            if signal.loss and signal.when == "round":
                values = losses.part(signal.loss).detach().double().cpu().tolist()
                self._of_round[signal.name] = dict(zip(workers, values, strict=True))

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
        found = signals[self._signals[0].name], self._merge(key, signals)
        if all(signal.when == "round" for signal in self._signals):
            self._fixed[key] = found
        return found

    def _values(self, signal: Signal, workers: tuple[int, ...], losses: WorkerLosses) -> Tensor:
        if signal.when == "minibatch":
            assert signal.loss is not None  # Nothing else is measured on a minibatch.
            return losses.part(signal.loss).detach()
        known = self._of_round[signal.name]
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
        )
