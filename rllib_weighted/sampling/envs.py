"""The wrapper of each sub-environment: decides the seed of every reset, stops bad numbers."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.env.env_context import EnvContext

from rllib_weighted.core.envs import env_creator
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.core.workers import EnvSeeding, WorkerLayout


class SeededEnv(gym.Wrapper):
    """Seeds every reset of one sub-environment from counters, and quarantines bad numbers.

    - `"stream"`: episode k is reset with a seed derived from (seed, slot, k).
    - `"fixed"`: every episode is reset with the seed of k = 0.
    - in evaluation, always: episode k is reset with a seed derived from (seed, slot, version of
      the weights, k), one that training never uses.

    A NaN or infinite reward or observation never leaves this wrapper: it would poison the
    observation filter and the policy's batched forward pass of *all* sub-environments of the
    process. The reward is replaced by 0, the observation by the last finite one, and `fault`
    names what was found first, so that the worker can be dropped from the merge.
    """

    def __init__(
        self,
        env: gym.Env,
        *,
        seed: int,
        slot: int,
        num_slots: int,
        evaluation: bool,
        seeding: EnvSeeding,
    ) -> None:
        super().__init__(env)
        self.root_seed = seed
        self.slot = slot
        self.num_slots = num_slots
        self.evaluation = evaluation
        self.seeding = seeding
        self.weights_version = 0
        self.num_resets = 0
        self.num_evaluation_resets = 0
        self.last_seed: int | None = None
        self.fault: str | None = None
        self._last_finite_obs: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode. The caller's `seed` is ignored: the counters decide."""
        counters: tuple[int, ...]
        if self.evaluation:
            counters = (self.weights_version, self.num_evaluation_resets)
            self.num_evaluation_resets += 1
        else:
            counters = (0 if self.seeding == "fixed" else self.num_resets,)
            self.num_resets += 1
        self.last_seed = environment_seed(
            self.root_seed,
            slot=self.slot,
            num_slots=self.num_slots,
            evaluation=self.evaluation,
            counters=counters,
        )
        self._last_finite_obs = None
        obs, info = self.env.reset(seed=self.last_seed, options=options)
        return self._finite_obs(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment; see the class for what happens to bad numbers."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = self.finite_reward(reward)
        return self._finite_obs(obs), reward, terminated, truncated, info

    # What a caller asks that has stepped the environment inside by itself

    def finite_reward(self, reward: Any) -> Any:
        """Returns the reward, or 0 in place of a bad one, which is noted."""
        if math.isfinite(reward):
            return reward
        self.fault = self.fault or f"reward {reward}"
        return 0.0

    def replace_nonfinite(self, obs: Any, last_finite: np.ndarray) -> Any:
        """Returns the observation, or the last finite one in place of a bad one, which is noted."""
        self.remember(last_finite)
        return self._finite_obs(obs)

    def remember(self, obs: np.ndarray) -> None:
        """Takes note of the episode's last finite observation."""
        self._last_finite_obs = obs.copy()

    def _finite_obs(self, obs: Any) -> Any:
        if _all_finite(obs):
            self._last_finite_obs = _copy(obs)  # The environment may write into its own again.
            return obs
        self.fault = self.fault or "observation with NaN or infinite entries"
        return _zeros_like(obs) if self._last_finite_obs is None else self._last_finite_obs


def _all_finite(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_all_finite, value))
    return not isinstance(value, (float, np.floating)) or bool(np.isfinite(value))


def _zeros_like(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _zeros_like(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map(_zeros_like, value))
    return np.zeros_like(value)


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return tuple(map(_copy, value)) if isinstance(value, (tuple, list)) else value


def env_maker(env: Any, context: EnvContext, **seeding: Any) -> Callable[[], SeededEnv]:
    """Returns a function that makes one sub-environment, for gymnasium's vector environments.

    Args:
        env: `config.env`: an id registered with Ray or gymnasium, a class or a function.
        context: The sub-environment's context.
        seeding: Arguments of `SeededEnv`.
    """
    return functools.partial(_make_seeded_env, env_creator(env), context, **seeding)


def _make_seeded_env(
    creator: Callable[[EnvContext], gym.Env], context: EnvContext, **seeding: Any
) -> SeededEnv:
    return SeededEnv(creator(context), **seeding)


# One env runner's sub-environments: building them, their seeds, counters and invalid


logger = logging.getLogger(__name__)


class EnvSeeds:
    """What decides the seed of every reset in one env runner.

    The counters of a running vector environment live in its `SeededEnv`s: those reset themselves
    when an episode ends. A vector environment that builds its parts itself (`vector_entry_point`)
    has none: there only whole resets are seeded and counted, and here.

    Args:
        config: The env runner's config.
        env_runner: RLlib's index of the env runner (0 = local).
        root_seed: The root seed until an order brings the run's.
    """

    def __init__(self, config: Any, env_runner: int, root_seed: int) -> None:
        self._layout = WorkerLayout(
            config.num_env_runners, config.num_envs_per_env_runner, config.merge_unit
        )
        self._env_runner = env_runner
        self.root_seed = root_seed
        self._evaluates = bool(config.in_evaluation)
        self._version = 0
        self._resets = dict.fromkeys(self._slots, 0)
        self._num_evaluation_resets = 0
        self._vector_env: Any = None

    @property
    def _slots(self) -> list[int]:
        envs = range(self._layout.num_envs_per_env_runner)
        return [self._layout.slot(self._env_runner, index) for index in envs]

    def worker(self, env_index: int) -> int:
        """Returns the worker that a sub-environment belongs to."""
        return self._layout.worker(self._env_runner, env_index)

    # Building

    def build(self, config: Any, context: EnvContext) -> gym.vector.VectorEnv:
        """Builds the vector environment, each sub-environment inside a `SeededEnv`.

        `EnvContext.vector_index` is each sub-environment's own index. (RLlib's is always 0.)
        """
        makers = [
            env_maker(
                config.env,
                context.copy_with_overrides(vector_index=index),
                seed=self.root_seed,
                slot=slot,
                num_slots=self._layout.num_slots,
                evaluation=self._evaluates,
                seeding=config.env_seeding,
            )
            for index, slot in enumerate(self._slots)
        ]
        is_async = gym.VectorizeMode(config.gym_env_vectorize_mode) == gym.VectorizeMode.ASYNC
        vector_class = gym.vector.AsyncVectorEnv if is_async else gym.vector.SyncVectorEnv
        self._vector_env = vector_class(makers)
        self._write_counters()
        return self._vector_env

    def release(self) -> None:
        """Keeps the counters of a vector environment that is going to be closed."""
        if self._vector_env is None:
            return
        try:
            self._resets = self.num_resets
        except Exception:  # One of its processes is gone. Not the same episode again.
            self._resets = {slot: count + 1 for slot, count in self._resets.items()}
        self._vector_env = None

    # Counters

    @property
    def num_resets(self) -> dict[int, int]:
        """Slot -> training resets used so far."""
        if self._vector_env is None:
            return dict(self._resets)
        counts = self._vector_env.get_attr("num_resets")
        return dict(zip(self._slots, counts, strict=True))

    def set_counters(self, root_seed: int, num_resets: dict[int, int]) -> None:
        """Sets what the seeds of the next training resets are drawn from.

        Args:
            root_seed: The run's root seed.
            num_resets: Slot -> resets used so far; also those of other env runners.
        """
        self.root_seed = root_seed
        self._resets = {slot: num_resets.get(slot, 0) for slot in self._slots}
        self._write_counters()

    def _write_counters(self) -> None:
        if self._vector_env is not None:
            self._vector_env.set_attr("num_resets", list(self._resets.values()))
            self._vector_env.set_attr("root_seed", self.root_seed)

    def start_evaluation(self, version: int) -> None:
        """Has resets draw from evaluation's seeds, anew for each version of the weights."""
        self._evaluates = True
        if version != self._version:
            self._version = version
            self._num_evaluation_resets = 0
            self._set_all(weights_version=version, num_evaluation_resets=0)
        self._set_all(evaluation=True)

    def end_evaluation(self) -> None:
        """Has resets draw from training's seeds again."""
        self._evaluates = False
        self._set_all(evaluation=False)

    def _set_all(self, **attributes: Any) -> None:
        if self._vector_env is not None:
            for name, value in attributes.items():
                self._vector_env.set_attr(name, value)

    def next_whole_reset(self) -> int | None:
        """Returns the seed of the next reset of a vector environment that builds its own parts.

        None if there are `SeededEnv`s: they decide.
        """
        if self._vector_env is not None:
            return None
        first, count = self._slots[0], self._resets[self._slots[0]]
        counters: tuple[int, ...] = (count,)
        if self._evaluates:
            counters = (self._version, self._num_evaluation_resets)
            self._num_evaluation_resets += 1
        else:
            self._resets = {slot: n + 1 for slot, n in self._resets.items()}
        return environment_seed(
            self.root_seed,
            slot=first,
            num_slots=self._layout.num_slots,
            evaluation=self._evaluates,
            counters=counters,
        )

    # Faults

    def take_invalid(self) -> dict[int, str]:
        """Returns worker -> what was wrong with its numbers since the last call."""
        if self._vector_env is None:
            return {}
        invalid: dict[int, list[str]] = {}
        for index, fault in enumerate(self._vector_env.get_attr("fault")):
            if fault is not None:
                text = f"sub-environment {index}: {fault}"
                invalid.setdefault(self.worker(index), []).append(text)
        self._set_all(fault=None)
        return {worker: "; ".join(texts) for worker, texts in invalid.items()}
