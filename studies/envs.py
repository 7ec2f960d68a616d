"""Environments whose contexts differ: keyword arguments that `worker_env_config` gives a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from ray.tune import register_env

Env = gym.Env[Any, Any]


class GoalReward(gym.Wrapper[Any, Any, Any, Any]):
    """Reward 1 at the goal, else 0: the return is the success rate."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps; `terminated` is the goal."""
        obs, _, terminated, truncated, info = self.env.step(action)
        info["is_success"] = terminated
        return obs, float(terminated), terminated, truncated, info


class _Noisy(gym.Wrapper[Any, Any, Any, Any]):
    """Has normal noise of its own, which a seed of the environment seeds.

    Args:
        env: The environment.
        deviation: Standard deviation of the noise.
    """

    def __init__(self, env: Env, deviation: float) -> None:
        super().__init__(env)
        self._deviation = deviation
        self._random = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets; a seed also seeds the noise."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)

    def _noise(self, shape: tuple[int, ...] = ()) -> Any:
        return self._deviation * self._random.standard_normal(shape)


class NoisyReward(_Noisy):
    """Adds the noise to every reward."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps, and disturbs the reward."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward) + float(self._noise()), terminated, truncated, info


class NoisySensors(_Noisy):
    """Adds noise to each number of every observation, which is a box of floats."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Resets; a seed also seeds the noise."""
        obs, info = super().reset(**kwargs)
        return self._sensed(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps, and disturbs what is seen."""
        obs, *rest = self.env.step(action)
        return self._sensed(obs), *rest

    def _sensed(self, obs: Any) -> Any:
        return (obs + self._noise(obs.shape)).astype(obs.dtype)


def sparse_mountain_car(force: float = 0.001) -> Env:
    """MountainCar-v0 with reward 1 at the goal, else 0, and another engine.

    Args:
        force: Of the engine; 0.001 is gymnasium's.
    """
    env = gym.make("MountainCar-v0")
    env.unwrapped.force = force  # type: ignore[attr-defined]
    return GoalReward(env)


def lunar_lander(gravity: float = -10.0, wind: float = 0.0) -> Env:
    """LunarLander-v3 with another gravity and wind.

    Args:
        gravity: -12 to 0; -10 is gymnasium's.
        wind: Power of the wind, 0 to 20, with turbulence in proportion; 0 is none.
    """
    return gym.make(
        "LunarLander-v3",
        gravity=gravity,
        enable_wind=wind > 0,
        wind_power=wind,
        turbulence_power=wind / 10,
    )


def noisy_cart_pole(deviation: float = 0.0) -> Env:
    """CartPole-v1 with noise on its rewards.

    Args:
        deviation: Standard deviation of the noise on every reward.
    """
    env = gym.make("CartPole-v1")
    return NoisyReward(env, deviation) if deviation else env


def noisy_lunar_lander(deviation: float = 0.0) -> Env:
    """LunarLander-v3 with noise on its rewards.

    Args:
        deviation: Standard deviation of the noise on every reward; most are between -3 and 3.
    """
    env = gym.make("LunarLander-v3")
    return NoisyReward(env, deviation) if deviation else env


def noisy_sensors_cart_pole(deviation: float = 0.0) -> Env:
    """CartPole-v1 with noise on its observations; the angle that ends an episode is 0.21.

    Args:
        deviation: Standard deviation of the noise on each of the four numbers.
    """
    env = gym.make("CartPole-v1")
    return NoisySensors(env, deviation) if deviation else env


CREATORS: dict[str, Callable[..., Env]] = {
    "study/SparseMountainCar": sparse_mountain_car,
    "study/LunarLander": lunar_lander,
    "study/NoisyCartPole": noisy_cart_pole,
    "study/NoisyLunarLander": noisy_lunar_lander,
    "study/NoisySensorsCartPole": noisy_sensors_cart_pole,
}
"""The study's environments by their ids."""


def register() -> None:
    """Registers them with Tune and RLlib, in this process."""
    for name, create in CREATORS.items():
        register_env(name, lambda context, create=create: create(**context))


def has_continuous_actions(env: str) -> bool:
    """Whether an environment's actions are continuous."""
    with _make(env) as made:
        return isinstance(made.action_space, gym.spaces.Box)


def _make(env: str) -> Env:
    return CREATORS[env]() if env in CREATORS else gym.make(env)
