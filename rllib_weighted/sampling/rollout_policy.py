"""How the fast sampler acts: the same draws as RLlib's connectors make, on arrays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.rl_module import RLModule
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor, nn

from rllib_weighted.core.actions import counted_in
from rllib_weighted.core.modules import dense_layers

if TYPE_CHECKING:
    from rllib_weighted.config import WeightedPPOConfig

ForwardPass = Callable[..., dict[str, Any]]
"""A method of an `RLModule`: (batch, **kwargs) -> outputs."""

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode and records no gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


class RolloutPolicy:
    """Acts for one rollout, and keeps what it computed.

    Args:
        module: RLlib's default PPO module, with the parameters to act with.
        device: The torch device on which it computes; None is the CPU.
        forward: What to explore with instead of the module's own forward pass.
    """

    def __init__(
        self,
        module: RLModule,
        device: torch.device | str | None,
        forward: ForwardPass | None = None,
    ) -> None:
        self._device = device
        self._is_on_cpu = device is None or str(device) == "cpu"
        self._inputs_of = _policy_inputs(module, forward)
        self._distribution = module.get_exploration_action_dist_cls()
        # Functions, not methods of this object: a cycle would keep all that a rollout computed
        # until a full garbage collection.
        self._draw = {
            TorchCategorical: RolloutPolicy._categorical,
            TorchDiagGaussian: RolloutPolicy._gaussian,
        }.get(self._distribution, RolloutPolicy._general)
        self._actions: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._logps: list[Tensor] = []  # Of categories: all of them, normalised.

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Returns actions, [envs, …], for observations of [envs, …]."""
        if obs.dtype == np.float32 and self._is_on_cpu:
            tensor = torch.from_numpy(obs)
        else:
            tensor = convert_to_torch_tensor(obs, self._device)
        inputs = self._inputs_of(tensor)
        self._inputs.append(inputs)
        actions = self._draw(self, inputs)
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


def _policy_inputs(module: RLModule, forward: ForwardPass | None) -> Callable[[Tensor], Tensor]:
    """Returns observations -> the inputs of the action distribution, by the shortest way."""
    # A compiled module has its forward pass on the instance.
    is_changed = {"forward_exploration", "_forward_exploration"} & vars(module).keys()
    layers = None if forward or is_changed else dense_layers(module)
    if layers is None:
        act = forward or module.forward_exploration
        return lambda obs: act({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]

    def through_layers(obs: Tensor) -> Tensor:
        for layer in layers:
            obs = layer(obs)
        return obs

    return through_layers


def actions_for_env(
    config: WeightedPPOConfig, space: gym.Space[Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns actions of the policy, [envs, …] -> those for the environments, as RLlib's own.

    Args:
        config: The algorithm's config.
        space: The space of a single action.
    """
    if isinstance(space, gym.spaces.Discrete):
        is_as_computed = not space.start and space.dtype == np.int64
        return (lambda actions: actions) if is_as_computed else partial(counted_in, space)
    if not isinstance(space, gym.spaces.Box) or not (
        config.normalize_actions or config.clip_actions
    ):
        return lambda actions: actions
    if not config.normalize_actions:
        return lambda actions: np.asarray(clip_action(actions, space))
    if space.dtype not in (np.float32, np.float64) or not space.is_bounded():
        return lambda actions: np.asarray(unsquash_action(actions, space))
    # What `unsquash_action` does with a bounded space, without its checks at every step.
    low, high = space.low, space.high
    width = high - low
    return lambda actions: np.minimum(np.maximum(low + (actions + 1.0) * width / 2.0, low), high)
