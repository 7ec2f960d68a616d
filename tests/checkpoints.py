"""Small checkpoints, written without an algorithm and Ray, and what their env runners do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.env_to_module import MeanStdFilter

from rllib_weighted import WeightedPPOConfig
from rllib_weighted._private import freeze_filters
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from tests.sampling.helpers import make_config, make_runner

BOX = gym.spaces.Box(np.array([-2, 1], np.float32), np.array([3, 5], np.float32))
LENGTH = 9


class RecordedEnv(gym.Env[Any, Any]):
    """Draws its observations, and records each with the action that answered it."""

    seen: ClassVar[list[tuple[Any, Any]]] = []

    def __init__(self, config: dict[str, Any]) -> None:
        self.observation_space = gym.spaces.Box(-100, 100, (3,), np.float32)
        self.action_space = config["actions"]

    def _draw(self) -> Any:
        self._obs = self.np_random.normal([0, 5, -20], [1, 0.1, 30]).astype(np.float32)
        return self._obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._step = 0
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        self.seen.append((self._obs, np.copy(action)))
        self._step += 1
        return self._draw(), 1.0, False, self._step == LENGTH, {}


def recorded_config(actions: gym.Space[Any] = BOX, **env_runners: Any) -> WeightedPPOConfig:
    """A config of one recorded environment, with a filter unless connectors are given."""
    settings = {
        "num_envs_per_env_runner": 1,
        "env_to_module_connector": lambda env, spaces, device: MeanStdFilter(),
        **env_runners,
    }
    config = make_config(RecordedEnv, **settings).training(merge_strategy="average")
    return config.environment(env_config={"actions": actions})


def write_checkpoint(folder: Path, config: WeightedPPOConfig) -> WeightedEnvRunner:
    """Writes a checkpoint of an untrained module and a filter that has seen 50 observations.

    Returns:
        An env runner with the same module and filter, which no longer changes.
    """
    runner = make_runner(config)
    modules = config.get_multi_rl_module_spec(spaces=runner.get_spaces()).build()
    _spread(modules["default_policy"])
    runner.set_state({"rl_module": modules.get_state(inference_only=True)})
    runner.sample(num_timesteps=50, explore=True)
    runner.save_to_path(str(folder / "env_runner"))
    modules.save_to_path(str(folder / "learner_group" / "learner" / "rl_module"))
    (folder / "rllib_checkpoint.json").write_text("{}")
    freeze_filters(runner._env_to_module)
    return runner


def _spread(module: torch.nn.Module) -> None:
    """Makes the outputs of a fresh policy large, so that clipping and unsquashing show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5)


def recorded(runner: WeightedEnvRunner, *, explore: bool, episodes: int = 3) -> list[Any]:
    """What an env runner answers: (observation, action as the environment takes it) per step."""
    RecordedEnv.seen.clear()
    runner.sample(num_episodes=episodes, explore=explore)
    assert len(RecordedEnv.seen) == episodes * LENGTH
    return list(RecordedEnv.seen)
