"""One RLModule, many parameter sets: N workers' forward passes in one, or one after the other.

The parameters of N workers are stacked by name, `{name: [N, ...]}`, with the names of the
module's `named_parameters()`. Both sides need this: the learner with gradients, an env runner
whose sub-environments act with parameters of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead, TorchMLPHead
from ray.rllib.core.models.torch.primitives import TorchMLP
from torch import Tensor, nn

# What a default PPO module computes, as lists of layers; or why that cannot be told


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


# Which class of a learner's ancestry a method comes from


_OWN_PACKAGES = ("ray.rllib.", "rllib_weighted.")


def defining_class(cls: type, method: str) -> type:
    """Returns the class whose `method` an instance of `cls` has.

    Not told by the function itself: in an actor, Ray Train's subclass of every learner wraps all
    methods for tracing.
    """
    own = (c for c in cls.__mro__ if not c.__module__.startswith("ray.train."))
    return next(c for c in own if method in vars(c))


def overriding_class(cls: type, method: str) -> str | None:
    """Returns the name of a user's class whose `method` it is; None if it is RLlib's or ours."""
    owner = defining_class(cls, method)
    return None if owner.__module__.startswith(_OWN_PACKAGES) else owner.__name__


def why_not_stacked(module: Any) -> str | None:
    """Returns why a module cannot compute N parameter sets in one forward pass; None if it can.

    `torch.func.vmap` needs a forward pass without data-dependent branches, in-place tricks and
    hidden state: known of RLlib's default PPO module, of no module of a user's.
    """
    if type(module) is not DefaultPPOTorchRLModule or type(module.catalog) is not PPOCatalog:
        return "the module is a custom one"
    if module.is_stateful():
        return "the module is a recurrent one"
    if any(name in vars(module) for name in ("_forward_train", "_forward_exploration")):
        return "the module is compiled"
    return why_not_per_worker(module)


def why_not_per_worker(module: nn.Module) -> str | None:
    """Returns why workers cannot have parameters of their own with this module; None if they can.

    A layer with running statistics (batch norm, instance norm) changes buffers in training. They
    are no parameters: all workers would write into the same ones.
    """
    for name, layer in module.named_modules():
        if isinstance(getattr(layer, "running_mean", None), Tensor):
            return f"its layer {name!r} ({type(layer).__name__}) has running statistics"
    return None


class ParameterPlaces:
    """Where a module keeps each of its parameters; more than one place if they are tied.

    Args:
        module: Any module, unwrapped.

    Attributes:
        names: The parameters' names, as in `module.named_parameters()`.
    """

    def __init__(self, module: nn.Module) -> None:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._all: list[tuple[str, nn.Module, str]] = []
        for path, parameter in module.named_parameters(remove_duplicate=False):
            owner, _, attribute = path.rpartition(".")
            place = names[id(parameter)], module.get_submodule(owner), attribute
            self._all.append(place)
        self.names = list(names.values())

    @contextlib.contextmanager
    def hold(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """As `swapped_parameters`, without its checks, for use again and again.

        `Module._parameters` is private, and what `torch.func.functional_call` writes into as well
        (tested with torch 2.13); that function only reaches `forward`, which RLlib does not call.
        """
        parameters = [owner._parameters[attribute] for _, owner, attribute in self._all]
        try:
            for name, owner, attribute in self._all:
                owner._parameters[attribute] = tensors[name]  # type: ignore[assignment]
            yield
        finally:
            for (_, owner, attribute), parameter in zip(self._all, parameters, strict=True):
                owner._parameters[attribute] = parameter
                if isinstance(owner, nn.RNNBase):  # It has a list of its weights besides.
                    setattr(owner, attribute, parameter)


@contextlib.contextmanager
def swapped_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the module computes with the given tensors in place of its parameters.

    All of its methods do, whichever way they are called, and gradients flow to the tensors. On
    leaving, by an exception too, it has its parameters again, the same objects.

    Args:
        module: Any module, unwrapped.
        tensors: Name, as in `module.named_parameters()`, -> tensor in that parameter's shape.
            Names that the module lacks are ignored: an env runner's may have no critic.

    Raises:
        ValueError: If a parameter is missing, or has another shape.
    """
    places = ParameterPlaces(module)
    for name, parameter in module.named_parameters():
        _check(name, tensors, parameter.shape)
    with places.hold(tensors):
        yield


def _check(name: str, tensors: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise ValueError(
            f"there should be a tensor for the module's parameter {name!r}, found "
            f"{sorted(tensors)}: take them from a module that was built from the same spec"
        )
    if tuple(tensors[name].shape) != tuple(shape):
        raise ValueError(
            f"the tensor for the module's parameter {name!r} should have the shape {list(shape)}, "
            f"found {list(tensors[name].shape)}: take it from a module of the same sizes"
        )


def worker_parameters(
    module: nn.Module, stacks: Mapping[str, Any], rows: int | Sequence[int]
) -> dict[str, Tensor]:
    """Copies the parameters of one worker, or of some, to where a module computes.

    Args:
        module: The module, unwrapped, which says which parameters there are.
        stacks: Name -> [N, ...], tensors or numpy arrays. Names that the module lacks are
            ignored: an env runner's may have no critic.
        rows: The worker, or the workers.

    Returns:
        Name -> [...], or [len(rows), ...], in the parameter's dtype and on its device.

    Raises:
        ValueError: If a parameter is missing, or has another shape.
    """
    found = {}
    for name, parameter in module.named_parameters():
        _check(name, stacks, (len(stacks.get(name, ())), *parameter.shape))
        taken = stacks[name][rows]
        # A copy: arrays that came through Ray cannot be written to.
        tensor = taken.detach() if isinstance(taken, Tensor) else torch.tensor(taken)
        found[name] = tensor.to(device=parameter.device, dtype=parameter.dtype, copy=True)
    return found


class StackedForward:
    """Forward passes of n workers, each with its own parameters on its own rows, as one.

    Args:
        module: A module for which `why_not_stacked` is None. Its own parameters are not read.
    """

    def __init__(self, module: Any) -> None:
        self._places = ParameterPlaces(module)
        forward_train, compute_values = module.forward_train, module.compute_values

        def train(batch: dict[str, Any]) -> dict[str, Tensor]:
            output = forward_train(batch)
            return {
                Columns.ACTION_DIST_INPUTS: output[Columns.ACTION_DIST_INPUTS],
                Columns.VF_PREDS: compute_values(batch, embeddings=output.get(Columns.EMBEDDINGS)),
            }

        self._train = self._vmapped(train)
        self._explore = self._vmapped(module.forward_exploration)
        self._infer = self._vmapped(module.forward_inference)

    def forward_train(
        self, stacks: Mapping[str, Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The policy's outputs and the value predictions; gradients flow to `stacks`.

        One backward pass over the sum of the workers' losses gives each worker's own gradient in
        its row: no worker's loss depends on the parameters of another.

        Args:
            stacks: Name -> [n, ...]; names that the module lacks are ignored.
            batch: Columns; `Columns.OBS` of [n, rows, ...] is read.

        Returns:
            `Columns.ACTION_DIST_INPUTS` of [n, rows, size] and `Columns.VF_PREDS` of [n, rows].
        """
        return self._train(stacks, batch)

    def forward_exploration(
        self, stacks: Mapping[str, Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The outputs to explore with, without gradients; see `forward_train`."""
        return self._explore(stacks, batch)

    def forward_inference(
        self, stacks: Mapping[str, Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The outputs to act greedily with, without gradients; see `forward_train`."""
        return self._infer(stacks, batch)

    def _vmapped(
        self, forward: Callable[[dict[str, Any]], dict[str, Tensor]]
    ) -> Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]:
        def one(tensors: dict[str, Tensor], obs: Any) -> dict[str, Tensor]:
            with self._places.hold(tensors):
                return forward({Columns.OBS: obs})

        # Dropout, if there is any, draws for each worker.
        mapped = torch.func.vmap(one, randomness="different")

        def every(stacks: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
            own = {name: stacks[name] for name in self._places.names}
            outputs: dict[str, Tensor] = mapped(own, batch[Columns.OBS])
            return outputs

        return every


_CHEAP = {nn.Tanh: torch.tanh, nn.ReLU: torch.relu}


Forward = Callable[[Tensor], Tensor]


def dense_layers(module: Any) -> list[Forward] | None:
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
