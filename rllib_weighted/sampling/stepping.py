"""Stepping the sub-environments of one env runner."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import DictInfoToList

from rllib_weighted.sampling.seeded_env import SeededEnv


class Step(NamedTuple):
    """What came of one vector step: `obs` [envs, …], the rest [envs]; infos if wanted."""

    obs: np.ndarray
    rewards: np.ndarray
    terminateds: np.ndarray
    truncateds: np.ndarray
    infos: list[dict[str, Any]] | None


class VectorStepper:
    """Steps the vector environment as RLlib does; for whoever wants infos.

    Args:
        env: The env runner's vector environment.
        resets_next: [envs]: which sub-environments the next step resets.
    """

    def __init__(self, env: Any, resets_next: np.ndarray) -> None:
        self._env = env
        if type(env.unwrapped) is gym.vector.SyncVectorEnv:
            # A `DirectStepper` may have gone before. Private; tested with gymnasium 1.2.2.
            env.unwrapped._autoreset_envs = resets_next.copy()

    def step(self, actions: np.ndarray, resets: np.ndarray) -> Step:
        """Steps all sub-environments; those that `resets` names start a new episode."""
        return Step(*self._env.step(actions))

    def leave(self) -> None:
        """Nothing is left to be handed over."""


class DirectStepper:
    """Steps each sub-environment itself, without infos, and looks at all numbers at once.

    The same as gymnasium's `SyncVectorEnv` over `SeededEnv`s, without the copies and the
    per-environment checks; see `can_step_directly`.

    Args:
        env: The env runner's vector environment.
        obs: [envs, …]: the observations before the first step, as the environments gave them.
    """

    def __init__(self, env: Any, obs: np.ndarray) -> None:
        self._envs: tuple[SeededEnv, ...] = tuple(env.unwrapped.envs)
        self._obs = obs
        self._may_be_bad = obs.dtype.kind in "fc"

    def step(self, actions: np.ndarray, resets: np.ndarray) -> Step:
        """Steps all sub-environments; those that `resets` names start a new episode."""
        num_envs = len(self._envs)
        observations: list[Any] = [None] * num_envs
        rewards = np.zeros(num_envs)
        terminateds, truncateds = np.zeros(num_envs, np.bool_), np.zeros(num_envs, np.bool_)
        for i, (env, resets_now) in enumerate(zip(self._envs, resets.tolist(), strict=True)):
            if resets_now:
                observations[i], _ = env.reset()
            else:
                step = env.env.step(actions[i])
                observations[i], rewards[i], terminateds[i], truncateds[i], _ = step
        obs = np.stack(observations, out=np.empty_like(self._obs))
        sound = not self._may_be_bad or np.isfinite(obs).all()
        if not (sound and np.isfinite(rewards).all()):
            rewards = np.array(
                [env.finite_reward(r) for env, r in zip(self._envs, rewards, strict=True)]
            )
            observations = [
                obs_i if reset else env.mend(obs_i, last)
                for env, obs_i, last, reset in zip(
                    self._envs, observations, self._obs, resets, strict=True
                )
            ]
            obs = np.stack(observations, out=np.empty_like(self._obs))
        self._obs = obs
        return Step(obs, rewards, terminateds, truncateds, None)

    def leave(self) -> None:
        """Tells each sub-environment its last observation, for whoever steps it next."""
        for env, obs in zip(self._envs, self._obs, strict=True):
            env.remember(obs)


def can_step_directly(env: Any) -> bool:
    """Whether a vector environment is a plain synchronous one of `SeededEnv`s."""
    return (
        type(env) is DictInfoToList
        and type(env.env) is gym.vector.SyncVectorEnv
        and all(type(sub_env) is SeededEnv for sub_env in env.env.envs)
    )
