"""The algorithm: one round = sample, update, sync, record."""

from __future__ import annotations

import logging
import posixpath
import uuid
from typing import Any

import numpy as np
from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo.ppo import PPO
from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_LEARNER,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
)
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
    WEIGHTS_SEQ_NO,
)
from ray.tune.result import TRIAL_INFO

from rllib_weighted.config import WeightedPPOConfig
from rllib_weighted.learning.orders import MergeOrder, MergeReport
from rllib_weighted.records import metrics as names
from rllib_weighted.records.history import HISTORY_DIR, MergeHistory
from rllib_weighted.records.summary import summarize, worker_metrics
from rllib_weighted.round_records import worker_records
from rllib_weighted.sampling.collect import (
    Rollouts,
    collect_rollouts,
    kill_unresponsive,
    merge_connector_states,
)
from rllib_weighted.seeding import draw_root_seed

logger = logging.getLogger(__name__)

_STATE_KEY = "weighted_ppo"
_HOT_SETTINGS = ("merge_strategy", "min_weight", "merge_options")


class WeightedPPO(PPO):
    """PPO that merges its workers' gradients by how high each one's reward or loss is."""

    config: WeightedPPOConfig

    @classmethod
    @override(PPO)
    def get_default_config(cls) -> WeightedPPOConfig:
        return WeightedPPOConfig()

    @override(Algorithm)
    def __init__(self, config: Any = None, *args: Any, **kwargs: Any) -> None:
        # RLlib drops what Tune says of the trial: its own `trial_id` is always "default".
        trial_info = config.get(TRIAL_INFO) if isinstance(config, dict) else None
        self._tune_trial_id: str | None = getattr(trial_info, "trial_id", None)
        super().__init__(config, *args, **kwargs)

    @override(PPO)
    def setup(self, config: Any) -> None:
        self._round = 0
        self._last_returns: dict[int, float] = {}
        self._recent_returns: list[float] = []
        self._num_resets: dict[int, int] = {}
        self._lineage = ""
        self._runner_state: dict[str, Any] | None = None
        self._history: MergeHistory | None = None
        super().setup(config)
        seed = self.config.seed
        self._root_seed: int = draw_root_seed() if seed is None else seed
        trial_id = self._tune_trial_id or posixpath.basename(self.logdir.rstrip("/"))
        self._history = MergeHistory(*self._history_location(), trial_id=trial_id)

    # One round

    @override(PPO)
    def training_step(self) -> None:
        self._round += 1
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rollouts = self._sample()
        report = None
        if rollouts.episodes:
            with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
                report = self._update(rollouts)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sync(rollouts)
        self._record(rollouts, report)

    def _sample(self) -> Rollouts:
        """Asks every env runner for its part of the round, and takes what comes in time."""
        if self._runner_state is None:
            self._runner_state = self._collect_runner_state()
        rollouts = collect_rollouts(
            self.env_runner_group,
            config=self.config,
            round=self._round,
            root_seed=self._root_seed,
            state=self._runner_state,
            num_resets=self._num_resets,
            lineage=self._lineage,
        )
        if rollouts.metrics:
            self.metrics.aggregate(rollouts.metrics, key=ENV_RUNNER_RESULTS)
        self._num_resets.update(rollouts.num_resets)
        for worker, returns in rollouts.returns.items():
            self._last_returns[worker] = float(np.mean(returns))
            self._recent_returns += returns
        del self._recent_returns[: -self.config.metrics_num_episodes_for_smoothing]
        return rollouts

    def _update(self, rollouts: Rollouts) -> MergeReport | None:
        """Merges the workers' gradients, minibatch by minibatch."""
        trained = (LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME)
        results = self.learner_group.update(
            episodes=rollouts.episodes,
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self._env_steps,
                NUM_MODULE_STEPS_TRAINED_LIFETIME: self.metrics.peek(trained, default=0),
            },
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            merge=self._merge_order(rollouts),
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return self.learner_group.take_merge_report()

    def _merge_order(self, rollouts: Rollouts) -> MergeOrder:
        return MergeOrder(
            round=self._round,
            root_seed=self._root_seed,
            num_workers=self.config.worker_layout.num_workers,
            strategy=self.config.resolve_merge_strategy(),
            min_weight=self.config.min_weight_at(self._env_steps),
            reward_signals=dict(self._last_returns),
            faults=rollouts.faults,
        )

    def _sync(self, rollouts: Rollouts) -> None:
        """Merges connector states; what env runners need next travels with the next order."""
        env_to_module, module_to_env = self._pipelines
        merge_connector_states(
            rollouts.connector_states,
            config=self.config,
            env_to_module=env_to_module,
            module_to_env=module_to_env,
        )
        self._runner_state = self._collect_runner_state()
        if self.env_runner is not None:
            self.env_runner.set_state(self._runner_state)

    @property
    def _pipelines(self) -> tuple[Any, Any]:
        """The driver's connector pipelines: the local env runner's, if there is one."""
        return (
            getattr(self.env_runner, "_env_to_module", self.env_to_module_connector),
            getattr(self.env_runner, "_module_to_env", self.module_to_env_connector),
        )

    def _collect_runner_state(self) -> dict[str, Any]:
        """Returns weights, their version, connector states and the lifetime step counter."""
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        learner = self.learner_group.get_state(components=component, inference_only=True)
        kept = {COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO}
        state = {k: v for k, v in learner[COMPONENT_LEARNER].items() if k in kept}
        state[NUM_ENV_STEPS_SAMPLED_LIFETIME] = self._env_steps
        if self.config.broadcast_env_runner_states and self.config.merge_env_runner_states:
            state |= self._connector_states()
        return state

    def _connector_states(self) -> dict[str, Any]:
        env_to_module, module_to_env = self._pipelines
        return {
            COMPONENT_ENV_TO_MODULE_CONNECTOR: env_to_module.get_state(),
            COMPONENT_MODULE_TO_ENV_CONNECTOR: module_to_env.get_state(),
        }

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> Any:
        """Evaluates the current policy; see `Algorithm.evaluate`.

        The evaluation env runners get training's connector states first. RLlib (2.60) skips a
        local one, and drops those of remote ones, because the weights are still in flight.
        """
        if self.eval_env_runner_group and self.evaluation_config.broadcast_env_runner_states:
            states = self._connector_states()
            self.eval_env_runner_group.foreach_env_runner(
                lambda env_runner: env_runner.set_state(states),
                timeout_seconds=self.config.sync_filters_on_rollout_workers_timeout_s,
            )
        return super().evaluate(parallel_train_future)

    # Records

    @property
    def _env_steps(self) -> int:
        counter = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        return int(self.metrics.peek(counter, default=0))

    def _record(self, rollouts: Rollouts, report: MergeReport | None) -> None:
        """Writes metrics and the merge history."""
        records = worker_records(
            rollouts,
            report,
            layout=self.config.worker_layout,
            round=self._round,
            root_seed=self._root_seed,
        )
        skipped = report.num_skipped_steps if report else 0
        summary = summarize(records, num_skipped_steps=skipped, recent_returns=self._recent_returns)
        for name, value in summary.items():
            self.metrics.log_value((names.MERGE, name), value, window=1)
        for worker, values in worker_metrics(records).items():
            for name, value in values.items():
                key = (names.MERGE, names.WORKERS, worker, name)
                self.metrics.log_value(key, value, window=1)
        assert self._history is not None
        self._history.append(self._round, self._env_steps, records)

    def _history_location(self) -> tuple[Any, str]:
        """Returns where this trial's merge history goes: file system and folder.

        Tune's storage context is a private attribute of `Trainable` (tested with Ray 2.60).
        """
        if self._storage is not None:
            folder = f"{self._storage.trial_fs_path}/{HISTORY_DIR}"
            return self._storage.storage_filesystem, folder
        return LocalFileSystem(), f"{self.logdir.rstrip('/')}/{HISTORY_DIR}"

    # Checkpoints

    @override(Algorithm)
    def save_to_path(self, *args: Any, **kwargs: Any) -> Any:
        if self._history is not None:
            self._history.flush()
        return super().save_to_path(*args, **kwargs)

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        state[_STATE_KEY] = {
            "round": self._round,
            "root_seed": self._root_seed,
            "last_returns": dict(self._last_returns),
            "recent_returns": list(self._recent_returns),
            "num_resets": dict(self._num_resets),
        }
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._runner_state = None
        own = state.get(_STATE_KEY)
        if own is None:
            return
        self._round = own["round"]
        self._root_seed = own["root_seed"]
        self._last_returns = dict(own["last_returns"])
        self._recent_returns = list(own["recent_returns"])
        self._num_resets = dict(own["num_resets"])
        self._lineage = uuid.uuid4().hex
        if self._history is not None:
            self._history.truncate(self._round)

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self._runner_state = None
        if kwargs.get("component") is None and self.env_runner is not None:
            # RLlib has just merged the living env runners' filters into the restored ones.
            own = f"{str(path).rstrip('/')}/{COMPONENT_ENV_RUNNER}"
            self.env_runner.restore_from_path(own, filesystem=kwargs.get("filesystem"))

    @override(Algorithm)
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes new merge settings without a new actor; False if anything else has changed."""
        new = self.get_default_config().update_from_dict(new_config)
        new.env = self.config.env
        old_settings, new_settings = self.config.to_dict(), new.to_dict()
        if any(
            str(old_settings.get(key)) != str(value)
            for key, value in new_settings.items()
            if key not in _HOT_SETTINGS
        ):
            return False
        new.validate()
        config = self.config.copy(copy_frozen=False)
        for name in _HOT_SETTINGS:
            setattr(config, name, getattr(new, name))
        config.freeze()
        self.config = config
        return True

    @override(Algorithm)
    def cleanup(self) -> None:
        if self._history is not None:
            self._history.close()
        group = getattr(self, "env_runner_group", None)
        if group is not None and group.num_remote_workers():
            kill_unresponsive(group)
        super().cleanup()
