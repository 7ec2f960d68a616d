"""The wrapper of each sub-environment: decides the seed of every reset, stops bad numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_weighted.seeding import environment_seed
from rllib_weighted.workers import EnvSeeding


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

    def mend(self, obs: Any, last_finite: np.ndarray) -> Any:
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
    return functools.partial(_make_seeded_env, _env_creator(env), context, **seeding)


def _env_creator(env: Any) -> Callable[[EnvContext], gym.Env]:
    """Resolves `config.env` as RLlib does."""
    if isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env):
        creator: Callable[[EnvContext], gym.Env] = _global_registry.get(ENV_CREATOR, env)
        return creator
    if callable(env):
        return env
    return functools.partial(_make_registered, env)


def _make_registered(env_id: str, context: EnvContext) -> gym.Env:
    return gym.make(env_id, **context)


def _make_seeded_env(
    creator: Callable[[EnvContext], gym.Env], context: EnvContext, **seeding: Any
) -> SeededEnv:
    return SeededEnv(creator(context), **seeding)
