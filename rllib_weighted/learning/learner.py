"""The learner: merges the workers' gradients by one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from rllib_weighted.learning.advantages import EpisodeAdvantages
from rllib_weighted.learning.learner_metrics import (
    log_explained_variance,
    log_losses,
    log_steps,
)
from rllib_weighted.learning.losses import (
    WorkerLosses,
    losses_one_by_one,
    ppo_worker_losses,
)
from rllib_weighted.learning.minibatches import Minibatch, minibatches, num_minibatches
from rllib_weighted.learning.orders import MergeOrder, MergeReport
from rllib_weighted.learning.round_batch import RoundBatch, make_round_batch, tag_rows
from rllib_weighted.learning.round_merger import RoundMerger
from rllib_weighted.learning.worker_data import WorkerTrainingData
from rllib_weighted.merging import weighted_sum

_STATE_KEY = "weighted_ppo"


class WeightedPPOLearner(PPOTorchLearner):
    """PPO's learner with one loss per worker and one merged gradient per minibatch step.

    Every hook of RLlib's learner keeps its meaning: `compute_loss_for_module` (or
    `compute_losses`) of a subclass is called once per worker, `compute_gradients`,
    `postprocess_gradients` and `apply_gradients` once per step.
    """

    _report: MergeReport | None = None
    _env_steps: int = 0

    @override(PPOTorchLearner)
    def build(self) -> None:
        if self._is_built:
            return
        super().build()
        if self.config.add_default_connectors_to_learner_pipeline:
            self._learner_connector.remove(GeneralAdvantageEstimation)
            self._learner_connector.append(
                EpisodeAdvantages(gamma=self.config.gamma, lambda_=self.config.lambda_)
            )

    # One round

    @override(Learner)
    def update(
        self,
        *,
        training_data: WorkerTrainingData,
        merge: MergeOrder | None = None,
        timesteps: dict[str, Any] | None = None,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Runs the epochs of one round over the workers' episodes.

        Args:
            training_data: The episodes, grouped by worker.
            merge: How to merge. None: by the config, from the returns that the episodes show.
            timesteps: Lifetime counters for the schedules.
            num_epochs: Passes over the data.
            minibatch_size: Environment steps per step, over all workers; None: all of them.
            shuffle_batch_per_epoch: Whether to shuffle each worker's rows in every epoch.
            kwargs: Ignored; RLlib passes more than is needed here.

        Returns:
            The learner's reduced metrics.
        """
        self._check_is_built()
        timesteps = timesteps or {}
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        env_steps = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._env_steps)
        order = merge or self._order_from(training_data.workers, env_steps)
        merger = RoundMerger(order)
        module_id, batch = self._round_batch(training_data)
        batch.drop(order.faults)
        for worker, reason in batch.drop_unsound_workers().items():
            merger.drop(worker, reason)
        batch.standardize_advantages(self.config.advantage_normalization)
        if merger.needs_round_losses and batch.rows:
            self._set_round_losses(module_id, batch, merger)
        losses = None
        per_epoch = num_minibatches(batch.rows, batch.num_steps, minibatch_size)
        for minibatch in minibatches(
            batch.rows,
            per_epoch=per_epoch,
            num_epochs=num_epochs,
            shuffle=shuffle_batch_per_epoch,
            seed=order.root_seed,
            round=order.round,
        ):
            taken = self._take_step(module_id, batch, minibatch, merger)
            losses = losses if taken is None else taken
        self._report = merger.report()
        self._log_round(module_id, batch, losses, num_epochs)
        self._env_steps = env_steps
        self.after_gradient_based_update(timesteps=timesteps)
        return self.metrics.reduce()

    def take_merge_report(self) -> MergeReport | None:
        """Returns what the merges of the last update did, once."""
        report, self._report = self._report, None
        return report

    def _order_from(self, workers: dict[int, list[Any]], env_steps: int) -> MergeOrder:
        returns = {
            worker: [e.get_return() for e in episodes if e.is_done]
            for worker, episodes in workers.items()
        }
        return MergeOrder(
            round=self._weights_seq_no,
            root_seed=self.config.seed or 0,
            num_workers=self.config.worker_layout.num_workers,
            strategy=self.config.resolve_merge_strategy(),
            min_weight=self.config.min_weight_at(env_steps),
            reward_signals={w: float(np.mean(r)) for w, r in returns.items() if r},
        )

    def _round_batch(self, training_data: WorkerTrainingData) -> tuple[str, RoundBatch]:
        tag_rows(training_data.workers)
        columns = self._learner_connector(
            rl_module=self.module,
            batch={},
            episodes=training_data.episodes,
            shared_data={},
            metrics=self.metrics,
        )
        ((module_id, module_columns),) = columns.items()
        unused: Sequence[str] = ()
        if self._has_stock_loss(module_id):
            unused = (Columns.TERMINATEDS, Columns.TRUNCATEDS)
        is_sequences = self.module[module_id].is_stateful()
        return module_id, make_round_batch(module_columns, is_sequences=is_sequences, unused=unused)

    # One step

    def _take_step(
        self, module_id: str, batch: RoundBatch, minibatch: Minibatch, merger: RoundMerger
    ) -> WorkerLosses | None:
        """Merges one minibatch; workers whose loss or gradient is not finite are left out."""
        workers = list(minibatch.parts)
        while workers:
            losses = self._losses(module_id, batch, minibatch, workers)
            bad = _not_finite(workers, losses.total)
            reason = "its loss is not finite"
            if not bad:
                signals, merged = merger.weigh(workers, losses)
                loss = weighted_sum(losses.total, merged.weights)
                if self._step_if_finite(module_id, loss):
                    merger.record(workers, signals, merged, losses)
                    return losses
                bad = self._with_bad_gradient(module_id, batch, minibatch, workers)
                reason = "its gradient is not finite"
                if not bad:
                    break
            for worker in bad:
                merger.drop(worker, reason)
            workers = [worker for worker in workers if worker not in bad]
        merger.skip()
        return None

    def _step_if_finite(self, module_id: str, loss: Tensor) -> bool:
        gradients = self._gradients(module_id, loss)
        # A gradient scaler looks for overflows itself, and lowers its scale.
        if self._grad_scalers is None and not _all_finite(gradients):
            return False
        self.apply_gradients(self.postprocess_gradients(gradients))
        return True

    def _gradients(self, module_id: str, loss: Tensor) -> dict[Any, Tensor]:
        gradients = self.compute_gradients({module_id: loss})
        return {key: gradient for key, gradient in gradients.items() if gradient is not None}

    def _with_bad_gradient(
        self, module_id: str, batch: RoundBatch, minibatch: Minibatch, workers: Sequence[int]
    ) -> list[int]:
        bad = []
        for worker in workers:
            alone = self._losses(module_id, batch, minibatch, [worker])
            if not _all_finite(self._gradients(module_id, alone.total.sum())):
                bad.append(worker)
        return bad

    # Losses

    def _has_stock_loss(self, module_id: str) -> bool:
        """Whether PPO's loss can be computed for all workers at once."""
        module = self.module[module_id].unwrapped()
        return (
            _definer(type(self), "compute_loss_for_module") is PPOTorchLearner
            and _definer(type(self), "compute_losses") is Learner
            and not module.is_stateful()
            and not isinstance(module, SelfSupervisedLossAPI)
        )

    def _losses(
        self,
        module_id: str,
        batch: RoundBatch,
        minibatch: Minibatch,
        workers: Sequence[int],
    ) -> WorkerLosses:
        columns = batch.take(minibatch.rows(workers))
        sizes = [len(minibatch.parts[worker]) for worker in workers]
        fwd_out = self.module.forward_train({module_id: columns})[module_id]
        if not self._has_stock_loss(module_id):
            return losses_one_by_one(self, module_id, columns, fwd_out, sizes)
        return ppo_worker_losses(
            module=self.module[module_id].unwrapped(),
            config=self.config.get_config_for_module(module_id),
            batch=columns,
            fwd_out=fwd_out,
            sizes=sizes,
            entropy_coeff=self.entropy_coeff_schedulers_per_module[module_id].get_current_value(),
            kl_coeff=self.curr_kl_coeffs_per_module[module_id],
        )

    def _set_round_losses(self, module_id: str, batch: RoundBatch, merger: RoundMerger) -> None:
        workers = list(batch.rows)
        with torch.no_grad():
            losses = self._losses(module_id, batch, Minibatch(batch.rows), workers)
        merger.set_round_losses(workers, losses)

    # Metrics and state

    def _log_round(
        self, module_id: str, batch: RoundBatch, losses: WorkerLosses | None, num_epochs: int
    ) -> None:
        assert self._report is not None
        if losses is not None:
            log_losses(self.metrics, module_id, losses)
            if self._has_stock_loss(module_id) and self.config.use_critic:
                module = self.module[module_id].unwrapped()
                log_explained_variance(self.metrics, module_id, module, batch)
        log_steps(
            self.metrics,
            module_id,
            weights_version=self._weights_seq_no,
            num_steps=batch.num_steps * num_epochs,
            num_minibatches=self._report.num_steps + self._report.num_skipped_steps,
        )

    @override(PPOTorchLearner)
    def _update_module_kl_coeff(self, **kwargs: Any) -> None:
        # Without a step there is no new policy to measure: RLlib would warn of a NaN divergence.
        if self._report is None or self._report.num_steps:
            super()._update_module_kl_coeff(**kwargs)

    @override(PPOTorchLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        state[_STATE_KEY] = {
            "kl_coeffs": {key: c.item() for key, c in self.curr_kl_coeffs_per_module.items()},
            "env_steps": self._env_steps,
        }
        return state

    @override(PPOTorchLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = 0  # RLlib keeps its weights if they are newer than these.
        super().set_state(state)
        own = state.get(_STATE_KEY)
        if own is None:
            return
        self._env_steps = own["env_steps"]
        for module_id, coeff in own["kl_coeffs"].items():
            self.curr_kl_coeffs_per_module[module_id].data.fill_(coeff)
        for module_id in self.module.keys():  # noqa: SIM118 (an RLModule, not a dict)
            self.entropy_coeff_schedulers_per_module[module_id].update(timestep=self._env_steps)
        if not self._lr_schedulers:
            # The optimizer's state brought the old rate along; a mutated one holds at once.
            for optimizer, schedule in self._optimizer_lr_schedules.items():
                self._set_optimizer_lr(optimizer, lr=schedule.update(timestep=self._env_steps))


def _definer(cls: type, method: str) -> type:
    """Returns the class whose `method` an instance of `cls` has.

    Not told by the function itself: in an actor, Ray Train's subclass of every learner wraps all
    methods for tracing.
    """
    own = (c for c in cls.__mro__ if not c.__module__.startswith("ray.train."))
    return next(c for c in own if method in vars(c))


def _all_finite(gradients: dict[Any, Tensor]) -> bool:
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    return bool(torch.isfinite(norm))


def _not_finite(workers: Sequence[int], losses: Tensor) -> list[int]:
    finite = torch.isfinite(losses)
    if finite.all():
        return []
    return [worker for worker, fine in zip(workers, finite.tolist(), strict=True) if not fine]
