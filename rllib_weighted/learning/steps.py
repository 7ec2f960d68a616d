"""One optimizer step: the k-th minibatch of every worker, merged into one gradient."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_weighted.core.modules import StackedForward, swapped_parameters, why_not_stacked
from rllib_weighted.learning.adam import clip_rows
from rllib_weighted.learning.batch import RoundBatch
from rllib_weighted.learning.interfaces import TrainedModule
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.parameters import (
    PerWorkerParameters,
    Stacked,
    actor_gradients,
    finite_rows,
    weighted_rows,
)
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.merging import Merge, weighted_sum


@dataclass(frozen=True)
class Round(TrainedModule):
    """What the steps of one round work on, in one learner.

    Args:
        learner: The learner, whose hooks compute losses and gradients and apply them.
        module_id: The module's id.
        batch: The rows of this learner's workers.
        merger: Weighs the workers, and keeps account of every step.
        workers: The workers of the round, over all learners.
    """

    batch: RoundBatch
    merger: RoundWeights
    workers: list[int]

    @property
    def own(self) -> list[int]:
        """This learner's workers of the round."""
        return [worker for worker in self.workers if worker in self.batch.rows]

    def table(self, rows: Tensor) -> Tensor:
        """Returns what all learners know of their workers, given [n, width] of those here."""
        return self.learner.collectives.of_workers(list(self.batch.rows), rows)


class Steps(abc.ABC):
    """The optimizer steps of one round in one learner.

    All learners take part in every step, also one whose workers were all dropped: what is decided
    here follows from numbers that all of them have.
    """

    def __init__(self, round: Round) -> None:
        self._round = round
        self._learner = round.learner
        self._collectives = round.learner.collectives
        self._merger = round.merger
        self._workers = round.workers
        self._own = round.own
        self._settings = round.settings

    @abc.abstractmethod
    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Merges one minibatch; workers whose loss or gradient is not finite are left out.

        Returns:
            The losses of the workers that took part; None if the step was skipped.
        """

    def take_all(self, minibatches: Iterable[Minibatch]) -> WorkerLosses | None:
        """Merges one minibatch after the other; returns the losses of the last step taken."""
        losses = None
        for minibatch in minibatches:
            taken = self.take(minibatch)
            losses = losses if taken is None else taken
        return losses

    @abc.abstractmethod
    def losses_of_round(self) -> WorkerLosses:
        """Returns each worker's loss over its whole batch, before the first step."""

    def finish(self) -> None:  # noqa: B027 (most have nothing to do)
        """Call it after the last step: only then do module and optimizer have its result."""

    def _flagged(self, flags: Mapping[int, bool]) -> set[int]:
        """Returns the workers that their learner has flagged."""
        rows = torch.tensor([float(flag) for flag in flags.values()]).view(-1, 1)
        table = self._collectives.of_workers(list(flags), rows)
        return set(table[:, 0].nonzero().flatten().tolist())


class SharedSteps(Steps):
    """Steps of one parameter set, with the weighted sum of all workers' gradients."""

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        workers = self._workers
        while workers:
            own = [worker for worker in workers if worker in self._round.batch.rows]
            local, losses = self._losses(minibatch, own, workers)
            bad = not_finite(workers, losses.total)
            reason = "its loss is not finite"
            if not bad:
                signals, merged = self._merger.weigh(workers, losses)
                if self._step_if_finite(local, own, workers, merged):
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
            rows = self._round.batch.rows
            return self._losses(Minibatch.of(rows), list(rows), self._workers)[1]

    def _losses(
        self, minibatch: Minibatch, own: list[int], workers: list[int]
    ) -> tuple[WorkerLosses | None, WorkerLosses]:
        """Returns the losses of this learner's workers, with their graph, and those of all."""
        local = self._losses_of(minibatch, own) if own else None
        return local, self._collectives.losses(own, local, workers)

    def _losses_of(self, minibatch: Minibatch, workers: list[int]) -> WorkerLosses:
        round = self._round
        return self._learner.worker_losses(round.module_id, round.batch, minibatch, workers)

    def _step_if_finite(
        self,
        local: WorkerLosses | None,
        own: list[int],
        workers: list[int],
        merged: Merge,
    ) -> bool:
        learner = self._learner
        gradients: dict[Any, Tensor] = {}
        if local is not None:
            if len(own) < len(workers):  # The others' are with other learners.
                merged = merged.take(positions(own, workers))
            if merged.value_weights is None:
                loss = weighted_sum(local.total, merged.weights)
            else:
                value = self._settings.vf_loss_coeff * local.part("value")
                loss = weighted_sum(local.total - value, merged.weights)
                loss = loss + weighted_sum(value, merged.value_weights)
            gradients = learner.loss_gradients(self._round.module_id, loss)
        gradients = self._collectives.gradients(gradients, learner.parameters_by_reference)
        # A gradient scaler looks for overflows itself, and lowers its scale.
        if learner.checks_gradients and not all_finite(gradients):
            return False
        learner.apply_gradients(learner.postprocess_gradients(gradients))
        return True

    def _with_bad_gradient(
        self, minibatch: Minibatch, own: list[int], workers: list[int]
    ) -> list[int]:
        flags = {}
        for worker in own:
            loss = self._losses_of(minibatch, [worker]).total.sum()
            gradients = self._learner.loss_gradients(self._round.module_id, loss)
            flags[worker] = not all_finite(gradients)
        bad = self._flagged(flags)
        return [worker for worker in workers if worker in bad]


def positions(some: Sequence[int], workers: Sequence[int]) -> list[int]:
    """Returns where some of the workers stand among them."""
    places = {worker: place for place, worker in enumerate(workers)}
    return [places[worker] for worker in some]


def all_finite(gradients: Mapping[Any, Tensor]) -> bool:
    """Whether no gradient holds a NaN or an infinity."""
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    return bool(torch.isfinite(norm))


def not_finite(workers: Sequence[int], values: Tensor) -> list[int]:
    """Returns the workers whose value ([n], in their order) is NaN or infinite."""
    finite = torch.isfinite(values).tolist()
    return [worker for worker, fine in zip(workers, finite, strict=True) if not fine]


class PerWorkerSteps(Steps):
    """Steps with g_i' = g_i + sum_j w_j g_j (Actor-avg, Actor-sum; arXiv 2304.12778).

    All of this learner's workers are computed at once where the module can be stacked, else one
    after the other. A worker whose loss or gradient is not finite takes no part: the others merge
    without it, and its parameters and optimizer state stay as they are.

    Args:
        round: The round.
        parameters: All workers' parameters.
    """

    def __init__(self, round: Round, parameters: PerWorkerParameters) -> None:
        super().__init__(round)
        self._parameters = parameters
        self._forward = None
        if self._learner.has_stock_loss(round.module_id) and why_not_stacked(round.module) is None:
            self._forward = StackedForward(round.module)

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves every worker's parameters once; see `Steps.take`."""
        if not self._workers:
            self._merger.skip()
            return None
        local, gradients = self._losses_and_gradients(minibatch)
        losses = self._collectives.losses(self._own, local, self._workers)
        kept = self._without_bad_ones(losses, gradients)
        if not kept:
            self._merger.skip()
            return None
        if len(kept) < len(self._workers):
            losses = losses.take(positions(kept, self._workers))
        signals, merged = self._merger.weigh(kept, losses)
        self._step(gradients, kept, merged.weights)
        self._merger.record(kept, signals, merged, losses)
        return losses

    def losses_of_round(self) -> WorkerLosses:
        """Returns each worker's loss over its whole batch, at its parameters as they are now."""
        local = None
        with torch.no_grad():
            if self._own:
                everything = Minibatch.of(self._round.batch.rows)
                local = self._losses(everything, self._parameters.leaves(self._own))
            return self._collectives.losses(self._own, local, self._workers)

    # Losses and gradients of this learner's workers

    def _losses_and_gradients(self, minibatch: Minibatch) -> tuple[WorkerLosses | None, Stacked]:
        if not self._own:
            return None, {}
        leaves = self._parameters.leaves(self._own)
        losses = self._losses(minibatch, leaves)
        # No loss depends on the parameters of another worker: each row is that worker's gradient.
        found = torch.autograd.grad(losses.total.sum(), list(leaves.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
        return losses, gradients

    def _losses(self, minibatch: Minibatch, leaves: Stacked) -> WorkerLosses:
        if self._forward is not None:
            return stacked_losses(self._round, self._forward, minibatch, leaves)
        round, found = self._round, []
        for position, worker in enumerate(self._own):
            rows = {name: stacked[position] for name, stacked in leaves.items()}
            with swapped_parameters(round.module, {**self._parameters.of_worker(worker), **rows}):
                found.append(
                    self._learner.worker_losses(round.module_id, round.batch, minibatch, [worker])
                )
        return WorkerLosses.join(found)

    # The step

    def _without_bad_ones(self, losses: WorkerLosses, gradients: Stacked) -> list[int]:
        """Returns the workers that take part; notes why the others do not."""
        bad = dict.fromkeys(not_finite(self._workers, losses.total), "its loss is not finite")
        flags: dict[int, bool] = {}
        if gradients:
            flags = dict(zip(self._own, (~finite_rows(gradients)).tolist(), strict=True))
        for worker in sorted(self._flagged(flags)):
            bad.setdefault(worker, "its gradient is not finite")
        for worker, reason in bad.items():
            self._merger.drop(worker, reason)
        return [worker for worker in self._workers if worker not in bad]

    def _step(self, gradients: Stacked, kept: list[int], weights: Tensor) -> None:
        own = [worker for worker in self._own if worker in kept]
        if gradients and len(own) < len(self._own):
            places = positions(own, self._own)
            gradients = {name: rows[places] for name, rows in gradients.items()}
        own_weights = weights[positions(own, kept)]
        partial = weighted_rows(gradients, own_weights) if own else {}
        shapes = {name: stacked[0] for name, stacked in self._parameters.stacked.items()}
        merged = self._collectives.gradients(partial, shapes)
        if own and gradients:
            moved = actor_gradients(gradients, merged)
            clip, by = self._settings.grad_clip, self._settings.grad_clip_by
            clip_rows(list(moved.values()), clip=clip, by=by)
            self._apply(own, moved)

    def _apply(self, own: list[int], gradients: Stacked) -> None:
        """Steps the optimizer of own workers, each by its row of the gradients, [n, ...]."""
        rows = self._parameters.rows_of(own)
        self._parameters.optimizer.rows = rows
        full = {}
        for name, gradient in gradients.items():
            stacked = self._parameters.stacked[name]
            if rows == slice(None):
                full[stacked] = gradient
            else:
                full[stacked] = torch.zeros_like(stacked)
                full[stacked][rows] = gradient
        self._learner.apply_gradients(full)


def stacked_losses(
    round: Round, forward: StackedForward, minibatch: Minibatch, leaves: Stacked
) -> WorkerLosses:
    """Returns the losses of a minibatch's workers, each at its own row of the parameters.

    Args:
        round: A round with PPO's own loss.
        forward: Forward passes of the round's module.
        minibatch: The rows of one worker or more.
        leaves: Name -> [n, …], in the order of the minibatch's workers.
    """
    sizes = minibatch.sizes
    columns = round.batch.take(minibatch.rows(minibatch.workers))
    padded, real = padding(sizes)
    obs = columns[Columns.OBS][torch.from_numpy(padded).to(columns[Columns.OBS].device)]
    outputs = forward.forward_train(leaves, {Columns.OBS: obs})
    flat = {key: output.flatten(0, 1) for key, output in outputs.items()}
    if real is not None:
        index = torch.from_numpy(real).to(obs.device)
        flat = {key: output[index] for key, output in flat.items()}
    return round.learner.losses_of_rows(round.module_id, columns, flat, sizes)


def padding(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns how rows of n workers, one after the other, fill a rectangle, and how to undo it.

    Args:
        sizes: Rows per worker, each >= 1.

    Returns:
        [n, B] indices of rows, B the largest size; a worker with fewer repeats its first one. And
        the positions in the flattened rectangle that hold the rows, in order; None if all do.
    """
    widest = max(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    offsets = np.arange(widest)[None, :]
    is_real = offsets < np.asarray(sizes)[:, None]
    indices = starts[:, None] + np.where(is_real, offsets, 0)
    return indices, None if is_real.all() else np.flatnonzero(is_real)
