"""The fast sampler: a whole rollout on arrays, without RLlib's per-step episodes and connectors.

RLlib's own loop runs connector pipelines, appends to episode objects and logs metrics at every
vector step. Where nothing in the config can see the difference, `FastSampler` does the same
arithmetic on the same random stream in a fraction of the time: both give the same rollouts, bit
for bit. First what it needs, then the sampler; how it steps environments and how it acts are in
`steppers.py` and `rollout_policy.py`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModule
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import (
    ENV_STEP_TIMER,
    RLMODULE_INFERENCE_TIMER,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_weighted import _private
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.envs import OWN
from rllib_weighted.core.modules import overriding_class
from rllib_weighted.core.observations import DEFAULT_MODULES
from rllib_weighted.core.rollouts import CHUNK, RolloutColumns, ranges
from rllib_weighted.sampling.envpool import EnvPoolVectorEnv
from rllib_weighted.sampling.rollout_policy import (
    ForwardPass,
    RolloutPolicy,
    actions_for_env,
    evaluating,
)
from rllib_weighted.sampling.steppers import DirectStepper, Infos, Step, Stepper, can_step_directly

if TYPE_CHECKING:
    from rllib_weighted.config import WeightedPPOConfig

logger = logging.getLogger(__name__)
Reset = Callable[[], tuple[np.ndarray, Infos]]
"""Resets all sub-environments: observations of [envs, …], and infos."""


class FastEnvRunner(Protocol):
    """What the fast sampler uses of its env runner.

    Attributes:
        config: The env runner's config.
        worker_index: RLlib's index of the env runner.
        module: The policy; RLlib's classes are untyped.
        env: The vector environment; a new one after a failure.
        num_envs: Number of sub-environments.
        metrics: Where the times of its steps go.
    """

    config: WeightedPPOConfig
    worker_index: int
    module: RLModule
    env: Any  # gymnasium's wrapper of a vector environment passes on any attribute.
    num_envs: int
    metrics: MetricsLogger

    @property
    def workers(self) -> list[int]:
        """The worker of each sub-environment."""


# What the fast sampler needs


def _callback(*names: str) -> Callable[[FastEnvRunner], str | None]:
    """Returns env runner -> which of these callbacks the user has overridden or set."""

    def reason(env_runner: FastEnvRunner) -> str | None:
        classes = force_list(env_runner.config.callbacks_class)
        for name in names:
            # RLlib's own subclasses count too: what they do needs episodes.
            stock = getattr(RLlibCallback, name)
            if any(getattr(cls, name, None) is not stock for cls in classes) or (
                getattr(env_runner.config, f"callbacks_{name}") is not None
            ):
                return f"the callback `{name}`"
        return None

    return reason


def _has_default_module_to_env(env_runner: FastEnvRunner) -> bool:
    config = env_runner.config
    return bool(
        config.add_default_connectors_to_env_to_module_pipeline
        and config.add_default_connectors_to_module_to_env_pipeline
        and not _private.custom_module_to_env(config)
    )


def _filters(env_runner: FastEnvRunner) -> list[MeanStdFilter]:
    """Returns the user's connectors, which come before RLlib's default ones."""
    if not _private.custom_env_to_module(env_runner.config):
        return []
    pipeline = _private.env_to_module(env_runner)
    return list(pipeline.connectors)[: -_private.NUM_DEFAULT_CONNECTORS]


def _is_on(setting: str) -> Requirement[FastEnvRunner]:
    return required(
        f"`{setting}=True`", lambda runner: getattr(runner.config, setting), f"`{setting}`=False"
    )


FAST_SAMPLING: tuple[Requirement[FastEnvRunner], ...] = (
    required("Training", lambda runner: not runner.config.in_evaluation, "it evaluates"),
    _is_on("fast_sampling"),
    required(
        '`gym_env_vectorize_mode="sync"`, or EnvPool',
        lambda runner: isinstance(
            runner.env.unwrapped, (gym.vector.SyncVectorEnv, EnvPoolVectorEnv)
        ),
        "the vector environment is not a synchronous one",
    ),
    required(
        "RLlib's default PPO module, without memory",
        lambda runner: type(runner.module) in DEFAULT_MODULES and not runner.module.is_stateful(),
        "the module is a custom or a recurrent one",
    ),
    required(
        "`Box` observations",
        lambda runner: isinstance(runner.env.single_observation_space, gym.spaces.Box),
        "the observation space is not a Box",
    ),
    required(
        "`Box` or `Discrete` actions",
        lambda runner: isinstance(
            runner.env.single_action_space, (gym.spaces.Box, gym.spaces.Discrete)
        ),
        "the action space is neither Box nor Discrete",
    ),
    required(
        "RLlib's connectors between module and environment",
        _has_default_module_to_env,
        "custom module-to-env connectors",
    ),
    required(
        "No other env-to-module connector than `MeanStdFilter`",
        lambda runner: all(type(piece) is MeanStdFilter for piece in _filters(runner)),
        "custom env-to-module connectors",
    ),
    required(
        "`restart_failed_sub_environments=False`",
        lambda runner: not runner.config.restart_failed_sub_environments,
        "`restart_failed_sub_environments`",
    ),
    _is_on("explore"),
    _is_on("episodes_to_numpy"),
    Requirement(
        "No callbacks on episodes",
        _callback("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end"),
    ),
)


def _override(env_runner: FastEnvRunner) -> str | None:
    """Returns which method a user's subclass overrides to see or change what is sampled."""
    # Ray's subclass of an actor wraps all methods for tracing: it overrides nothing.
    cls = getattr(type(env_runner), "__ray_actor_class__", type(env_runner))
    for hook in ("get_metrics", "sample", "_sample", "sample_round"):
        if owner := overriding_class(cls, hook):
            return f"{owner} overrides `{hook}`"
    return None


COLUMN_SAMPLING: tuple[Requirement[FastEnvRunner], ...] = (
    Requirement("No subclass overrides what is sampled", _override),
    Requirement("No callback `on_sample_end`", _callback("on_sample_end")),
)


def why_not_fast_sampling(env_runner: FastEnvRunner) -> str | None:
    """Returns why an env runner must sample in RLlib's own loop; None if it can go faster."""
    return first_reason(FAST_SAMPLING, env_runner)


def why_not_column_sampling(env_runner: FastEnvRunner) -> str | None:
    """Returns why a fast rollout must become episodes; None if it can stay columns."""
    return first_reason(COLUMN_SAMPLING, env_runner)


def make_fast_sampler(env_runner: FastEnvRunner, reset: Reset) -> FastSampler | None:
    """Returns the fast sampler, or None if something needs RLlib's own loop; logs which.

    Args:
        env_runner: The env runner.
        reset: See `FastSampler`.
    """
    index = env_runner.worker_index
    if reason := why_not_fast_sampling(env_runner):
        logger.info("Env runner %s samples in RLlib's own loop: %s.", index, reason)
        return None
    sampler = FastSampler(env_runner, reset)
    reason = sampler.why_not_columns
    what = f"episodes: {reason}" if reason else "columns, if the learner takes them"
    logger.info("Env runner %s samples on the fast path and hands on %s.", index, what)
    return sampler


# Sampling


class FastSampler:
    """Samples for one env runner on arrays; ongoing episodes go on in the next call.

    Args:
        env_runner: An env runner for which `why_not_fast_sampling` is None.
        reset: Resets all sub-environments: observations, [envs, …], and infos.

    Attributes:
        why_not_columns: Why its rollouts must become episodes; None if they can stay columns.
    """

    def __init__(self, env_runner: FastEnvRunner, reset: Reset) -> None:
        self._runner = env_runner
        self._reset_envs = reset
        self.why_not_columns = why_not_column_sampling(env_runner)
        self._device = _private.device(env_runner)
        self._filters = _filters(env_runner)
        self._for_env = actions_for_env(env_runner.config, env_runner.env.single_action_space)
        self._raw = np.empty(0)  # [envs, …] as the environments gave them.
        self._obs: np.ndarray | None = None  # [envs, …] as the module sees them.
        self._infos: Infos | None = None
        self._resets_next = np.empty(0, np.bool_)  # [envs]: whether the next step is a reset.
        # Of each sub-environment: the episode's id, its steps so far, and its number.
        self._ongoing: list[tuple[str, int, int]] = []

    @property
    def is_under_way(self) -> bool:
        """Whether the next call goes on with the ongoing episodes."""
        return self._obs is not None

    def forget(self) -> None:
        """Drops the ongoing episodes; the next call starts with a reset."""
        self._obs = None

    def sample(
        self, num_timesteps: int, *, with_infos: bool, forward: ForwardPass | None = None
    ) -> RolloutColumns:
        """Steps the environments, exploring, until `num_timesteps` steps are done.

        Args:
            num_timesteps: Environment steps over all sub-environments; resets do not count.
            with_infos: Whether to return the environments' infos; sampling is slower with them.
            forward: What to explore with instead of the module's own forward pass.

        Returns:
            Done episodes in the order in which they ended, then the ongoing chunks. Non-finite
            rewards are among their rewards: see `RolloutColumns.take_nonfinite_rewards`.
        """
        if self._obs is None:
            self._obs = self._reset()
        env, module = self._runner.env, self._runner.module
        stepper: Stepper
        if with_infos or not can_step_directly(env):
            stepper = Stepper(env, self._resets_next)
        else:
            stepper = DirectStepper(env, self._raw)
        obs, resets, infos = [self._obs], [self._resets_next], [self._infos]
        steps: list[Step] = []
        clock, acting = [time.perf_counter()], 0.0
        missing = num_timesteps
        with evaluating(module):
            policy = RolloutPolicy(module, self._device, forward)
            while missing > 0:
                actions = self._for_env(policy.act(obs[-1]))
                acting += time.perf_counter() - clock[-1]
                step = stepper.step(actions, resets[-1])
                clock.append(time.perf_counter())
                missing -= len(resets[-1]) - int(np.count_nonzero(resets[-1]))
                self._raw, self._infos = step.obs, step.infos
                self._obs = self._filtered(step.obs)
                self._resets_next = step.terminateds | step.truncateds
                obs.append(self._obs)
                resets.append(self._resets_next)
                infos.append(step.infos)
                steps.append(step)
            stepper.leave()
        self._log_times(clock, acting)
        kept = infos if with_infos else []
        return self._columns(obs, resets[:-1], kept, steps, policy.columns(), clock)

    def _log_times(self, clock: list[float], acting: float) -> None:
        """Logs the mean time of the call's steps, under RLlib's names."""
        num_steps, seconds = len(clock) - 1, clock[-1] - clock[0]
        if num_steps:
            for timer, spent in (
                (RLMODULE_INFERENCE_TIMER, acting),
                (ENV_STEP_TIMER, seconds - acting),
            ):
                self._runner.metrics.log_value(timer, spent / num_steps, reduce="ema")

    def _reset(self) -> np.ndarray:
        num_envs = self._runner.num_envs
        obs, self._infos = self._reset_envs()
        self._raw = obs.copy()
        self._resets_next = np.zeros(num_envs, np.bool_)
        counts = self._runner.env.unwrapped.get_attr(f"{OWN}num_resets")  # This reset among them.
        self._ongoing = [(uuid.uuid4().hex, 0, count - 1) for count in counts]
        return self._filtered(self._raw)

    def _filtered(self, obs: np.ndarray) -> np.ndarray:
        if not self._filters:
            return obs
        rows = list(obs)
        for piece in self._filters:
            rows = _private.filtered(piece, rows)
        return np.stack(rows)

    def _columns(
        self,
        obs: list[np.ndarray],
        resets: list[np.ndarray],
        infos: list[Infos | None],
        steps: list[Step],
        columns: dict[str, np.ndarray],
        clock: list[float],
    ) -> RolloutColumns:
        """Cuts a rollout of T vector steps into chunks, one after the other.

        Args:
            obs: T + 1 arrays of [envs, …] as the module sees them.
            resets: T arrays of [envs]: whether the step was a reset, and so none.
            infos: T + 1 lists, None of a step without; empty if nobody wants them.
            steps: T vector steps.
            columns: Name -> [T, envs, …]: what the policy computed.
            clock: T + 1 times in seconds: before the first step, and after each.
        """
        if isinstance(self._runner.env.single_action_space, gym.spaces.Discrete):
            columns[Columns.ACTIONS] = columns[Columns.ACTIONS].astype(np.int32)  # As RLlib's.
        columns[Columns.REWARDS] = np.stack([step.rewards for step in steps])
        terminated = np.stack([step.terminateds for step in steps])
        truncated = np.stack([step.truncateds for step in steps])
        spans = _spans(np.stack(resets), terminated | truncated)
        env, start, stop = np.array(spans, np.int64).reshape(-1, 3).T

        def gather(column: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            rows = ranges(start, lengths) * column.shape[1] + np.repeat(env, lengths)
            return np.asarray(column.reshape(-1, *column.shape[2:])[rows])

        chunks = np.zeros(len(spans), CHUNK)
        chunks["env_index"], chunks["length"] = env, stop - start
        chunks["worker"] = np.array(self._runner.workers)[env]
        chunks["terminated"] = terminated[stop - 1, env]
        chunks["truncated"] = truncated[stop - 1, env]
        ends = zip((stop - 1).tolist(), env.tolist(), strict=True)
        successes = [steps[t].successes.get(index) for t, index in ends]
        chunks["success"] = [-1 if success is None else success for success in successes]
        chunks[WEIGHTS_SEQ_NO] = _private.weights_version(self._runner)
        seconds = np.array(clock)
        chunks["seconds"] = seconds[stop] - seconds[start]
        for chunk, index in zip(chunks, env.tolist(), strict=True):
            id_, t, number = self._ongoing[index]
            chunk["id"], chunk["t_started"], chunk["number"] = id_, t, number
            is_done = chunk["terminated"] or chunk["truncated"]
            self._ongoing[index] = (
                (uuid.uuid4().hex, 0, number + 1)
                if is_done
                else (id_, t + int(chunk["length"]), number)
            )
        return RolloutColumns(
            gather(np.stack(obs), stop - start + 1),
            {name: gather(column, stop - start) for name, column in columns.items()},
            chunks,
            gather(_infos_array(infos, len(obs[0])), stop - start + 1) if infos else None,
        )


def _infos_array(infos: list[Infos | None], num_envs: int) -> np.ndarray:
    """Returns infos as [T + 1, envs] of dicts; empty ones where a step was taken without."""
    array = np.empty((len(infos), num_envs), object)
    for row, step in zip(array, infos, strict=True):
        row[:] = [{} for _ in row] if step is None else step
    return array


def _spans(resets: np.ndarray, ends: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns the chunks of a rollout: those that end an episode, in that order, then the others.

    Args:
        resets: [T, envs]: whether the step was a reset: it belongs to no episode.
        ends: [T, envs]: whether it was an episode's last one.

    Returns:
        Sub-environment, first step, last step + 1.
    """
    done = []
    starts = [0] * resets.shape[1]
    for last, index in np.argwhere(ends).tolist():
        start = starts[index]
        done.append((index, start + int(resets[start, index]), last + 1))
        starts[index] = last + 1
    ongoing = []
    for index, start in enumerate(starts):
        if start < len(resets):
            start += int(resets[start, index])
        if start < len(resets):
            ongoing.append((index, start, len(resets)))
    return done + ongoing
