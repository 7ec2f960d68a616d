"""The env runner: tags every episode with its worker, samples on counted random streams."""

from __future__ import annotations

import functools
import logging
import math
import traceback
from typing import Any

import gymnasium as gym
import ray
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted.sampling.episodes import ENV_INDEX_KEY, Quotas, join_chunks
from rllib_weighted.sampling.fast_path import FastSampler, why_not_fast
from rllib_weighted.sampling.filters import is_finite, repair_deltas
from rllib_weighted.sampling.rounds import RoundOrder, RoundRollouts
from rllib_weighted.sampling.seeded_env import env_maker
from rllib_weighted.seeding import (
    Stream,
    draw_root_seed,
    environment_seed,
    seeded_globals,
    stream_seed,
)
from rllib_weighted.workers import WORKER_KEY, WorkerLayout

logger = logging.getLogger(__name__)

CHUNK_STEPS = 16  # Vector steps between two looks at which sub-environments are done.


class WeightedEnvRunner(SingleAgentEnvRunner):
    """Samples a round in one call and says of every episode which worker it came from.

    It overrides `make_env`, `sample`, `set_state` (public hooks) and `_sample`, `_new_episode`,
    `_try_env_reset` (private ones; tested with Ray 2.60).
    """

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._layout = WorkerLayout(
            config.num_env_runners, config.num_envs_per_env_runner, config.merge_unit
        )
        self._root_seed = draw_root_seed() if config.seed is None else config.seed
        self._num_resets: dict[int, int] = {}
        self._num_calls = 0
        self._quota: int | None = None
        self._carried_returns: dict[str, float] = {}
        self._evaluated_version = 0
        self._weights_seq_no: int = 0
        self._has_seeded_envs = False
        super().__init__(config=config, **kwargs)

    # Sampling

    def sample_round(self, order: RoundOrder | ray.ObjectRef) -> RoundRollouts:
        """Samples one training round.

        An exception of the environment or the module does not end the env runner: it comes back
        as `error`, and the next round starts with new environments. (Stock RLlib ends the actor,
        and the driver never sees the message.)

        Args:
            order: What to sample with, or a reference to it.
        """
        try:
            return self._sample_round(ray.get(order) if isinstance(order, ray.ObjectRef) else order)
        except Exception:
            error = traceback.format_exc()
            self.make_env()
            return RoundRollouts(env_runner=self.worker_index, error=error)

    def _sample_round(self, order: RoundOrder) -> RoundRollouts:
        if order.state:
            self.set_state(order.state)
        self._take_counters(order)
        not_connectors = [COMPONENT_RL_MODULE]
        before = self.get_state(not_components=not_connectors)
        complete = self.config.batch_mode == "complete_episodes"
        self._quota = self._steps_per_env() if complete else None
        seed = stream_seed(order.root_seed, Stream.ACTIONS, self.worker_index, order.round)
        try:
            with seeded_globals(seed):
                episodes = self.sample(num_timesteps=self._steps_per_env() * self.num_envs)
        finally:
            self._quota = None
        faults = self._take_faults()
        after = self.get_state(not_components=not_connectors)
        return RoundRollouts(
            env_runner=self.worker_index,
            episodes=episodes,
            metrics=self.get_metrics(),
            connector_states=repair_deltas(before, after) if is_finite(after) else {},
            num_resets=self._used_resets(),
            returns=self._finished_returns(episodes, faults),
            faults=faults,
        )

    def _steps_per_env(self) -> int:
        """Steps that each sub-environment owes to a round."""
        length = self.config.get_rollout_fragment_length(self.worker_index)
        per_fragment = length * self._layout.num_slots
        return int(length * math.ceil(self.config.total_train_batch_size / per_fragment))

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        if not self.config.in_evaluation:
            episodes: list[SingleAgentEpisode] = super().sample(**kwargs)
            return episodes
        # Evaluation: a stream of its own per version of the weights, not what was left over.
        self._num_calls += 1
        seed = stream_seed(
            self._root_seed,
            Stream.EVALUATION_ACTIONS,
            self.worker_index,
            self._weights_seq_no,
            self._num_calls,
        )
        with seeded_globals(seed):
            episodes = super().sample(**kwargs)
        return episodes

    @override(SingleAgentEnvRunner)
    def _sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        if self._quota is not None:
            return self._sample_complete(self._quota, **kwargs)
        return self._sample_steps(**kwargs)

    def _sample_steps(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Samples on the fast path if it will do, else in RLlib's own loop."""
        in_rounds = kwargs.get("num_timesteps") is not None and not kwargs.get("random_actions")
        if not in_rounds or self.fast_sampler is None:
            if self.fast_sampler is not None:
                self.fast_sampler.forget()
                self._needs_initial_reset = True
            episodes: list[SingleAgentEpisode] = super()._sample(**kwargs)
            return episodes
        if self._needs_initial_reset:
            self.fast_sampler.forget()
            self._ongoing_episodes_for_metrics.clear()
        episodes, steps = self.fast_sampler.sample(
            num_timesteps=kwargs["num_timesteps"],
            explore=kwargs["explore"],
            force_reset=kwargs.get("force_reset", False),
        )
        self._needs_initial_reset = False
        done = [episode for episode in episodes if episode.is_done]
        self._done_episodes_for_metrics.extend(done)
        for episode in episodes[len(done) :]:
            self._ongoing_episodes_for_metrics[episode.id_].append(episode)
        self._increase_sampled_metrics(steps, len(done))
        return episodes

    @functools.cached_property
    def fast_sampler(self) -> FastSampler | None:
        """The fast vector path; None if something in the config needs RLlib's own loop."""
        reason = "it evaluates" if self.config.in_evaluation else why_not_fast(self)
        if reason is not None:
            logger.info("Env runner %s samples in RLlib's own loop: %s.", self.worker_index, reason)
            return None
        logger.info("Env runner %s samples on the fast path.", self.worker_index)
        return FastSampler(self)

    def _sample_complete(self, quota: int, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Samples whole episodes: each sub-environment runs until they hold `quota` steps.

        Every sub-environment starts a new episode at the start of the round. What the faster
        ones do while the last one finishes is left out, so that no worker is preferred.
        """
        chunks = self._sample_steps(**{**kwargs, "force_reset": True})
        quotas = Quotas(self.num_envs, quota)
        quotas.add(chunks)
        kwargs["num_timesteps"] = CHUNK_STEPS * self.num_envs
        while not quotas.met:
            more = self._sample_steps(**kwargs)
            quotas.add(more)
            chunks += more
        return join_chunks(chunk for chunk in chunks if chunk.id_ in quotas.kept)

    # Identity

    @override(SingleAgentEnvRunner)
    def _new_episode(self, env_index: int, episodes: Any = None) -> None:
        super()._new_episode(env_index, episodes)
        self.tag_episode(
            (self._ongoing_episodes if episodes is None else episodes)[env_index], env_index
        )

    def tag_episode(self, episode: SingleAgentEpisode, env_index: int) -> None:
        """Writes into an episode which sub-environment and which worker it comes from."""
        episode.custom_data[ENV_INDEX_KEY] = env_index
        episode.custom_data[WORKER_KEY] = self._layout.worker(self.worker_index, env_index)

    def _finished_returns(
        self, episodes: list[SingleAgentEpisode], faults: dict[int, str]
    ) -> dict[int, list[float]]:
        """Adds up the chunks of every episode; returns worker -> returns of those that ended."""
        finished: dict[int, list[float]] = {}
        carried: dict[str, float] = {}
        for episode in episodes:
            worker = episode.custom_data[WORKER_KEY]
            so_far = self._carried_returns.pop(episode.id_, 0.0) + float(episode.get_return())
            if worker in faults:
                so_far = math.nan  # Part of this episode's reward is unknown.
            if not episode.is_done:
                carried[episode.id_] = so_far
            elif math.isfinite(so_far):
                finished.setdefault(worker, []).append(so_far)
        self._carried_returns = carried
        return finished

    # State

    @override(SingleAgentEnvRunner)
    def set_state(self, state: Any) -> None:
        if 0 < state.get(WEIGHTS_SEQ_NO, 0) < self._weights_seq_no:
            self._weights_seq_no = 0  # An older checkpoint was restored: take its weights too.
        super().set_state(state)
        if self.config.in_evaluation and self._evaluated_version != self._weights_seq_no:
            self._evaluated_version = self._weights_seq_no
            self._num_calls = 0
            self._num_resets = {}
            self._write_counters()

    def _take_counters(self, order: RoundOrder) -> None:
        self._root_seed = order.root_seed
        own = self._used_resets()
        self._num_resets = {s: max(n, order.num_resets.get(s, 0)) for s, n in own.items()}
        self._write_counters()

    def _slots(self) -> list[int]:
        return [self._layout.slot(self.worker_index, i) for i in range(self.num_envs)]

    def _used_resets(self) -> dict[int, int]:
        if not self._has_seeded_envs:
            return {slot: self._num_resets.get(slot, 0) for slot in self._slots()}
        return dict(zip(self._slots(), self.env.unwrapped.get_attr("num_resets"), strict=True))

    def _write_counters(self) -> None:
        if self._has_seeded_envs:
            counts = [self._num_resets.get(slot, 0) for slot in self._slots()]
            versions = [self._evaluated_version] * self.num_envs
            self.env.unwrapped.set_attr("num_resets", counts)
            self.env.unwrapped.set_attr("weights_version", versions)
            self.env.unwrapped.set_attr("root_seed", [self._root_seed] * self.num_envs)

    def _take_faults(self) -> dict[int, str]:
        if not self._has_seeded_envs:
            return {}
        faults = self.env.unwrapped.get_attr("fault")
        self.env.unwrapped.set_attr("fault", [None] * self.num_envs)
        return {
            self._layout.worker(self.worker_index, index): f"sub-environment {index}: {fault}"
            for index, fault in enumerate(faults)
            if fault is not None
        }

    # Environments

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Builds the vector environment, each sub-environment inside a `SeededEnv`.

        As in stock RLlib, plus: `EnvContext.vector_index` is the sub-environment's own index. A
        vector entry point builds its sub-environments itself: only whole resets are seeded there.
        """
        mode = gym.VectorizeMode(self.config.gym_env_vectorize_mode)
        if mode == gym.VectorizeMode.VECTOR_ENTRY_POINT:
            super().make_env()
            return
        self._close_env()
        context = EnvContext(
            self.config.env_config,
            worker_index=self.worker_index,
            num_workers=self.num_workers,
            remote=self.config.remote_worker_envs,
        )
        makers = [
            env_maker(
                self.config.env,
                context.copy_with_overrides(vector_index=index),
                seed=self._root_seed,
                slot=self._layout.slot(self.worker_index or 0, index),
                num_slots=self._layout.num_slots,
                evaluation=self.config.in_evaluation,
                seeding=self.config.env_seeding,
            )
            for index in range(self.config.num_envs_per_env_runner)
        ]
        is_async = mode == gym.VectorizeMode.ASYNC
        vector_class = gym.vector.AsyncVectorEnv if is_async else gym.vector.SyncVectorEnv
        self.env = DictInfoToList(vector_class(makers))
        self.num_envs = self.env.num_envs
        self._has_seeded_envs = True
        self._needs_initial_reset = True
        self._write_counters()
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env.unwrapped,
                "env_context": context,
            },
        )

    def _close_env(self) -> None:
        if self.env is None:
            return
        self._carried_returns = {}
        try:
            self._num_resets = self._used_resets()
            self.env.close()
        except Exception:
            logger.warning("Closing a failed environment raised; going on.", exc_info=True)

    @override(SingleAgentEnvRunner)
    def _try_env_reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Resets all sub-environments; RLlib's own `seed` (its overlapping streams) is ignored."""
        if self._has_seeded_envs:
            return super()._try_env_reset(seed=None, options=options)
        seeds = [self._whole_reset_seed(slot) for slot in self._slots()]
        self._num_resets = {slot: n + 1 for slot, n in self._used_resets().items()}
        return super()._try_env_reset(seed=seeds, options=options)

    def _whole_reset_seed(self, slot: int) -> int:
        count = self._num_resets.get(slot, 0)
        evaluation = self.config.in_evaluation
        return environment_seed(
            self._root_seed,
            slot=slot,
            num_slots=self._layout.num_slots,
            evaluation=evaluation,
            counters=(self._evaluated_version, count) if evaluation else (count,),
        )
