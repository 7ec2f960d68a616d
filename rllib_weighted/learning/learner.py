"""The learner: merges the workers' gradients by one forward and one backward pass."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest, UpdateResult
from rllib_weighted.core.modules import Networks
from rllib_weighted.core.processes import unfilled_memory
from rllib_weighted.learning.batch import (
    RoundBatch,
    column_batch,
    make_round_batch,
    tag_rows,
    why_not_columns,
)
from rllib_weighted.learning.closed_form.captured import Programs
from rllib_weighted.learning.closed_form.steps import known_networks, why_not_closed_form
from rllib_weighted.learning.collectives import Collectives
from rllib_weighted.learning.connectors import EpisodeAdvantages
from rllib_weighted.learning.device_hint import device_hint
from rllib_weighted.learning.interfaces import ModuleSettings
from rllib_weighted.learning.learner_group import ColumnTrainingData, Data
from rllib_weighted.learning.losses import (
    WorkerLosses,
    losses_one_by_one,
    ppo_worker_losses,
    why_not_stock_loss,
)
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.parameters import PerWorkerParameters, drift
from rllib_weighted.learning.signal_memory import SignalMemory
from rllib_weighted.learning.update import update_round
from rllib_weighted.learning.value_errors import episode_value_errors

logger = logging.getLogger(__name__)

_STATE, _PER_WORKER, _SIGNALS = (
    "weighted_ppo",
    "actors",
    "signals",
)  # Keys in checkpoints: they stay as they are.


class WeightedPPOLearner(PPOTorchLearner):
    """PPO's learner with one loss per worker and one merged gradient per minibatch step.

    Every hook of RLlib's learner keeps its meaning: `compute_loss_for_module` (or
    `compute_losses`) of a subclass is called once per worker, `compute_gradients`,
    `postprocess_gradients` and `apply_gradients` once per step.
    """

    per_worker: PerWorkerParameters | None = None
    collectives: Collectives
    programs: Programs
    signals: SignalMemory
    env_steps: int = 0  # Environment steps sampled so far, for the schedules.
    _result: UpdateResult | None = None
    _save_problem: OSError | None = None

    @override(PPOTorchLearner)
    def build(self) -> None:
        if self._is_built:
            return
        self.programs = Programs()
        self.signals = SignalMemory(self.config.worker_layout.num_workers)
        super().build()
        if self.config.merge_parts:
            for module_id in self.module.keys():  # noqa: SIM118 (an RLModule, not a dict)
                if reason := why_not_stock_loss(self, module_id):
                    raise ValueError(
                        "`merge_parts` needs PPO's own loss, whose parts are known, but "
                        f"{reason}: leave `merge_parts` out"
                    )
        if self.config.add_default_connectors_to_learner_pipeline:
            self._learner_connector.remove(GeneralAdvantageEstimation)
            self._learner_connector.append(
                EpisodeAdvantages(
                    gamma=self.config.gamma,
                    lambda_=self.config.lambda_,
                    compute_values=self.per_worker.compute_values if self.per_worker else None,
                )
            )

    @override(PPOTorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Starts all learners from the same parameters; no `DistributedDataParallel`.

        DDP would average the learners' gradients in every backward pass. Here they are summed
        once per step, weighted. A private hook, called at the end of RLlib's `build` (tested with
        Ray 2.60); can go when RLlib has a setting for it.
        """
        self.collectives = Collectives(
            self.config.num_learners, self.config.worker_layout.num_workers, self._device
        )
        for module in self.module.values():
            self.collectives.align([*module.parameters(), *module.buffers()])
        if self.per_worker is not None:
            self.per_worker.start_from_module()

    @override(PPOTorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers RLlib's optimizer, or that of all workers' own parameters."""
        if not self.config.uses_per_worker_parameters:
            super().configure_optimizers_for_module(module_id, config)
            return
        self.per_worker = PerWorkerParameters(
            self.module[module_id].unwrapped(),
            num_workers=self.config.worker_layout.num_workers,
        )
        self.register_optimizer(
            module_id=module_id,
            optimizer=self.per_worker.optimizer,
            params=list(self.per_worker.stacked.values()),
            lr_or_lr_schedule=config.lr,
        )

    # One round

    @override(Learner)
    @unfilled_memory()
    def update(
        self,
        *,
        training_data: Data,
        merge: UpdateRequest | None = None,
        timesteps: dict[str, Any] | None = None,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Runs the epochs of one round over the workers' episodes.

        Args:
            training_data: The episodes, or their columns, grouped by worker.
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
        env_steps = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self.env_steps)
        request = merge or self._request_from(training_data.finished_returns(), env_steps)
        # The connectors change episodes: what is asked of them is asked before.
        ids = training_data.episode_ids() if self.config.env_seeding == "prioritized" else []
        rewards = training_data.reward_sums() if request.needs_reward_sums else {}
        module_id, batch = self._round_batch(training_data)
        value_errors = episode_value_errors(ids, batch) if ids else {}
        result = update_round(
            self,
            request,
            module_id,
            batch,
            rewards,
            num_epochs=num_epochs,
            minibatch_size=minibatch_size,
            shuffle=shuffle_batch_per_epoch,
        )
        self._result = dataclasses.replace(result, value_errors=value_errors)
        self.env_steps = env_steps
        if self.per_worker is not None:
            self.per_worker.share(self.collectives)
            self.per_worker.export(self.config.actor_export, request.reward_signals)
            drifts = drift(self.per_worker.stacked).tolist()
            self._result = dataclasses.replace(self._result, drifts=drifts)
        self.after_gradient_based_update(timesteps=timesteps)
        return self.metrics.reduce()

    def per_worker_parameters(self) -> dict[str, np.ndarray] | None:
        """Returns the workers' own parameters, name -> [N, …]; None if they share one set."""
        return None if self.per_worker is None else self.per_worker.as_arrays()

    def take_update_result(self) -> UpdateResult | None:
        """Returns what the merges of the last update did, once."""
        result, self._result = self._result, None
        return result

    def _request_from(self, returns: dict[int, list[float]], env_steps: int) -> UpdateRequest:
        value = self.config.value_merge
        return UpdateRequest(
            round=self._weights_seq_no,
            root_seed=self.config.seed or 0,
            num_workers=self.config.worker_layout.num_workers,
            strategy=self.config.resolve_merge_strategy(),
            min_weight=self.config.min_weight_at(env_steps),
            value_strategy=value.resolve() if value else None,
            value_min_weight=value.min_weight if value else None,
            reward_signals={w: float(np.mean(r)) for w, r in returns.items() if r},
            ages={w: 0 for w, r in returns.items() if r},
            measures_gradients=self.config.measures_gradients(self._weights_seq_no),
            predicts_gains=self.config.merge_diagnostics_interval is not None,
        )

    def _round_batch(self, training_data: Data) -> tuple[str, RoundBatch]:
        if training_data.is_empty:
            (module_id,) = self.module.keys()
            return module_id, RoundBatch({}, {}, self.module[module_id].is_stateful())
        if isinstance(training_data, ColumnTrainingData):
            return column_batch(self, training_data.columns)
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
        if self.has_stock_loss(module_id):
            unused = (Columns.TERMINATEDS, Columns.TRUNCATEDS)
        is_sequences = self.module[module_id].is_stateful()
        return module_id, make_round_batch(module_columns, is_sequences=is_sequences, unused=unused)

    # What the round's steps use

    @functools.cached_property
    def closed_form_networks(self) -> Networks | None:
        """The module's layers, if steps can be taken without autograd; else None."""
        (module_id,) = self.module.keys()
        if hint := device_hint(str(self.device), self.module[module_id].unwrapped()):
            logger.warning(hint)
        if reason := why_not_closed_form(self, module_id):
            logger.info("The learner takes its steps with autograd: %s.", reason)
            return None
        logger.info("The learner takes its steps without autograd.")
        return known_networks(self, module_id)

    def why_not_columns(self) -> str | None:
        """Returns what needs episodes; None if columns are enough."""
        return why_not_columns(self)

    @override(PPOTorchLearner)
    def save_to_path(self, *args: Any, **kwargs: Any) -> Any:
        self._save_problem = None
        try:
            return super().save_to_path(*args, **kwargs)
        except OSError as error:
            self._save_problem = error
            raise

    def save_problem(self) -> OSError | None:
        """Returns why the last checkpoint could not be written; None if it could.

        Where a remote learner writes it, RLlib (2.60) looks at no error.
        """
        return self._save_problem

    def module_settings(self, module_id: str) -> ModuleSettings:
        """The settings of a module."""
        settings: ModuleSettings = self.config.get_config_for_module(module_id)
        return settings

    def entropy_coeff(self, module_id: str) -> float:
        """The entropy coefficient of this round."""
        return float(self.entropy_coeff_schedulers_per_module[module_id].get_current_value())

    def kl_coeff(self, module_id: str) -> float:
        """The KL coefficient of this round."""
        return float(self.curr_kl_coeffs_per_module[module_id])

    @property
    def device(self) -> Any:
        """Where the learner computes."""
        return self._device

    @property
    def weights_version(self) -> int:
        """Version of the weights; it counts the rounds."""
        return int(self._weights_seq_no)

    @property
    def parameters_by_reference(self) -> dict[Any, Tensor]:
        """All parameters that optimizers step, by the reference that gradients have."""
        parameters: dict[Any, Tensor] = self._params
        return parameters

    @property
    def checks_gradients(self) -> bool:
        """Whether a gradient that is not finite is refused; a gradient scaler expects some."""
        return self._grad_scalers is None

    def loss_gradients(self, module_id: str, loss: Tensor) -> dict[Any, Tensor]:
        """Returns parameter reference -> gradient of a loss, without those that it does not see."""
        gradients = self.compute_gradients({module_id: loss})
        return {key: gradient for key, gradient in gradients.items() if gradient is not None}

    def worker_losses(
        self,
        module_id: str,
        batch: RoundBatch,
        minibatch: Minibatch,
        workers: Sequence[int],
    ) -> WorkerLosses:
        """Returns the losses of some workers on their rows of a minibatch, in their order."""
        columns = batch.take(minibatch.rows(workers))
        sizes = [len(minibatch.parts[worker]) for worker in workers]
        fwd_out = self.module.forward_train({module_id: columns})[module_id]
        return self.losses_of_rows(module_id, columns, fwd_out, sizes)

    def losses_of_rows(
        self,
        module_id: str,
        columns: dict[str, Any],
        fwd_out: dict[str, Any],
        sizes: Sequence[int],
    ) -> WorkerLosses:
        """Returns one loss per worker from the module's outputs on their rows.

        Args:
            module_id: The module's id.
            columns: Columns of [rows, …], worker after worker.
            fwd_out: The module's `forward_train` output on them.
            sizes: Rows per worker.
        """
        if not self.has_stock_loss(module_id):
            return losses_one_by_one(self, module_id, columns, fwd_out, sizes)
        return ppo_worker_losses(
            module=self.module[module_id].unwrapped(),
            settings=self.module_settings(module_id),
            batch=columns,
            fwd_out=fwd_out,
            sizes=sizes,
            entropy_coeff=self.entropy_coeff(module_id),
            kl_coeff=self.kl_coeff(module_id),
        )

    def has_stock_loss(self, module_id: str) -> bool:
        """Whether PPO's loss can be computed for all workers at once, whatever made the outputs."""
        return why_not_stock_loss(self, module_id) is None

    # State

    @override(PPOTorchLearner)
    def _update_module_kl_coeff(self, **kwargs: Any) -> None:
        # Without a step there is no new policy to measure: RLlib would warn of a NaN divergence.
        if self._result is None or self._result.num_steps:
            super()._update_module_kl_coeff(**kwargs)

    @override(PPOTorchLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        own: dict[str, Any] = {
            # Of all modules: before its first round, RLlib's dict does not know them yet.
            "kl_coeffs": {key: self.kl_coeff(key) for key in self.module.keys()},  # noqa: SIM118
            "env_steps": self.env_steps,
        }
        if COMPONENT_OPTIMIZER in state:  # As large as N modules: only in a whole state.
            own[_PER_WORKER] = self.per_worker.get_state() if self.per_worker else None
            own[_SIGNALS] = self.signals.get_state()
        return {**state, _STATE: own}

    @override(PPOTorchLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = 0  # RLlib keeps its weights if they are newer than these.
        own = state.get(_STATE, {})
        saved = own.get(_PER_WORKER)
        # The strategy, or the number of workers with parameters of their own, may have changed.
        fits = self.per_worker.fits(saved) if self.per_worker else saved is None
        if COMPONENT_OPTIMIZER in state and not fits:
            logger.warning(
                "The saved optimizer is that of another kind of merge, or of another number of "
                "workers with parameters of their own: going on from the saved policy with a new "
                "optimizer."
            )
            state = {key: value for key, value in state.items() if key != COMPONENT_OPTIMIZER}
        super().set_state(state)
        if self.per_worker and fits:
            self.per_worker.set_state(saved)
        elif self.per_worker and (COMPONENT_RL_MODULE in state or _PER_WORKER in own):
            self.per_worker.start_from_module()
        if own:
            self._set_coefficients(own)
        if _SIGNALS in own:
            self.signals.set_state(own[_SIGNALS])

    def _set_coefficients(self, own: dict[str, Any]) -> None:
        """Sets step counter and KL coefficients, and what schedules make of the counter."""
        self.env_steps = own["env_steps"]
        for module_id, coeff in own["kl_coeffs"].items():
            self.curr_kl_coeffs_per_module[module_id].data.fill_(coeff)
        for module_id in self.module.keys():  # noqa: SIM118 (an RLModule, not a dict)
            schedule = self.entropy_coeff_schedulers_per_module[module_id]
            schedule.update(timestep=self.env_steps)
        if not self._lr_schedulers:
            # The optimizer's state brought the old rate along; a mutated one holds at once.
            for optimizer, schedule in self._optimizer_lr_schedules.items():
                self._set_optimizer_lr(optimizer, lr=schedule.update(timestep=self.env_steps))
