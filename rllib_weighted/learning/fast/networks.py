"""What a default PPO module computes, as lists of layers; or why that cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead, TorchMLPHead
from torch import Tensor, nn

Activation = Literal["tanh", "relu"]
Distribution = Literal["categorical", "gaussian"]
_ACTIVATIONS: dict[type, Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu"}
_DISTRIBUTIONS: dict[type, Distribution] = {
    TorchCategorical: "categorical",
    TorchDiagGaussian: "gaussian",
}


@dataclass(frozen=True)
class Layer:
    """A dense layer and the activation after it; parameters by name."""

    weight: str
    bias: str | None
    activation: Activation | None


@dataclass(frozen=True)
class Networks:
    """Policy and value function as chains of dense layers.

    Args:
        trunk: The layers that both share; empty if each has an encoder of its own.
        policy: Then those of the policy.
        value: Then those of the value function.
        distribution: What the policy's outputs are the inputs of.
        log_std: Name of the parameter that holds a Gaussian's log standard deviations, if they do
            not depend on the observation.
        log_std_bound: They are clamped to [-bound, bound]; None: not at all.
    """

    trunk: tuple[Layer, ...]
    policy: tuple[Layer, ...]
    value: tuple[Layer, ...]
    distribution: Distribution
    log_std: str | None = None
    log_std_bound: float | None = None


class UnknownNetworkError(Exception):
    """A module is not made of what is known here; the message says of what."""


def read_networks(module: Any) -> Networks:
    """Reads the layers of RLlib's default PPO module (tested with Ray 2.60).

    Args:
        module: The module, unwrapped.

    Raises:
        UnknownNetworkError: It holds anything but dense layers with tanh or ReLU in between, or
            its actions are of another distribution than categorical or diagonal Gaussian.
    """
    if type(module) is not DefaultPPOTorchRLModule or "_forward_train" in vars(module):
        raise UnknownNetworkError("the module is a custom or a compiled one")
    distribution = _DISTRIBUTIONS.get(module.get_train_action_dist_cls())
    if distribution is None:
        raise UnknownNetworkError("the actions are neither discrete nor continuous")
    if any(not parameter.requires_grad for parameter in module.parameters()):
        raise UnknownNetworkError("some parameters are frozen")
    if type(module.encoder) is not TorchActorCriticEncoder:
        raise UnknownNetworkError(f"the encoder is a {type(module.encoder).__name__}")
    names = {id(p): name for name, p in module.named_parameters()}
    encoder = module.encoder
    shared = getattr(encoder, "encoder", None)
    policy, value = _head_layers(module.pi, names), _head_layers(module.vf, names)
    trunk: tuple[Layer, ...] = ()
    if shared is not None:
        trunk = _encoder_layers(shared, names)
    else:
        policy = _encoder_layers(encoder.actor_encoder, names) + policy
        value = _encoder_layers(encoder.critic_encoder, names) + value
    is_free = type(module.pi) is TorchFreeLogStdMLPHead
    bound = float(module.pi.log_std_clip_param_const) if module.pi.clip_log_std else None
    return Networks(
        trunk,
        policy,
        value,
        distribution=distribution,
        log_std=names[id(module.pi.log_std)] if is_free else None,
        log_std_bound=bound if distribution == "gaussian" else None,
    )


def _encoder_layers(encoder: Any, names: dict[int, str]) -> tuple[Layer, ...]:
    if type(encoder) is not TorchMLPEncoder:
        raise UnknownNetworkError(f"an encoder is a {type(encoder).__name__}")
    return _layers(list(encoder.net.mlp), names)


def _head_layers(head: Any, names: dict[int, str]) -> tuple[Layer, ...]:
    if type(head) not in (TorchMLPHead, TorchFreeLogStdMLPHead):
        raise UnknownNetworkError(f"a head is a {type(head).__name__}")
    return _layers(list(head.net.mlp), names)


def _layers(pieces: Sequence[nn.Module], names: dict[int, str]) -> tuple[Layer, ...]:
    found: list[Layer] = []
    for piece in pieces:
        if type(piece) is nn.Linear:
            bias: Tensor | None = piece.bias
            bias_name = None if bias is None else names[id(bias)]
            found.append(Layer(names[id(piece.weight)], bias_name, None))
        elif type(piece) in _ACTIVATIONS and found and found[-1].activation is None:
            last = found.pop()
            found.append(Layer(last.weight, last.bias, _ACTIVATIONS[type(piece)]))
        else:
            raise UnknownNetworkError(f"a network has a {type(piece).__name__} layer")
    return tuple(found)
