"""Environments that misbehave on order and write down what happens to them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

NAN, INF = float("nan"), float("inf")

SPACES: dict[str, gym.Space] = {
    "box": gym.spaces.Box(-INF, INF, (2,), np.float32),
    "float64": gym.spaces.Box(-INF, INF, (2,), np.float64),
    "int": gym.spaces.Discrete(100),
    "dict": gym.spaces.Dict(
        {"a": gym.spaces.Box(-INF, INF, (2,), np.float32), "b": gym.spaces.Discrete(100)}
    ),
    "tuple": gym.spaces.Tuple(
        (gym.spaces.Discrete(100), gym.spaces.Box(-INF, INF, (2,), np.float32))
    ),
}


class ScriptedEnv(gym.Env):
    """Observation (steps so far, a number drawn on reset), reward 1 at every step.

    Config:
        space: Key of `SPACES`.
        length: Steps of an episode: a number, or one for each sub-environment.
        rewards: Step -> the reward there, in every episode.
        observations: Step (0 = reset) -> what is put into the observation there.
        raise_at: Step at which `step` raises.
        only: `[worker_index, vector_index]` of those that misbehave; None: all.
        folder: Where to write seeds and observations, and to look for orders: in a file
            "raise-<worker>", "block-<worker>" (until it is gone).
    """

    def __init__(self, context: dict[str, Any] | None = None) -> None:
        config = context or {}
        self.worker_index = getattr(context, "worker_index", 0)
        self.vector_index = getattr(context, "vector_index", 0)
        self.kind = config.get("space", "box")
        self.observation_space = SPACES[self.kind]
        self.action_space = gym.spaces.Discrete(2)
        length = config.get("length", 5)
        self.length = length[self.vector_index] if isinstance(length, list) else length
        only = config.get("only")
        sound = only is not None and [self.worker_index, self.vector_index] not in only
        self.rewards = {} if sound else config.get("rewards", {})
        self.observations = {} if sound else config.get("observations", {})
        self.raise_at = None if sound else config.get("raise_at")
        self.folder = Path(config["folder"]) if "folder" in config else None
        self.buffer = np.zeros(2, np.float64 if self.kind == "float64" else np.float32)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.drawn = int(self.np_random.integers(100))
        self._write("seeds", seed)
        return self._observation(), {"seed": seed}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.folder is not None:
            self._obey(self.folder)
        if self.t == self.raise_at:
            raise KeyError("the scripted environment was told to raise")
        done = self.t >= self.length
        return self._observation(), self.rewards.get(self.t, 1.0), done, False, {"t": self.t}

    def _observation(self) -> Any:
        # The same array every time, as many environments have it.
        self.buffer[:] = [self.observations.get(self.t, self.t), self.drawn]
        self._write("observations", self.buffer.tolist())
        if self.kind == "int":
            return self.t
        if self.kind == "dict":
            return {"a": self.buffer, "b": self.t}
        return (self.t, self.buffer) if self.kind == "tuple" else self.buffer

    def _obey(self, folder: Path) -> None:
        if (folder / f"raise-{self.worker_index}").exists():
            raise KeyError("the scripted environment was told to raise")
        while (folder / f"block-{self.worker_index}").exists():
            time.sleep(0.02)

    def _write(self, what: str, value: Any) -> None:
        if self.folder is not None:
            name = f"{what}-{self.worker_index}-{self.vector_index}-{os.getpid()}.jsonl"
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(value) + "\n")


class ImageEnv(gym.Env):
    """Observations drawn anew at every step; the reward depends on them and on the action.

    Config:
        shape: Of an observation; default a stack of four 10 x 10 images.
        dtype: Of an observation; default uint8. Whatever it is, the numbers are the same.
        length: Steps of an episode.
        actions: The action space; default three discrete ones. An action must be in it, and of its
            type.
    """

    def __init__(self, context: dict[str, Any] | None = None) -> None:
        config = context or {}
        self.dtype = np.dtype(config.get("dtype", np.uint8))
        self.shape = tuple(config.get("shape", (10, 10, 4)))
        self.observation_space = gym.spaces.Box(0, 120, self.shape, self.dtype)
        self.action_space = config.get("actions", gym.spaces.Discrete(3))
        self.checks_type = "actions" in config
        self.length = config.get("length", 7)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if self.checks_type:
            assert action.dtype == self.action_space.dtype, action.dtype
        self.t += 1
        reward = float(self.obs.flat[0] % 5 + np.sum(action))
        done = self.t >= self.length
        return self._observation(), reward, done, False, {"action": np.array(action).tolist()}

    def _observation(self) -> np.ndarray:
        self.obs = self.np_random.integers(0, 120, self.shape).astype(self.dtype)
        return self.obs


def written(folder: Path, what: str) -> dict[tuple[int, int], list[Any]]:
    """Returns (worker_index, vector_index) -> what was written, process after process."""
    found: dict[tuple[int, int], list[Any]] = {}
    for path in sorted(folder.glob(f"{what}-*.jsonl"), key=lambda path: path.stat().st_ctime):
        _, worker, index, _ = path.stem.split("-")
        lines = path.read_text().splitlines()
        found.setdefault((int(worker), int(index)), []).extend(map(json.loads, lines))
    return found
