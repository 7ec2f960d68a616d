"""Optimizer steps with a merge that looks at the gradients: one row of a matrix per worker."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest
from rllib_weighted.core.seeding import Stream, stream_seed
from rllib_weighted.learning.gradients import WorkerGradients
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.steps import Round, SharedSteps, not_finite, positions
from rllib_weighted.merging import Merge, TorchJD
from rllib_weighted.merging.aggregators import drawing_from


class AggregatedSteps(SharedSteps):
    """Steps of one parameter set, with the workers' gradients merged by an aggregator.

    Every learner gets the gradients of all workers, and aggregates them alike.

    Args:
        round: The round.
        strategy: Makes the aggregator, a new one for every round.
        request: The round's request; what the aggregator draws is counted from it.
    """

    def __init__(self, round: Round, strategy: TorchJD, request: UpdateRequest) -> None:
        super().__init__(round)
        self._gradients = WorkerGradients(round)
        self._strategy = strategy
        self._aggregator = strategy.make()
        self._seed = stream_seed(request.root_seed, Stream.SHARES, request.round)

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        if not self._workers:
            self._merger.skip()
            return None
        local, rows = None, torch.zeros(0, self._gradients.num_parameters)
        if self._own:
            found = self._gradients.of(minibatch)
            local, rows = found.losses, found.total
        losses = self._collectives.losses(self._own, local, self._workers)
        matrix = self._collectives.of_workers(self._own, rows)[self._workers]
        kept = self._without_bad_ones(losses, matrix)
        if not kept:
            self._merger.skip()
            return None
        if len(kept) < len(self._workers):
            places = positions(kept, self._workers)
            losses, matrix = losses.take(places), matrix[places]
        merge = self._step(matrix)
        if merge is None:
            self._merger.skip()
            return None
        signals, _ = self._merger.weigh(kept, losses)
        self._merger.record(kept, signals, merge, losses)
        return losses

    def _without_bad_ones(self, losses: WorkerLosses, matrix: Tensor) -> list[int]:
        bad = dict.fromkeys(not_finite(self._workers, losses.total), "its loss is not finite")
        for worker in not_finite(self._workers, matrix.sum(1)):
            bad.setdefault(worker, "its gradient is not finite")
        for worker, reason in bad.items():
            self._merger.drop(worker, reason)
        return [worker for worker in self._workers if worker not in bad]

    def _step(self, matrix: Tensor) -> Merge | None:
        """Takes a step; None, and nothing has changed, if its gradient is not finite."""
        self._seed += 1  # Of every step its own.
        with drawing_from(self._seed):
            merged, weights = self._strategy.aggregate(matrix, self._aggregator)
        if not bool(torch.isfinite(merged).all()):
            return None
        parameters = dict(self._round.module.named_parameters())
        gradients = {
            parameters[name]: gradient.to(parameters[name])
            for name, gradient in self._gradients.named(merged).items()
        }
        self._learner.apply_gradients(self._learner.postprocess_gradients(gradients))
        return Merge(weights.abs() / weights.abs().sum(), weights)
