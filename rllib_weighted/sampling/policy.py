"""The policy of the fast vector path: RLlib's arithmetic without what surrounds it.

RLlib's `forward_exploration` sets every submodule to evaluation and back, and a distribution
object is built for each step. Here the same torch operations run in the same order, so that
actions and log-probabilities are the same bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
)
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.primitives import TorchMLP
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor, nn

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))
_CHEAP = {nn.Tanh: torch.tanh, nn.ReLU: torch.relu}

Forward = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode and records no gradients."""
    was_training = module.training
    if was_training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            module.train()


class RolloutPolicy:
    """Acts for one rollout, and keeps what it computed.

    Args:
        module: RLlib's default PPO module, with the parameters to act with.
        device: Where it computes.
    """

    def __init__(self, module: Any, device: Any) -> None:
        self._device = device
        self._is_on_cpu = device is None or str(device) == "cpu"
        self._forward = _forward_of(module)
        self._distribution = module.get_exploration_action_dist_cls()
        self._act = {TorchCategorical: self._categorical, TorchDiagGaussian: self._gaussian}.get(
            self._distribution, self._general
        )
        self._actions: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._logps: list[Tensor] = []  # Of categories: all of them, normalised.

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Returns actions, [envs, …], for observations of [envs, …]."""
        if obs.dtype == np.float32 and self._is_on_cpu:
            tensor = torch.from_numpy(obs)
        else:
            tensor = convert_to_torch_tensor(obs, self._device)
        inputs = self._forward(tensor)
        self._inputs.append(inputs)
        actions = self._act(inputs)
        self._actions.append(actions)
        return actions.cpu().numpy()

    def _categorical(self, logits: Tensor) -> Tensor:
        """As `torch.distributions.Categorical`: of its log-probability, the lookup is left."""
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        self._logps.append(logits)
        return torch.multinomial(torch.softmax(logits, dim=-1), 1, True).squeeze(1)

    def _gaussian(self, inputs: Tensor) -> Tensor:
        """As `torch.distributions.Normal`, summed over the action's entries."""
        mean, log_std = inputs.chunk(2, dim=-1)
        std = log_std.exp()
        actions = torch.normal(mean, std)
        logp = -((actions - mean) ** 2) / (2 * std**2) - std.log() - _LOG_SQRT_2PI
        self._logps.append(logp.sum(-1))
        return actions

    def _general(self, inputs: Tensor) -> Tensor:
        distribution = self._distribution.from_logits(inputs)
        actions: Tensor = distribution.sample()
        self._logps.append(distribution.logp(actions))
        return actions

    def columns(self) -> dict[str, np.ndarray]:
        """Returns what it computed, each of [steps, envs, …], in the order of RLlib's columns."""
        actions, logps = torch.stack(self._actions), torch.stack(self._logps)
        if self._distribution is TorchCategorical:
            logps = logps.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return {
            Columns.ACTIONS: actions.cpu().numpy(),
            Columns.ACTION_LOGP: logps.cpu().numpy(),
            Columns.ACTION_DIST_INPUTS: torch.stack(self._inputs).cpu().numpy(),
        }


def _forward_of(module: Any) -> Forward:
    """Returns observations -> the inputs of the action distribution, by the shortest way."""
    if "forward_exploration" in vars(module):  # Each worker acts with its own parameters.
        return lambda obs: module.forward_exploration({Columns.OBS: obs})[
            Columns.ACTION_DIST_INPUTS
        ]
    layers = None if "_forward_exploration" in vars(module) else _dense_layers(module)
    if layers is None:
        return lambda obs: module._forward_exploration({Columns.OBS: obs})[
            Columns.ACTION_DIST_INPUTS
        ]

    def forward(obs: Tensor) -> Tensor:
        for layer in layers:
            obs = layer(obs)
        return obs

    return forward


def _dense_layers(module: Any) -> list[Forward] | None:
    """Returns the layers of a policy with a dense encoder; None if it is of another kind."""
    encoder = module.encoder
    if type(encoder) is not TorchActorCriticEncoder:
        return None
    encoder = encoder.encoder if encoder.config.shared else encoder.actor_encoder
    if type(encoder) is not TorchMLPEncoder or type(encoder.net) is not TorchMLP:
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return None
    head: list[nn.Module] = [module.pi]
    if type(getattr(module.pi, "net", None)) is TorchMLP and (
        getattr(module.pi, "clip_log_std", None) is False and not hasattr(module.pi, "log_std")
    ):
        head = list(module.pi.net.mlp)
    return [_cheap(layer) for layer in [*encoder.net.mlp, *head]]


def _cheap(layer: nn.Module) -> Forward:
    if type(layer) is nn.Linear:
        weight, bias = layer.weight, layer.bias
        return lambda x: nn.functional.linear(x, weight, bias)
    return _CHEAP.get(type(layer), layer)


def actions_for_env(config: Any, space: gym.Space) -> Callable[[np.ndarray], np.ndarray]:
    """Returns actions of the policy, [envs, …] -> those for the environments, as RLlib's own.

    Args:
        config: The algorithm's config.
        space: The space of a single action.
    """
    if not isinstance(space, gym.spaces.Box) or not (
        config.normalize_actions or config.clip_actions
    ):
        return lambda actions: actions
    if config.normalize_actions and not (
        space.dtype in (np.float32, np.float64)
        and bool(np.all(space.bounded_below))
        and bool(np.all(space.bounded_above))
    ):
        return lambda actions: np.asarray(unsquash_action(actions, space))
    if not config.normalize_actions:
        return lambda actions: np.asarray(clip_action(actions, space))
    low, high = space.low, space.high
    width = high - low
    return lambda actions: np.minimum(np.maximum(low + (actions + 1.0) * width / 2.0, low), high)
