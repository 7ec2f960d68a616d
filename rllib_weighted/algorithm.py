"""The algorithm: one round is sample, update, sync, record.

`WeightedPPO` reads from top to bottom in the order of a round; what it writes down of each worker
is in `round_records.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import posixpath
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pyarrow.fs import LocalFileSystem
from ray.air.constants import TRAINING_ITERATION
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
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

from rllib_weighted._private import connector_pipelines
from rllib_weighted.config import WeightedPPOConfig
from rllib_weighted.core.checkpoints import restoring
from rllib_weighted.core.episode_signals import EpisodeSignals
from rllib_weighted.core.messages import SampleRequest, UpdateRequest, UpdateResult
from rllib_weighted.core.run_progress import RunProgress
from rllib_weighted.core.seeding import draw_root_seed
from rllib_weighted.core.workers import WorkerLayout
from rllib_weighted.fault_tolerance import (
    Idleness,
    Rescue,
    call_all,
    kill_unresponsive,
    replace_overdue,
    take_back,
)
from rllib_weighted.learning.learner_group import LearnerFailedError
from rllib_weighted.records import metrics as names
from rllib_weighted.records.history import HISTORY_DIR, MergeHistory
from rllib_weighted.records.metrics import (
    diagnostic_metrics,
    for_tune,
    summarize,
    worker_metrics,
)
from rllib_weighted.round_records import (
    drops_text,
    log_drops,
    sampling_path,
    worker_drops,
    worker_records,
)
from rllib_weighted.sampling.collect import (
    OpenCalls,
    Rollouts,
    collect_rollouts,
    merge_connector_states,
)
from rllib_weighted.tuning import TrialPPO

logger = logging.getLogger(__name__)

_STATE_KEY = "weighted_ppo"
_LAYOUT = "layout"
STALE_ROUNDS = 10  # In a row, before old signals are warned of.
_LEVELS_KEY = "levels"


class WeightedPPO(TrialPPO):
    """PPO that merges its workers' gradients by how high each one's reward or loss is."""

    config: WeightedPPOConfig
    learner_group: Any

    @classmethod
    @override(TrialPPO)
    def get_default_config(cls) -> WeightedPPOConfig:
        return WeightedPPOConfig()

    @override(TrialPPO)
    def setup(self, config: Any) -> None:
        self._drops: dict[int, str] = {}
        self._idleness = Idleness()
        self._calls = OpenCalls()
        self._restore_id = ""
        self._runner_state: dict[str, Any] | None = None
        # Where it lies for remote env runners: in the object store, once.
        self._sent_state: ray.ObjectRef[Any] | None = None
        self._per_worker_parameters: dict[str, np.ndarray] | None = None
        self._history: MergeHistory | None = None
        self._rounds_kept = 0  # In the history, although an older state is restored.
        self._asked_group: Any = None
        self._why_episodes: str | None = None
        super().setup(config)
        seed = self.config.seed
        self._progress = RunProgress(draw_root_seed() if seed is None else seed)
        self._levels = self.config.make_level_table()
        trial_id = self._tune_trial_id or posixpath.basename(self.logdir.rstrip("/"))
        filesystem, folder = self._trial_folder()
        self._history = MergeHistory(
            filesystem,
            f"{folder}/{HISTORY_DIR}",
            trial_id=trial_id,
            settings=self.config.resolved_settings(),
        )
        self._rescue = Rescue(self, filesystem, folder)
        self._rescue.restore()

    # One round

    @override(TrialPPO)
    def step(self) -> dict[str, Any]:
        """One round, and its evaluation; see `Algorithm.step`.

        Raises:
            LearnerFailedError: A learner has failed. It says where the state before is saved.
        """
        try:
            results = super().step()
        except LearnerFailedError as error:
            raise self._rescue.save(error) from error
        if self._drops:
            results[names.MERGE][names.DROP_CAUSE] = drops_text(self._drops)
        if self._tune_trial_id is not None:
            results[names.MERGE] = for_tune(results[names.MERGE])
        return results

    @override(TrialPPO)
    def training_step(self) -> None:
        self._rescue.keep()
        self._progress.round += 1
        try:
            with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
                rollouts = self._sample()
            result = None
            if data := rollouts.data():
                with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
                    result = self._update(rollouts, data)
            with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
                self._sync(rollouts)
        except BaseException:
            # Ctrl-C in a notebook too: the next call is this round again, from the learners' state.
            self._progress.round -= 1
            self._runner_state = None
            raise
        self._record(rollouts, result)

    def _sample(self) -> Rollouts:
        """Samples one round; env runners that exceed `sample_timeout_s` are dropped."""
        if self._runner_state is None:
            self._fetch_runner_state()
        progress = self._progress
        rollouts = collect_rollouts(
            self.env_runner_group,
            SampleRequest(
                round=progress.round,
                root_seed=progress.root_seed,
                state=self._sent_state or {},
                num_resets=progress.num_resets,
                restore_id=self._restore_id,
                per_worker_parameters=self._per_worker_parameters,
                takes_columns=self._takes_columns(),
                levels=None if self._levels is None else self._levels.draws(),
            ),
            self.config,
            self._calls,
        )
        if rollouts.metrics:
            self.metrics.aggregate(rollouts.metrics, key=ENV_RUNNER_RESULTS)
        progress.num_resets.update(rollouts.num_resets)
        for worker, returns in rollouts.returns.items():
            progress.last_returns[worker] = float(np.mean(returns))
            progress.recent_returns += returns
        del progress.recent_returns[: -self.config.metrics_num_episodes_for_smoothing]
        progress.episodes.add(
            progress.round,
            rollouts.returns,
            rollouts.successes,
            getattr(self.config.resolve_merge_strategy(), "success_return", None),
        )
        self._replace_overdue()
        return rollouts

    def _replace_overdue(self) -> None:
        """Has the env runners restarted that hang; they come back with episodes of their own."""
        layout, progress = self.config.worker_layout, self._progress
        for index in replace_overdue(self.env_runner_group, self._calls, self.config):
            progress.num_replaced += 1
            for env_index in range(layout.num_envs_per_env_runner):
                slot = layout.slot(index, env_index)
                # Past the episode that hung it: a round has no more episodes than steps.
                steps = math.ceil(self.config.total_train_batch_size / layout.num_slots)
                progress.num_resets[slot] = progress.num_resets.get(slot, 0) + steps

    def _takes_columns(self) -> bool:
        """Whether the learners take columns; asked once of each new learner group."""
        if self._asked_group is not self.learner_group:
            self._asked_group = self.learner_group
            self._why_episodes = self.learner_group.why_not_columns()
            what = f"episodes: {self._why_episodes}" if self._why_episodes else "columns"
            logger.info("The learner takes %s.", what)
        return self._why_episodes is None

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Takes back lost env runners before a round; see `take_back`.

        The next request brings them the whole training state.
        """
        if env_runner_group is not self.env_runner_group:
            return list(super().restore_env_runners(env_runner_group))
        restored = take_back(env_runner_group, self.config)
        self._counters["total_num_restored_workers"] += len(restored)
        return restored

    def _update(self, rollouts: Rollouts, data: dict[str, Any]) -> UpdateResult | None:
        """Merges the workers' gradients, minibatch by minibatch."""
        progress, num_workers = self._progress, self.config.worker_layout.num_workers
        value, measures = self.config.value_merge, self.config.measures_gradients(progress.round)
        trained = (LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME)
        results = self.learner_group.update(
            **data,
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self._env_steps,
                NUM_MODULE_STEPS_TRAINED_LIFETIME: self.metrics.peek(trained, default=0),
            },
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            merge=UpdateRequest(
                round=progress.round,
                root_seed=progress.root_seed,
                num_workers=num_workers,
                strategy=self.config.resolve_merge_strategy(),
                min_weight=self.config.min_weight_at(self._env_steps),
                value_strategy=value.resolve() if value else None,
                value_min_weight=value.min_weight if value else None,
                reward_signals=dict(progress.last_returns),
                episode_signals=self._episode_signals(num_workers, measures),
                ages=progress.episodes.ages(progress.round),
                measures_gradients=measures,
                predicts_gains=self.config.merge_diagnostics_interval is not None,
                invalid=rollouts.invalid,
            ),
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return self.learner_group.take_update_result()

    def _episode_signals(self, num_workers: int, measures: bool) -> dict[str, dict[int, float]]:
        """Returns the signals of episodes, if a strategy reads one or all are wanted."""
        of_episodes = {"success", "success_episodes", "return_variance"}
        if measures or of_episodes & {*self.config.merge_signals}:
            return self._progress.episodes.signals(num_workers)
        return {}

    def _sync(self, rollouts: Rollouts) -> None:
        """Merges connector states; sends them and the weights to the env runners.

        Nobody waits for that: the next request refers to the same state.
        """
        merge_connector_states(
            rollouts.connector_states, connector_pipelines(self), config=self.config
        )
        self._fetch_runner_state()
        if self._sent_state is not None:
            self._calls.send_state(self.env_runner_group, self._sent_state)

    def _fetch_runner_state(self) -> None:
        """Collects the state that the env runners need for the next round.

        A local one has it then.
        """
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        learner = self.learner_group.get_state(components=component, inference_only=True)
        kept = {COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO}
        state = {key: value for key, value in learner[COMPONENT_LEARNER].items() if key in kept}
        state[NUM_ENV_STEPS_SAMPLED_LIFETIME] = self._env_steps
        if self.config.broadcast_env_runner_states and self.config.merge_env_runner_states:
            state |= self._connector_states()
        self._runner_state = state
        if self.env_runner is not None:
            self.env_runner.set_state(state)
        if self.env_runner_group.num_remote_workers():
            self._sent_state = ray.put(state)
        self._per_worker_parameters = self.learner_group.per_worker_parameters()

    def _connector_states(self) -> dict[str, Any]:
        """Returns the states of the driver's connector pipelines, as env runners take them."""
        pipelines = connector_pipelines(self)
        return {component: pipeline.get_state() for component, pipeline in pipelines.items()}

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

    def _record(self, rollouts: Rollouts, result: UpdateResult | None) -> None:
        """Writes metrics and the merge history."""
        layout, progress = self.config.worker_layout, self._progress
        drops = worker_drops(rollouts, result, layout)
        log_drops(progress.round, drops, self._drops)
        self._drops = drops
        ended = None
        if self._levels is not None:
            ended = self._levels.update(rollouts.plays, result.value_errors if result else {})
            for name, value in self._levels.summary().items():
                self.metrics.log_value((names.MERGE, names.LEVELS, name), value, window=1)
        records = worker_records(
            rollouts, result, drops, layout=layout, root_seed=progress.root_seed, ended=ended
        )
        summary = summarize(
            records,
            num_skipped_steps=result.num_skipped_steps if result else 0,
            num_replaced=progress.num_replaced,
            recent_returns=progress.recent_returns,
            **sampling_path(rollouts),
        )
        self._warn_of_stale_signals(summary[names.SIGNAL_AGE_MEAN])
        self._warn_of_unknown_success()
        if result and result.diagnostics:
            progress.diagnostics = diagnostic_metrics(result.diagnostics)
        for path, value in progress.diagnostics.items():
            key = (names.MERGE, names.DIAGNOSTICS, *path.split("/"))
            self.metrics.log_value(key, value, window=1)
        for name, value in summary.items():
            self.metrics.log_value((names.MERGE, name), value, window=1)
        for worker, values in worker_metrics(records).items():
            for name, value in values.items():
                key = (names.MERGE, names.WORKERS, worker, name)
                self.metrics.log_value(key, value, window=1)
        assert self._history is not None
        if progress.round == 1:
            # A trial that starts anew after a kill finds the rounds of its first life.
            self._history.truncate(0)
        self._history.append(progress.round, self._env_steps, records)
        try:
            self._idleness.note(
                progress.round,
                drops,
                is_updated=result is not None and result.num_steps > 0,
                limit=self.config.max_rounds_without_update,
            )
        except RuntimeError:
            self._history.flush()  # What is known of the rounds that led here.
            raise

    def _warn_of_stale_signals(self, mean_age: float) -> None:
        """Warns once of signals that are old where weights follow from them."""
        progress, reads = self._progress, self.config.merge_signals
        if not reads or progress.stale_rounds >= STALE_ROUNDS:  # Said already.
            return
        progress.stale_rounds = progress.stale_rounds + 1 if mean_age > 1 else 0
        if progress.stale_rounds < STALE_ROUNDS:
            return
        logger.warning(
            "The signal %r that the workers are weighed by is %.1f rounds old on average, for %d "
            "rounds in a row: few episodes end in a round, so that the weights say little of it. "
            'Use a signal that is new in every round, merge_options={"signal": "reward_rate"} or '
            '"value_target", or a larger `train_batch_size`.',
            reads[0],
            mean_age,
            STALE_ROUNDS,
        )

    def _warn_of_unknown_success(self) -> None:
        """Warns once where a strategy reads `success` and no episode has ever said any."""
        progress = self._progress
        is_unknown = bool(progress.episodes.ended) and not progress.episodes.successes
        if progress.round == STALE_ROUNDS and is_unknown and "success" in self.config.merge_signals:
            logger.warning(
                "`merge_strategy`=%r reads `success`, but none of the episodes so far said it in "
                '`info["is_success"]` or `info["success"]`: it goes by the spread of returns. '
                'Set merge_options={"success_return": …} if a return can tell.',
                self.config.merge_strategy,
            )

    def _trial_folder(self) -> tuple[Any, str]:
        """Returns where the files of this trial go: file system and folder.

        Tune's storage context is a private attribute of `Trainable` (tested with Ray 2.60).
        """
        if self._storage is not None:
            return self._storage.storage_filesystem, self._storage.trial_fs_path
        return LocalFileSystem(), self.logdir.rstrip("/")

    @property
    def rounds_done(self) -> int:
        """Number of rounds that this run has behind it, those before a restore included."""
        return self._progress.round

    # Checkpoints

    @override(Algorithm)
    def save_to_path(self, *args: Any, **kwargs: Any) -> Any:
        if self._history is not None:
            self._history.flush()
        return super().save_to_path(*args, **kwargs)

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        self._rescue.supersede()

    @override(Algorithm)
    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self._rounds_kept = self._rescue.restored_round
        super().load_checkpoint(checkpoint_dir)
        self._rounds_kept = 0
        if self._is_clone:
            self._rescue.forget()  # Of what this trial was before.
        else:
            self._rescue.restore_if_newer()

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        layout = dataclasses.asdict(self.config.worker_layout)
        state[_STATE_KEY] = {**dataclasses.asdict(self._progress), _LAYOUT: layout}
        if self._levels is not None:
            state[_STATE_KEY][_LEVELS_KEY] = self._levels.get_state()
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._runner_state = None
        if TRAINING_ITERATION not in state:
            return  # A part of a state only.
        self._progress = self._restored_progress(state)
        self._idleness = Idleness()
        self._levels = self.config.make_level_table()
        if self._levels is not None:
            self._levels.set_state(state.get(_STATE_KEY, {}).get(_LEVELS_KEY))
        self._restore_id = uuid.uuid4().hex
        if self._history is not None:
            self._history.describe(self.config.resolved_settings())
            kept = 0 if self._is_clone else self._rounds_kept
            self._history.truncate(max(self._progress.round, kept))

    def _restored_progress(self, state: dict[str, Any]) -> RunProgress:
        """Returns the progress in a state, without what does not fit; says what does not."""
        if _STATE_KEY not in state:
            logger.warning(
                "The checkpoint is of an algorithm that does not merge (RLlib's PPO?). Kept: the "
                "policy, the optimizer, connectors and RLlib's counters. Not in it: the workers' "
                "returns, which are their reward signals, and the counters of random streams; "
                "both begin anew, in round %d.",
                state[TRAINING_ITERATION] + 1,
            )
            return RunProgress(self._progress.root_seed, round=state[TRAINING_ITERATION])
        own = dict(state[_STATE_KEY])
        layout = own.pop(_LAYOUT, None)
        own.pop(_LEVELS_KEY, None)
        progress, now = RunProgress.from_state(own), self.config.worker_layout
        # 0.1 did not save it; but every slot has a counter from the first round on.
        known = now if len(progress.num_resets) in (0, now.num_slots) else None
        saved = known if layout is None else WorkerLayout(**layout)
        if saved is not None and saved.has_workers_of(now):
            return progress
        progress.last_returns, progress.episodes = {}, EpisodeSignals()
        counters = ""
        if saved is None or saved.num_slots != now.num_slots:
            progress.num_resets = {}
            counters = ", and the counters of the environments' seeds"
        logger.warning(
            "The checkpoint is of %s, this run has %s. Kept: the policy, the optimizer, "
            "connectors, counters of rounds and steps, the mean return. Dropped: the workers' last "
            "returns, so that a worker has no reward signal until an episode of its own has "
            "ended%s.",
            *(saved or "another number of sub-environments", now, counters),
        )
        return progress

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        with restoring(Path(path), self.get_module):
            super().restore_from_path(path, *args, **kwargs)
        self._runner_state = None
        if kwargs.get("component") is not None:
            return
        root, filesystem = str(path).rstrip("/"), kwargs.get("filesystem")
        built_for = self.learner_group.config
        if built_for.uses_per_worker_parameters != self.config.uses_per_worker_parameters:
            # A scheduler has changed the trial's strategy since its start, and the checkpoint has
            # brought that back: workers with parameters of their own need other optimizers.
            self.replace_learners(self.config)
            own = f"{root}/{COMPONENT_LEARNER_GROUP}"
            self.learner_group.restore_from_path(own, filesystem=filesystem)
        if self.env_runner is not None:
            # RLlib has just merged the living env runners' filters into the restored ones.
            own = f"{root}/{COMPONENT_ENV_RUNNER}"
            self.env_runner.restore_from_path(own, filesystem=filesystem)

    def replace_learners(self, config: WeightedPPOConfig) -> None:
        """Puts new learners, as `config` describes them, in the place of those there are."""
        module_spec = self.learner_group.module_spec
        self.learner_group.shutdown()
        self.learner_group = config.build_learner_group(rl_module_spec=module_spec)

    @override(Algorithm)
    def cleanup(self) -> None:
        """Ends all processes of the algorithm, whatever fails meanwhile.

        Raises:
            OSError: The last rounds of the merge history could not be written.
        """
        groups = [getattr(self, f"{name}env_runner_group", None) for name in ("", "eval_")]
        steps: list[Callable[[], Any]] = []
        if self._history is not None:
            steps.append(self._history.close)
        for group in groups:
            if group is not None and group.num_remote_workers():
                steps.append(functools.partial(kill_unresponsive, group))
        call_all([*steps, functools.partial(self._end_processes, groups)])

    def _end_processes(self, groups: list[Any]) -> None:
        """Calls RLlib's `cleanup`; where it (2.60) stops half way, ends what is left."""
        try:
            super().cleanup()
        except Exception:
            logger.exception("Stopping the learners failed; ending what is left.")
            learner_group = getattr(self, "learner_group", None)
            if learner_group is not None and not learner_group.is_local:
                learner_group.end_all()
            for group in groups:
                if group is not None:
                    group.stop()  # It logs its own failures.
