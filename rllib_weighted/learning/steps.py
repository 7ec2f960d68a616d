"""One optimizer step: the k-th minibatch of every worker, merged into one gradient."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.round_batch import RoundBatch
from rllib_weighted.learning.round_merger import RoundMerger
from rllib_weighted.merging import weighted_sum


class Steps(abc.ABC):
    """The optimizer steps of one round in one learner.

    All learners take part in every step, also one whose workers were all dropped: what is decided
    here follows from numbers that all of them have.

    Args:
        learner: The learner, whose hooks compute losses and gradients and apply them.
        module_id: The module's id.
        batch: The rows of this learner's workers.
        merger: Weighs the workers.
        workers: The workers of the round, over all learners.
        num_workers: N, also those that are not in the round.
    """

    def __init__(
        self,
        learner: Any,
        module_id: str,
        batch: RoundBatch,
        merger: RoundMerger,
        *,
        workers: Sequence[int],
        num_workers: int,
    ) -> None:
        self._learner = learner
        self._exchange = learner.exchange
        self._module_id = module_id
        self._batch = batch
        self._merger = merger
        self._workers = list(workers)
        self._num_workers = num_workers

    @abc.abstractmethod
    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Merges one minibatch; workers whose loss or gradient is not finite are left out.

        Returns:
            The losses of the workers that took part; None if the step was skipped.
        """

    @abc.abstractmethod
    def losses_of_round(self) -> WorkerLosses:
        """Returns each worker's loss over its whole batch, before the first step."""

    def finish(self) -> None:  # noqa: B027 (most have nothing to do)
        """Call it after the last step: only then do module and optimizer have its result."""

    def _of_all(
        self, own: Sequence[int], local: WorkerLosses | None, workers: Sequence[int]
    ) -> WorkerLosses:
        """Returns the losses of some workers, given those of this learner's."""
        return self._exchange.losses(own, local, workers=workers, num_workers=self._num_workers)

    def _flagged(self, flags: dict[int, bool]) -> set[int]:
        """Returns the workers that their learner has flagged."""
        rows = torch.tensor([float(flag) for flag in flags.values()]).view(-1, 1)
        table = self._exchange.of_workers(list(flags), rows, num_workers=self._num_workers)
        return set(table[:, 0].nonzero().flatten().tolist())


class MergedSteps(Steps):
    """Steps of one parameter set, with the weighted sum of all workers' gradients."""

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        workers = self._workers
        while workers:
            own = [worker for worker in workers if worker in self._batch.rows]
            local, losses = self._losses(minibatch, own, workers)
            bad = not_finite(workers, losses.total)
            reason = "its loss is not finite"
            if not bad:
                signals, merged = self._merger.weigh(workers, losses)
                if self._step_if_finite(local, own, workers, merged.weights):
                    self._merger.record(workers, signals, merged, losses)
                    return losses
                bad = self._with_bad_gradient(minibatch, own, workers)
                reason = "its gradient is not finite"
                if not bad:
                    break
            for worker in bad:
                self._merger.drop(worker, reason)
            workers = [worker for worker in workers if worker not in bad]
        self._merger.skip()
        return None

    def losses_of_round(self) -> WorkerLosses:
        """See `Steps.losses_of_round`."""
        with torch.no_grad():
            everything = Minibatch.of(self._batch.rows)
            return self._losses(everything, list(self._batch.rows), self._workers)[1]

    def _losses(
        self, minibatch: Minibatch, own: list[int], workers: list[int]
    ) -> tuple[WorkerLosses | None, WorkerLosses]:
        """Returns the losses of this learner's workers, with their graph, and those of all."""
        local = None
        if own:
            local = self._learner.worker_losses(self._module_id, self._batch, minibatch, own)
        return local, self._of_all(own, local, workers)

    def _step_if_finite(
        self,
        local: WorkerLosses | None,
        own: list[int],
        workers: list[int],
        weights: Tensor,
    ) -> bool:
        learner = self._learner
        gradients: dict[Any, Tensor] = {}
        if local is not None:
            if len(own) < len(workers):  # The others' are with other learners.
                weights = weights[positions(own, workers)]
            loss = weighted_sum(local.total, weights)
            gradients = learner.loss_gradients(self._module_id, loss)
        gradients = self._exchange.gradients(gradients, learner.parameters_by_reference)
        # A gradient scaler looks for overflows itself, and lowers its scale.
        if learner.checks_gradients and not all_finite(gradients):
            return False
        learner.apply_gradients(learner.postprocess_gradients(gradients))
        return True

    def _with_bad_gradient(
        self, minibatch: Minibatch, own: list[int], workers: list[int]
    ) -> list[int]:
        learner = self._learner
        flags = {}
        for worker in own:
            alone = learner.worker_losses(self._module_id, self._batch, minibatch, [worker])
            gradients = learner.loss_gradients(self._module_id, alone.total.sum())
            flags[worker] = not all_finite(gradients)
        bad = self._flagged(flags)
        return [worker for worker in workers if worker in bad]


def positions(some: Sequence[int], workers: Sequence[int]) -> list[int]:
    """Returns where some of the workers stand among them."""
    places = {worker: place for place, worker in enumerate(workers)}
    return [places[worker] for worker in some]


def all_finite(gradients: dict[Any, Tensor]) -> bool:
    """Whether no gradient holds a NaN or an infinity."""
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    return bool(torch.isfinite(norm))


def not_finite(workers: Sequence[int], values: Tensor) -> list[int]:
    """Returns the workers whose value ([n], in their order) is NaN or infinite."""
    finite = torch.isfinite(values)
    if finite.all():
        return []
    return [worker for worker, fine in zip(workers, finite.tolist(), strict=True) if not fine]
