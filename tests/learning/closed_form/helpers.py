"""RLlib's default modules in float64, and their parameters as flat matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from rllib_weighted.core.modules import read_networks
from rllib_weighted.learning.closed_form.kernel import Kernel
from tests.learning.helpers import DISCRETE, OBS

BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

# Model settings, and the action space.
MODELS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"fcnet_activation": "relu"},
    "linear": {"fcnet_activation": "linear"},
    "shared": {"vf_share_layers": True},
    "shared, hidden heads": {"vf_share_layers": True, "head_fcnet_hiddens": [6, 3]},
    "hidden heads": {"head_fcnet_hiddens": [6], "head_fcnet_activation": "tanh"},
    "one layer": {"fcnet_hiddens": [7]},
    "continuous": {"action_space": BOX},
    "continuous, shared": {"action_space": BOX, "vf_share_layers": True},
    "continuous, clamped": {"action_space": BOX, "log_std_clip_param": 0.4},
    "free log std": {"action_space": BOX, "free_log_std": True},
    "free log std, clamped": {
        "action_space": BOX,
        "free_log_std": True,
        "log_std_clip_param": 0.4,
        "head_fcnet_hiddens": [6],
    },
}


def make_module(
    *,
    action_space: gym.Space = DISCRETE,
    obs_space: gym.Space = OBS,
    module_class: type = DefaultPPOTorchRLModule,
    seed: int = 0,
    **model: Any,
) -> Any:
    """A module in float64; all of its parameters are random, biases and deviations too."""
    spec = RLModuleSpec(
        module_class=module_class,
        catalog_class=PPOCatalog,
        observation_space=obs_space,
        action_space=action_space,
        model_config=DefaultModelConfig(
            **{"fcnet_hiddens": [5, 4], "vf_share_layers": False, **model}
        ),
    )
    module = spec.build().double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def draw_obs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, generator=generator, dtype=torch.float64)


def outputs_of(module: Any, obs: Tensor) -> tuple[Tensor, Tensor]:
    """What the module itself computes: inputs of the action distributions, and values."""
    outputs = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
    return outputs, module.compute_values({Columns.OBS: obs})


def flat_views(modules: Sequence[Any], flat: Tensor, *, stacked: bool) -> dict[str, Tensor]:
    """The columns of [n, P] by parameter; without `stacked`, of the only row."""
    views, start = {}, 0
    for name, parameter in modules[0].named_parameters():
        part = flat[:, start : start + parameter.numel()].unflatten(1, parameter.shape)
        views[name] = part if stacked else part[0]
        start += parameter.numel()
    assert start == flat.shape[1]
    return views


def make_kernel(modules: Sequence[Any], *, stacked: bool) -> tuple[Kernel, Tensor]:
    """A kernel with the modules' parameters, and the [n, P] that it writes gradients to.

    They hold NaN until it does.
    """
    flat = torch.stack([parameters_of(module) for module in modules])
    gradients = torch.full_like(flat, torch.nan)
    kernel = Kernel(
        read_networks(modules[0]),
        flat_views(modules, flat, stacked=stacked),
        flat_views(modules, gradients, stacked=stacked),
        stacked=stacked,
    )
    return kernel, gradients


def parameters_of(module: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
