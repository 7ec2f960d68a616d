"""An environment of random frames, as large as Atari's, that costs next to nothing itself."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

SHAPE = (84, 84, 4)
NUM_FRAMES = 64
EPISODE_STEPS = 200


class RandomFrames(gym.Env[Any, Any]):
    """Shows frames that were drawn before; rewards and actions are without meaning.

    What a training on it takes is the way of the frames to the network, and the network.
    """

    def __init__(self, context: Any = None) -> None:
        self.observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
        self.action_space = gym.spaces.Discrete(6)
        drawn = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, *SHAPE))
        self._frames = drawn.astype(np.uint8)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode at the first frame."""
        super().reset(seed=seed)
        self._step = 0
        return self._frames[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Shows the next frame."""
        self._step += 1
        frame = self._frames[self._step % NUM_FRAMES]
        return frame, float(action == 0), False, self._step >= EPISODE_STEPS, {}
