"""The env runner: samples a round in one call, and says which worker every episode belongs to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import ray
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.connectors.common.frame_stacking import FrameStacking
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import PrevActionsPrevRewards
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.rl_module import RLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted import _private
from rllib_weighted.core.envs import TRUE_REWARD
from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.processes import prepare_process
from rllib_weighted.core.rollouts import (
    CarriedReturns,
    EpisodeStats,
    Quotas,
    RolloutColumns,
    concatenated,
    episode_stats,
    finished_successes,
    with_episodes,
)
from rllib_weighted.core.seeding import Stream, draw_root_seed, seeded_globals, stream_seed
from rllib_weighted.core.workers import ENV_INDEX_KEY, NUMBER_KEY, WORKER_KEY
from rllib_weighted.sampling.collect import is_finite, repair_deltas
from rllib_weighted.sampling.envs import EnvSeeds
from rllib_weighted.sampling.fast_sampler import FastSampler, make_fast_sampler
from rllib_weighted.sampling.own_parameters import per_worker_policy, shadowed
from rllib_weighted.sampling.rollout_policy import ForwardPass

if TYPE_CHECKING:
    from rllib_weighted.config import WeightedPPOConfig

logger = logging.getLogger(__name__)

CHUNK_STEPS = 16  # Vector steps between two checks of which sub-environments are done.

Rollout = list[SingleAgentEpisode] | RolloutColumns


@dataclass(frozen=True)
class _Round:
    """How `_sample` samples when it is called for a training round.

    Args:
        quota: Steps of whole episodes that each sub-environment owes; None: episodes may be cut.
        as_columns: Whether to return columns.
        forwards: Name of a method of the module -> what to call instead; see `per_worker_policy`.
    """

    quota: int | None = None
    as_columns: bool = False
    forwards: Mapping[str, ForwardPass] = field(default_factory=dict)


class WeightedEnvRunner(SingleAgentEnvRunner):
    """Samples a round in one call and says of every episode which worker it came from.

    It overrides `make_env`, `make_module`, `sample`, `get_metrics`, `set_state` (public hooks) and
    `_sample`, `_new_episode`, `_try_env_reset` (private ones).
    """

    config: WeightedPPOConfig
    env: Any  # gymnasium's wrapper of a vector environment passes on any attribute.
    module: RLModule
    worker_index: int
    num_envs: int
    episodes_to_numpy: bool

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: WeightedPPOConfig, **kwargs: Any) -> None:
        self._index: int = kwargs.get("worker_index") or 0
        root_seed = draw_root_seed() if config.seed is None else config.seed
        self._seeds = EnvSeeds(config, self._index, root_seed)
        self._restore_id = ""
        # The round that is being sampled. RLlib's `sample`, whose metrics and callbacks are
        # wanted, passes no arguments of ours on to `_sample`.
        self._round: _Round | None = None
        self._returns = CarriedReturns()
        # Episode's id -> sum of its rewards that were NaN or infinite, which the learner never sees
        # and its return has to show.
        self._nonfinite: dict[str, float] = {}
        self._needs_env = False
        self._weights_seq_no: int = 0
        self._module_error: str | None = None
        self._config_seed = config.seed
        super().__init__(config=prepare_process(config, self._index), **kwargs)
        self.config.seed = self._config_seed
        self._look_far_enough_back()

    def _look_far_enough_back(self) -> None:
        """Lets a chunk carry all that the env-to-module connectors read of the steps before it.

        With RLlib's default of one step, frames that the module has seen are gone when the learner
        stacks them.
        """
        needed = needed_lookback(_private.env_to_module(self))
        if needed > self.config.episode_lookback_horizon:
            logger.info(
                "`episode_lookback_horizon` is raised from %s to %s: env-to-module connectors "
                "look that far back.",
                self.config.episode_lookback_horizon,
                needed,
            )
            self.config.episode_lookback_horizon = needed

    @property
    def workers(self) -> list[int]:
        """The worker of each sub-environment."""
        return self._seeds.workers

    # One training round

    def sample_round(self, request: SampleRequest) -> SampleResult:
        """Samples one training round.

        An exception of the environment or the module does not end the env runner: it comes back
        as `error`, and the next round starts with new environments. (Stock RLlib ends the actor,
        and the driver never sees the message.)

        Args:
            request: What to sample with.
        """
        try:
            return self._sample_round(request)
        except Exception:
            error = traceback.format_exc()
            self._forget_rollout()
            return SampleResult(env_runner=self._index, error=error)

    def _sample_round(self, request: SampleRequest) -> SampleResult:
        if self._module_error:
            raise RuntimeError(f"the module could not be built:\n{self._module_error}")
        if self.env is None:
            self.make_env()
        if request.state:
            state = request.state
            self.set_state(ray.get(state) if isinstance(state, ray.ObjectRef) else state)
        self._take_counters(request)
        self._seeds.take_invalid()  # Of an evaluation in between.
        before = self._connector_states()
        rollout = self._sample_rollout(request)
        invalid = self._seeds.take_invalid()
        after = self._connector_states()
        stats = episode_stats(rollout)
        plays = self._seeds.take_plays(stats, invalid)
        if self.config.batch_mode == "complete_episodes":
            self._seeds.count_kept(plays)
        return SampleResult(
            env_runner=self._index,
            episodes=[] if isinstance(rollout, RolloutColumns) else rollout,
            columns=rollout if isinstance(rollout, RolloutColumns) else None,
            is_fast=self.fast_sampler is not None,
            metrics=self.get_metrics(),
            connector_states=repair_deltas(before, after) if is_finite(after) else {},
            num_resets=self._seeds.num_resets,
            returns=self._returns.finished(stats, invalid),
            successes=finished_successes(stats),
            plays=plays,
            invalid=invalid,
        )

    def _sample_rollout(self, request: SampleRequest) -> Rollout:
        quota = self._steps_per_env()
        seed = stream_seed(request.root_seed, Stream.ACTIONS, self._index, request.round)
        fast = self.fast_sampler
        policy = per_worker_policy(self.module, request.per_worker_parameters, self.workers)
        with policy as forwards, seeded_globals(seed):
            self._round = _Round(
                quota if self.config.batch_mode == "complete_episodes" else None,
                request.takes_columns and fast is not None and fast.why_not_columns is None,
                forwards,
            )
            try:
                rollout: Rollout = self.sample(num_timesteps=quota * self.num_envs)
            finally:
                self._round = None
        return rollout

    def _connector_states(self) -> dict[str, Any]:
        """Returns the states of the connectors; RLlib's own have none."""
        if _private.custom_env_to_module(self.config) or _private.custom_module_to_env(self.config):
            return dict(self.get_state(not_components=[COMPONENT_RL_MODULE]))
        return {}

    def _take_counters(self, request: SampleRequest) -> None:
        own = self._seeds.num_resets
        if request.restore_id != self._restore_id:
            self._restore_id = request.restore_id
            self._needs_initial_reset = True
            self._returns = CarriedReturns()
            own = {}
        # Ours are ahead after a round that came too late for the algorithm.
        ahead = {slot: max(count, request.num_resets.get(slot, 0)) for slot, count in own.items()}
        num_resets = {**request.num_resets, **ahead}
        self._seeds.set_counters(request.root_seed, num_resets, request.levels)

    def _steps_per_env(self) -> int:
        """Returns the steps that each sub-environment owes to a round."""
        num_slots = self.config.worker_layout.num_slots
        length = self.config.rollout_fragment_length
        if length == "auto":  # RLlib's own answer differs between env runners.
            length = 1
        num_fragments = math.ceil(self.config.total_train_batch_size / (length * num_slots))
        return int(length * num_fragments)

    # Sampling, as RLlib calls it

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> Rollout:
        """Samples as in RLlib; evaluates, if this is not part of a training round.

        Evaluation has a random stream of its own per version of the weights. A training env
        runner evaluates too, by episodes, where RLlib has made no evaluation env runners.

        Whatever is raised meanwhile (Ctrl-C in a notebook too): the half rollout is forgotten, and
        the next one starts in new environments.

        Returns:
            Episodes; columns only in a round whose request takes them.
        """
        if self._needs_env:
            self.make_env()
        by_episodes = kwargs.get("num_episodes") is not None
        evaluates = self._round is None and (self.config.in_evaluation or by_episodes)
        try:
            with self._evaluating() if evaluates else contextlib.nullcontext():
                rollout: Rollout = super().sample(**kwargs)
        except BaseException:
            self._forget_rollout()
            raise
        return rollout

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Inside, seeds and actions are evaluation's."""
        version = self._weights_seq_no
        number = self._seeds.start_evaluation(version)
        counters = (self._index, version, number)
        seed = stream_seed(self._seeds.root_seed, Stream.EVALUATION_ACTIONS, *counters)
        try:
            with seeded_globals(seed):
                yield
        finally:
            if not self.config.in_evaluation:
                self._seeds.end_evaluation()

    def _forget_rollout(self) -> None:
        """Forgets what was sampled of a rollout that is not going to be whole."""
        self._discard_env()
        if (fast := vars(self).get("fast_sampler")) is not None:
            fast.forget()
        self._done_episodes_for_metrics.clear()
        self._ongoing_episodes_for_metrics.clear()
        self._nonfinite.clear()
        self._returns = CarriedReturns()
        self.metrics.reduce()

    @override(SingleAgentEnvRunner)
    def get_metrics(self) -> Any:
        """Returns RLlib's metrics; returns are those of the environments, NaN and infinite too."""
        done: list[Any] = self._done_episodes_for_metrics
        for index, episode in enumerate(done):
            if episode.id_ in self._nonfinite:
                is_stats = isinstance(episode, EpisodeStats)
                stats = episode if is_stats else episode_stats([episode])[0]
                total = stats.undiscounted_return + self._nonfinite[episode.id_]
                done[index] = dataclasses.replace(stats, undiscounted_return=total)
        metrics = super().get_metrics()
        ongoing = self._ongoing_episodes_for_metrics
        self._nonfinite = {id_: sum_ for id_, sum_ in self._nonfinite.items() if id_ in ongoing}
        return metrics

    def _note_nonfinite(self, found: Mapping[str, float]) -> None:
        for id_, rewards in found.items():
            self._nonfinite[id_] = self._nonfinite.get(id_, 0.0) + rewards

    @override(SingleAgentEnvRunner)
    def _sample(self, **kwargs: Any) -> Rollout:
        """Samples on the fast path if it can, else in RLlib's own loop."""
        round_ = self._round or _Round()
        explores = kwargs.get("explore", True) and not kwargs.get("random_actions")
        by_steps = kwargs.get("num_timesteps") is not None
        fast = self.fast_sampler
        if fast is None or not (explores and by_steps):
            if fast is not None and fast.is_under_way:
                fast.forget()
                self._needs_initial_reset = True
            with shadowed(self.module, round_.forwards):
                return self._sample_own_loop(round_, kwargs)
        columns, chunks = self._sample_fast(fast, round_, kwargs)
        rollout: Rollout = columns
        if not round_.as_columns:
            spaces = _private.env_to_module(self).observation_space, self.env.single_action_space
            rollout = columns.to_episodes(*spaces)
            # A callback may change the rewards: metrics are taken of the episodes themselves.
            chunks = with_episodes(chunks, rollout)
        _private.log_episodes(self, chunks)
        return rollout

    @functools.cached_property
    def fast_sampler(self) -> FastSampler | None:
        """The fast sampler; None if something in the config needs RLlib's own loop."""
        return make_fast_sampler(self, self._try_env_reset)

    def _sample_fast(
        self, fast: FastSampler, round_: _Round, kwargs: dict[str, Any]
    ) -> tuple[RolloutColumns, list[Any]]:  # `log_episodes` says of what.
        """Returns the rollout, and the stats of all chunks, those that it leaves out too."""

        def sample(num_timesteps: int, *, force_reset: bool = False, **_: Any) -> RolloutColumns:
            if self._needs_initial_reset or force_reset or not fast.is_under_way:
                fast.forget()
                self._ongoing_episodes_for_metrics.clear()
            columns = fast.sample(
                num_timesteps,
                with_infos=not round_.as_columns,
                forward=round_.forwards.get("forward_exploration"),
            )
            self._needs_initial_reset = False
            self._note_nonfinite(columns.take_nonfinite_rewards())
            return columns

        if round_.quota is None:
            columns = sample(**kwargs)
            return columns, episode_stats(columns)
        parts, kept = self._until_complete(sample, round_.quota, kwargs)
        columns = concatenated(parts)
        return columns.joined(kept), episode_stats(columns)

    def _sample_own_loop(self, round_: _Round, kwargs: dict[str, Any]) -> list[SingleAgentEpisode]:
        if round_.quota is None:
            cut: list[SingleAgentEpisode] = super()._sample(**kwargs)
            self._note_nonfinite(_nonfinite_rewards(cut))
            return cut
        parts, kept = self._until_complete(self._sample_uncut, round_.quota, kwargs)
        episodes = [episode for part in parts for episode in part if episode.id_ in kept]
        return [e.to_numpy() for e in episodes] if self.episodes_to_numpy else episodes

    def _until_complete(
        self, sample: Callable[..., Any], quota: int, kwargs: dict[str, Any]
    ) -> tuple[list[Any], set[str]]:
        """Samples whole episodes: each sub-environment runs until its own hold `quota` steps.

        Every sub-environment starts a new episode at the start of the round. What the faster
        ones do while the last one finishes is dropped, so that no worker is preferred.

        Args:
            sample: As `_sample`; its rollouts come back as they are.
            quota: See `_Round`.
            kwargs: Arguments of `sample` for the first call.

        Returns:
            The rollouts, and the ids of the episodes to keep.
        """
        quotas = Quotas(self.num_envs, quota)
        parts = [sample(**{**kwargs, "force_reset": True})]
        quotas.add(episode_stats(parts[0]))
        kwargs = {**kwargs, "num_timesteps": CHUNK_STEPS * self.num_envs}
        while not quotas.met:
            parts.append(sample(**kwargs))
            quotas.add(episode_stats(parts[-1]))
        return parts, quotas.kept

    def _sample_uncut(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Samples in RLlib's own loop, where an episode stays one object for the callbacks.

        Returns:
            The episodes that ended, as lists; the ongoing ones go on in the next call.
        """
        to_numpy, self.episodes_to_numpy = self.episodes_to_numpy, False
        try:
            episodes = super()._sample(**kwargs)
        finally:
            self.episodes_to_numpy = to_numpy
        for episode in episodes:
            if not episode.is_done:
                self._ongoing_episodes[episode.custom_data[ENV_INDEX_KEY]] = episode
                del self._ongoing_episodes_for_metrics[episode.id_]
        done = [episode for episode in episodes if episode.is_done]
        self._note_nonfinite(_nonfinite_rewards(done))
        return done

    @override(SingleAgentEnvRunner)
    def _new_episode(
        self, env_index: int, episodes: list[SingleAgentEpisode] | None = None
    ) -> None:
        super()._new_episode(env_index, episodes)
        episode = (self._ongoing_episodes if episodes is None else episodes)[env_index]
        episode.custom_data[ENV_INDEX_KEY] = env_index
        episode.custom_data[WORKER_KEY] = self.workers[env_index]
        episode.custom_data[NUMBER_KEY] = self._seeds.next_episode(env_index)

    # State and environments

    @override(SingleAgentEnvRunner)
    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state and state.get(WEIGHTS_SEQ_NO, 0) > 0:
            # RLlib would take newer weights only. A restored checkpoint's may be older, or others
            # of the same number.
            self._weights_seq_no = 0
        super().set_state(state)

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Builds the vector environment: as RLlib does, but see `EnvSeeds.build`."""
        self.config.seed = self._config_seed  # Missing in RLlib's constructor; callbacks see it.
        mode = gym.VectorizeMode(self.config.gym_env_vectorize_mode)
        self._discard_env()
        self._needs_env = False
        if mode == gym.VectorizeMode.VECTOR_ENTRY_POINT:
            super().make_env()
            return
        context = EnvContext(
            self.config.env_config,
            worker_index=self.worker_index,
            num_workers=self.num_workers,
            remote=self.config.remote_worker_envs,
        )
        self.env = DictInfoToList(self._seeds.build(self.config, context))
        self.num_envs = self.env.num_envs
        self._needs_initial_reset = True
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

    @override(SingleAgentEnvRunner)
    def make_module(self) -> None:
        """Builds the module; an env runner of its own that cannot comes into being all the same.

        A constructor that raises ends the actor, and Ray starts it again for ever. The driver fails
        with the same error where it builds the module itself; if it does not, the first round does.
        """
        try:
            super().make_module()
        except Exception:
            if not self._index:
                raise
            self.module = None
            self._module_error = traceback.format_exc()

    def _discard_env(self) -> None:
        if self.env is None:
            return
        self._seeds.release()
        try:
            self.env.close()
        except Exception:
            logger.warning("Closing a failed environment raised; going on.", exc_info=True)
        self.env = None
        self._needs_env = True

    @override(SingleAgentEnvRunner)
    def _try_env_reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Resets all sub-environments; RLlib's own `seed` (its overlapping streams) is ignored."""
        return super()._try_env_reset(seed=self._seeds.next_whole_reset(), options=options)


def needed_lookback(pipeline: ConnectorPipelineV2) -> int:
    """Returns how many steps before an observation RLlib's env-to-module connectors read."""
    needed = [0]
    for piece in pipeline.connectors:
        if isinstance(piece, ConnectorPipelineV2):
            needed.append(needed_lookback(piece))
        elif isinstance(piece, FrameStacking):
            needed.append(piece.num_frames - 1)
        elif isinstance(piece, PrevActionsPrevRewards):
            needed += [piece.n_prev_actions, piece.n_prev_rewards]
    return max(needed)


def _nonfinite_rewards(episodes: Sequence[SingleAgentEpisode]) -> dict[str, float]:
    """Returns episode's id -> the sum of the rewards in whose place `SeededEnv` has put 0."""
    found: dict[str, float] = {}
    for episode in episodes:
        for info in episode.get_infos():
            if info and TRUE_REWARD in info:
                found[episode.id_] = found.get(episode.id_, 0.0) + info[TRUE_REWARD]
    return found
