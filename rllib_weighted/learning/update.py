"""One round in one learner: agree with the others on its size, take its steps, log what it did."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest, UpdateResult
from rllib_weighted.learning.advantages import pooled
from rllib_weighted.learning.batch import RoundBatch
from rllib_weighted.learning.closed_form.steps import ClosedFormPerWorkerSteps, ClosedFormSteps
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.metrics import log_explained_variance, log_losses, log_steps
from rllib_weighted.learning.minibatches import minibatches, num_minibatches
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.learning.steps import PerWorkerSteps, SharedSteps, Steps


class RoundUpdate:
    """The epochs of one round over the workers' rows.

    Before the first step, all learners know the sizes of all workers' batches. From these follows
    how many steps there are, for each of them the same: none waits for a step that another does
    not take.

    Args:
        learner: The learner.
        order: How to merge.
        module_id: The module's id.
        batch: The rows of this learner's workers; there may be none.
    """

    def __init__(
        self, learner: Any, order: UpdateRequest, module_id: str, batch: RoundBatch
    ) -> None:
        self._learner = learner
        self._exchange = learner.exchange
        self._order = order
        self._module_id = module_id
        self._batch = batch
        self._merger = RoundWeights(order)
        batch.drop(order.invalid)
        for worker, reason in batch.drop_non_finite_workers().items():
            self._merger.drop(worker, reason)
        self._sizes = self._sizes_of_all()

    @property
    def workers(self) -> list[int]:
        """The workers of the round, over all learners."""
        return list(self._sizes)

    def run(self, *, num_epochs: int, minibatch_size: int | None, shuffle: bool) -> UpdateResult:
        """Takes all steps; returns what their merges did.

        Args:
            num_epochs: Passes over the data.
            minibatch_size: Environment steps per optimizer step, over all workers; None: all.
            shuffle: Whether each worker's rows are shuffled in every epoch.
        """
        self._standardize_advantages()
        steps = self._steps()
        if self._merger.needs_round_losses and self.workers:
            self._merger.set_round_losses(self.workers, steps.losses_of_round())
        losses = None
        num_steps = sum(num_steps for _, num_steps in self._sizes.values())
        for minibatch in minibatches(
            self._batch.rows,
            per_epoch=num_minibatches(
                [num_rows for num_rows, _ in self._sizes.values()], num_steps, minibatch_size
            ),
            num_epochs=num_epochs,
            shuffle=shuffle,
            seed=self._order.root_seed,
            round=self._order.round,
        ):
            taken = steps.take(minibatch)
            losses = losses if taken is None else taken
        steps.finish()
        report = self._merger.report()
        self._log(losses, report, num_steps=num_steps, num_epochs=num_epochs)
        return report

    def _steps(self) -> Steps:
        learner = self._learner
        kind, fast_kind = (
            (SharedSteps, ClosedFormSteps)
            if learner.actors is None
            else (PerWorkerSteps, ClosedFormPerWorkerSteps)
        )
        common: dict[str, Any] = {
            "learner": learner,
            "module_id": self._module_id,
            "batch": self._batch,
            "merger": self._merger,
            "workers": self.workers,
            "num_workers": self._order.num_workers,
        }
        general = kind(**common)
        if learner.closed_form_networks is None or not fast_kind.fits(learner, self._module_id):
            return general
        return fast_kind(**common, general=general, networks=learner.closed_form_networks)

    def _sizes_of_all(self) -> dict[int, tuple[int, int]]:
        """Returns rows and real steps of every worker of the round, whoever holds it."""
        sizes = torch.tensor(list(self._batch.sizes.values()), dtype=torch.float64).view(-1, 2)
        table = self._of_workers(sizes).long().tolist()
        return {
            w: (num_rows, num_steps) for w, (num_rows, num_steps) in enumerate(table) if num_rows
        }

    def _of_workers(self, rows: Tensor) -> Tensor:
        own = list(self._batch.rows)
        return self._exchange.of_workers(own, rows, num_workers=self._order.num_workers)

    def _standardize_advantages(self) -> None:
        mode, overall = self._learner.config.advantage_normalization, None
        if mode == "batch":
            own = torch.zeros(0, 3)
            if self._batch.rows:
                everything = self._batch.take(self._batch.all_rows)
                own = self._batch.moments(everything[Postprocessing.ADVANTAGES])
            overall = pooled(self._of_workers(own))
        self._batch.standardize_advantages(mode, overall)

    def _log(
        self, losses: WorkerLosses | None, report: UpdateResult, *, num_steps: int, num_epochs: int
    ) -> None:
        learner = self._learner
        if losses is not None:
            log_losses(learner.metrics, self._module_id, losses)
            if learner.predicts_values(self._module_id):
                parts = self._of_workers(self._value_moments())
                log_explained_variance(learner.metrics, self._module_id, parts)
        # Step counts add up over the learners; all else is the same on each.
        log_steps(
            learner.metrics,
            self._module_id,
            weights_version=learner.weights_version,
            num_steps=self._batch.num_steps * num_epochs,
            minibatch_steps=num_steps
            * num_epochs
            / max(1, report.num_steps + report.num_skipped_steps),
        )

    def _value_moments(self) -> Tensor:
        """`moments` of each worker's value targets, and of their prediction errors, [n, 6]."""
        if not self._batch.rows:
            return torch.zeros(0, 6)
        columns = self._batch.take(self._batch.all_rows)
        targets = columns[Postprocessing.VALUE_TARGETS]
        values = self._learner.predicted_values(
            self._module_id, list(self._batch.rows), self._batch.owner, columns
        )
        return self._batch.moments(targets, targets - values)
