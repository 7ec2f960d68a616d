"""EnvPool's sub-environments as one vector environment, which counts its own resets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_weighted.core.envs import OWN, TRUE_REWARD
from rllib_weighted.core.seeding import environment_seed


def has_channels_first(space: gym.Space[Any]) -> bool:
    """Whether a space is of uint8 images with their channels first: the first axis is the shortest.

    RLlib's default encoders would take the channels for the width.
    """
    is_image = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8
    shape = space.shape or ()
    return is_image and len(shape) == 3 and shape[0] < min(shape[1:])


class EnvPoolVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """A pool of EnvPool's sub-environments: one call of C++ steps them all.

    EnvPool (https://envpool.readthedocs.io) has environments of its own, written anew in C++ under
    gymnasium's ids. It cannot give an episode a seed: each sub-environment is seeded once, when the
    pool is made, and draws its episodes one after the other.

    The first pool of a run gets seeds of (root seed, slot, 0). Where the counters do not follow
    from what this pool has done (a restored checkpoint, an env runner that was started again,
    evaluation with other weights), the next reset makes a new pool, with seeds of (root seed, slot,
    resets so far). So streams are disjoint over sub-environments, the same in a second run, and a
    restarted env runner does not repeat its past.

    NaN and infinite numbers are replaced as in `SeededEnv`, and named in `invalid`.

    Images that EnvPool gives with their channels first, as those of Atari, get them last, as
    RLlib's encoders want them; see `has_channels_first`.

    Args:
        env_id: EnvPool's id of the environment.
        slots: The slot of each sub-environment.
        num_slots: Number of slots over all env runners.
        seed: The run's root seed.
        evaluation: Whether episodes are evaluation's.
        num_threads: Threads that step the sub-environments.
        options: EnvPool's own options of the environment, such as `max_episode_steps`.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        env_id: str,
        *,
        slots: Sequence[int],
        num_slots: int,
        seed: int,
        evaluation: bool,
        num_threads: int,
        options: dict[str, Any],
    ) -> None:
        self._env_id = env_id
        self._slots = list(slots)
        self._num_slots = num_slots
        self._num_threads = num_threads
        self._options = options
        self.num_envs = len(self._slots)
        # What `SeededEnv` has in each sub-environment; the counters, per sub-environment.
        self.root_seed = seed
        self.evaluation = evaluation
        self.weights_version = 0
        self.num_resets = [0] * self.num_envs
        self.num_evaluation_resets = [0] * self.num_envs
        self.invalid: list[str | None] = [None] * self.num_envs
        self._is_stale = False  # Whether the next reset needs a new pool.
        self._pool = self._make_pool()
        space = self._pool.observation_space
        self._moves_channels = has_channels_first(space)
        if self._moves_channels:
            low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))
            space = gym.spaces.Box(low, high, dtype=space.dtype)
        self.single_observation_space = space
        own_actions = self._pool.action_space
        self._action_dtype = own_actions.dtype
        # gymnasium's own discrete actions are int64.
        is_discrete = isinstance(own_actions, gym.spaces.Discrete)
        self.single_action_space = (
            gym.spaces.Discrete(int(own_actions.n)) if is_discrete else own_actions
        )
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, self.num_envs
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self._resets_next = np.zeros(self.num_envs, np.bool_)

    def _make_pool(self) -> Any:
        import envpool

        self._is_stale = False
        with warnings.catch_warnings():
            # EnvPool's bounds are float64, its spaces float32; it makes them when asked, and once.
            warnings.filterwarnings("ignore", ".*precision lowered by casting")
            pool = envpool.make(
                self._env_id,
                env_type="gymnasium",
                num_envs=self.num_envs,
                num_threads=self._num_threads,
                seed=[self._seed_of(index) for index in range(self.num_envs)],
                **self._options,
            )
            _ = pool.observation_space, pool.action_space
        return pool

    def _seed_of(self, index: int) -> int:
        counters: tuple[int, ...] = (self.num_resets[index],)
        if self.evaluation:
            counters = self.weights_version, self.num_evaluation_resets[index]
        return environment_seed(
            self.root_seed,
            slot=self._slots[index],
            num_slots=self._num_slots,
            evaluation=self.evaluation,
            counters=counters,
        )

    # As of any vector environment

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts new episodes everywhere. The caller's `seed` is ignored: the counters decide."""
        if self._is_stale:
            self._pool = self._make_pool()
        obs = self._channels_last(self._pool.reset()[0])
        self._count_resets(np.ones(self.num_envs, np.bool_))
        self._resets_next = np.zeros(self.num_envs, np.bool_)
        self._obs = self._finite_obs(obs, np.zeros_like(obs))
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all sub-environments; those whose episode ended in the last step start a new one.

        Args:
            actions: [envs, …].

        Returns:
            Observations [envs, …], rewards, terminateds and truncateds [envs], and no infos but
            `TRUE_REWARD`.
        """
        self._count_resets(self._resets_next)
        obs, rewards, terminateds, truncateds, _ = self._pool.step(
            np.asarray(actions, self._action_dtype)
        )
        self._obs = self._finite_obs(self._channels_last(obs), self._obs)
        rewards, infos = self._finite_rewards(rewards.astype(np.float64))
        self._resets_next = terminateds | truncateds
        return self._obs, rewards, terminateds, truncateds, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the pool's threads."""
        self._pool.close()

    def _channels_last(self, obs: np.ndarray) -> np.ndarray:
        if not self._moves_channels:
            return obs
        num_envs, channels, height, width = obs.shape
        turned = np.empty((num_envs, height, width, channels), obs.dtype)
        for channel in range(channels):  # Several times as fast as a copy of `np.moveaxis`.
            turned[..., channel] = obs[:, channel]
        return turned

    def _count_resets(self, resets: np.ndarray) -> None:
        counts = self.num_evaluation_resets if self.evaluation else self.num_resets
        for index in np.flatnonzero(resets).tolist():
            counts[index] += 1

    def _finite_rewards(self, rewards: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns the rewards as `SeededEnv` gives them, and infos in gymnasium's vector form."""
        bad = ~np.isfinite(rewards)
        if not bad.any():
            return rewards, {}
        for index in np.flatnonzero(bad).tolist():
            self.invalid[index] = self.invalid[index] or f"reward {rewards[index]}"
        if self.evaluation:
            return rewards, {}
        return np.where(bad, 0.0, rewards), {TRUE_REWARD: rewards, f"_{TRUE_REWARD}": bad}

    def _finite_obs(self, obs: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Returns the observations, those before in place of non-finite ones, which are noted."""
        if obs.dtype.kind != "f" or np.isfinite(obs).all():
            return obs
        bad = ~np.isfinite(obs).reshape(self.num_envs, -1).all(axis=1)
        obs = obs.copy()
        obs[bad] = before[bad]
        for index in np.flatnonzero(bad).tolist():
            self.invalid[index] = self.invalid[index] or "observation with NaN or infinite entries"
        return obs

    # What `EnvSeeds` asks of sub-environments

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns an attribute of every sub-environment; see `set_attr`."""
        value = getattr(self, _own_name(name))
        return tuple(value) if isinstance(value, list) else (value,) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of every sub-environment.

        Args:
            name: One of those that `SeededEnv` has, with `OWN` before it.
            values: One for all, or a list of one for each.

        Raises:
            AttributeError: Any other name: EnvPool's environments have no attributes.
        """
        name = _own_name(name)
        before = getattr(self, name)
        if isinstance(before, list) and not isinstance(values, list):
            values = [values] * self.num_envs
        if name != "invalid" and values != before:
            self._is_stale = True
        setattr(self, name, values)


def _own_name(name: str) -> str:
    if not name.startswith(OWN):
        raise AttributeError(f"EnvPool's environments have no attribute {name!r}")
    return name.removeprefix(OWN)
