"""How the fast sampler steps its environments: as a vector, or one by one without a wrapper.

gymnasium's wrappers of a vector environment pass on any attribute: `env` is annotated `Any`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import DictInfoToList

from rllib_weighted import _private
from rllib_weighted.core.envs import TRUE_REWARD
from rllib_weighted.core.episode_signals import success_of
from rllib_weighted.sampling.envs import SeededEnv

Infos = list[dict[str, Any]]
"""What one vector step says besides, one dict per sub-environment."""


class Step(NamedTuple):
    """Result of one vector step: `obs` [envs, …], the rest [envs]; infos where they are kept.

    Rewards are the environments' own, non-finite ones too.
    `successes`: of each sub-environment whose episode ended, whether it succeeded, or None.
    """

    obs: np.ndarray
    rewards: np.ndarray
    terminateds: np.ndarray
    truncateds: np.ndarray
    infos: Infos | None
    successes: Mapping[int, bool | None]


class Stepper:
    """Steps the vector environment as RLlib does, in one call of `sample`; keeps the infos.

    Args:
        env: The env runner's vector environment.
        resets_next: [envs]: which sub-environments the next step resets.
    """

    def __init__(self, env: Any, resets_next: np.ndarray) -> None:
        self._env = env
        if type(env.unwrapped) is gym.vector.SyncVectorEnv:
            # A `DirectStepper` may have stepped its environments before.
            _private.set_autoreset(env.unwrapped, resets_next)

    def step(self, actions: np.ndarray, resets: np.ndarray) -> Step:
        """Steps all sub-environments; those that `resets` names start a new episode instead.

        Which those are, the vector environment has noted by itself.
        """
        obs, rewards, terminateds, truncateds, infos = self._env.step(actions)
        for index, info in enumerate(infos):
            if TRUE_REWARD in info:
                rewards[index] = info[TRUE_REWARD]
        ended = np.flatnonzero(terminateds | truncateds).tolist()
        successes = {index: success_of(infos[index]) for index in ended}
        return Step(obs, rewards, terminateds, truncateds, infos, successes)

    def leave(self) -> None:
        """Leaves the environments so that another stepper can go on with them."""


class DirectStepper(Stepper):
    """Steps each sub-environment itself, without infos, and checks all numbers at once.

    The same as gymnasium's `SyncVectorEnv` over `SeededEnv`s, without the copies and the
    per-environment checks; see `can_step_directly`.

    Args:
        env: The env runner's vector environment.
        obs: [envs, …]: the observations before the first step, as the environments gave them.
    """

    def __init__(self, env: Any, obs: np.ndarray) -> None:
        self._envs: tuple[SeededEnv, ...] = tuple(env.unwrapped.envs)
        self._obs = obs
        self._may_be_infinite = obs.dtype.kind in "fc"

    def step(self, actions: np.ndarray, resets: np.ndarray) -> Step:
        """See `Stepper`."""
        num_envs = len(self._envs)
        observations: list[Any] = [None] * num_envs
        rewards, given = np.zeros(num_envs), list[Any]([0.0] * num_envs)
        terminateds, truncateds = np.zeros(num_envs, np.bool_), np.zeros(num_envs, np.bool_)
        successes: dict[int, bool | None] = {}
        for i, (env, resets_now) in enumerate(zip(self._envs, resets.tolist(), strict=True)):
            if resets_now:
                observations[i], _ = env.reset()
            else:
                step = env.env.step(actions[i])
                observations[i], given[i], terminateds[i], truncateds[i], info = step
                rewards[i] = given[i]  # NaN for None.
                if terminateds[i] or truncateds[i]:
                    successes[i] = success_of(info)
        obs = np.stack(observations, out=np.empty_like(self._obs))
        is_finite = not self._may_be_infinite or np.isfinite(obs).all()
        if not (is_finite and np.isfinite(rewards).all()):
            for i, env in enumerate(self._envs):
                env.finite_reward(given[i])
                if not resets[i]:
                    obs[i] = env.replace_nonfinite(observations[i], self._obs[i])
        self._obs = obs
        return Step(obs, rewards, terminateds, truncateds, None, successes)

    def leave(self) -> None:
        """Tells each sub-environment its last observation, for its own check of the next step."""
        for env, obs in zip(self._envs, self._obs, strict=True):
            env.remember(obs)


def can_step_directly(env: Any) -> bool:
    """Whether a vector environment is a plain synchronous one of `SeededEnv`s."""
    return (
        type(env) is DictInfoToList
        and type(env.env) is gym.vector.SyncVectorEnv
        and all(type(sub_env) is SeededEnv for sub_env in env.env.envs)
    )
