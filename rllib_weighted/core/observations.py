"""Observations that are whole numbers, or are to be scaled: the module makes floats of them.

RLlib's encoders (2.60) take float32 and fail on everything else: an environment that gives uint8
images needs a wrapper that makes floats of them, four times as large in every rollout, on the way
to the learner and in its batch. Here they stay what they are until a network reads them. Their
values stay too: 255 becomes 255.0, unless the user sets `observation_scale`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec
from torch import Tensor

SCALE = "observation_scale"
"""The key of a module's `model_config`, and the setting."""


class CastingPPOModule(DefaultPPOTorchRLModule):
    """RLlib's default PPO module; it first makes float32 of the observations, and scales them."""

    @property
    def observation_scale(self) -> float:
        """What observations are multiplied by."""
        return float(self.model_config.get(SCALE, 1.0))

    def setup(self) -> None:
        """Builds the networks; see `RLModule.setup`."""
        super().setup()
        # RLlib's images have their channels last. Kernels that have them elsewhere are copied in
        # every forward pass: half the time of one for eight images.
        self.to(memory_format=torch.channels_last)

    def floats(self, obs: Tensor) -> Tensor:
        """Returns observations as the networks read them."""
        floats, scale = obs.to(torch.float32), self.observation_scale
        if scale == 1:
            return floats
        # In place where there is a copy: a second one takes as long as all the rest of this.
        return floats * scale if floats is obs else floats.mul_(scale)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._forward(self._with_floats(batch), **kwargs)
        return outputs

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._forward_train(self._with_floats(batch), **kwargs)
        return outputs

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """See `ValueFunctionAPI`."""
        if embeddings is None:
            batch = self._with_floats(batch)
        values: Tensor = super().compute_values(batch, embeddings)
        return values

    def _with_floats(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, Columns.OBS: self.floats(batch[Columns.OBS])}


DEFAULT_MODULES = (DefaultPPOTorchRLModule, CastingPPOModule)
"""The modules whose parts and whose forward pass are known."""


def cast_observations(spec: RLModuleSpec, scale: float) -> None:
    """Lets the module of a spec cast its observations, if it has to.

    Args:
        spec: A spec with its class, its spaces and its model config as a dict.
        scale: The setting `observation_scale`.

    Raises:
        ValueError: If observations are to be scaled, and the module is the user's own.
    """
    if spec.module_class not in DEFAULT_MODULES:
        if scale != 1:
            raise ValueError(
                f"`{SCALE}` should be 1 with a module of your own, found {scale:g}: scale them in "
                f"the forward pass of {spec.module_class.__name__}"
            )
        return
    space = spec.observation_space
    is_box = isinstance(space, gym.spaces.Box)
    if is_box and (scale != 1 or space.dtype not in (np.float32, np.float64)):
        spec.module_class = CastingPPOModule
        spec.model_config = {**spec.model_config, SCALE: scale}
