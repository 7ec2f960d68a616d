"""What is known of an RLModule: its dense layers, overridden methods, and where parameters lie.

The learner and the env runner both ask: the learner takes steps without autograd where it knows
the layers, the env runner computes actions the short way; and both compute with the parameters of
N workers, stacked by name, `{name: [N, ...]}`, with the names of `named_parameters()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead, TorchMLPHead
from ray.rllib.core.models.torch.primitives import TorchMLP
from torch import Tensor, nn

from rllib_weighted._private import has_forward_hooks, module_parameters
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.observations import DEFAULT_MODULES, CastingPPOModule

# RLlib annotates an RLModule's parts (`encoder`, `pi`, `vf`, `catalog`) as optional or not at all:
# `module: Any` below is one.

Activation = Literal["tanh", "relu"]
Distribution = Literal["categorical", "gaussian"]
Forward = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[type, Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu"}
_CHEAP: dict[type, Forward] = {nn.Tanh: torch.tanh, nn.ReLU: torch.relu}
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
        floats: Makes the layers' inputs of observations; None: they are what the layers take.
        is_dense: Whether the chains above are all there is to it; else only the module knows.
    """

    trunk: tuple[Layer, ...]
    policy: tuple[Layer, ...]
    value: tuple[Layer, ...]
    distribution: Distribution
    log_std: str | None = None
    log_std_bound: float | None = None
    floats: Forward | None = None
    is_dense: bool = True


class UnknownNetworkError(Exception):
    """A module is not made of dense layers; the message says of what."""


def read_networks(module: Any) -> Networks:
    """Reads the layers of RLlib's default PPO module (tested with Ray 2.60).

    Args:
        module: The module, unwrapped.

    Raises:
        UnknownNetworkError: It does not meet `NETWORKS`.
    """
    if reason := first_reason(ANY_NETWORKS, module):
        raise UnknownNetworkError(reason)
    names = {id(p): name for name, p in module.named_parameters()}
    encoder, is_shared = _policy_encoder(module)
    trunk = _layers(_dense(encoder, "an encoder"), names)
    policy = _layers(_dense(module.pi, "a head"), names)
    value = _layers(_dense(module.vf, "a head"), names)
    if not is_shared:
        critic = _layers(_dense(module.encoder.critic_encoder, "an encoder"), names)
        trunk, policy, value = (), trunk + policy, critic + value
    distribution = _DISTRIBUTIONS[module.get_train_action_dist_cls()]
    is_free = type(module.pi) is TorchFreeLogStdMLPHead
    bound = float(module.pi.log_std_clip_param_const) if module.pi.clip_log_std else None
    return Networks(
        trunk,
        policy,
        value,
        distribution=distribution,
        log_std=names[id(module.pi.log_std)] if is_free else None,
        log_std_bound=bound if distribution == "gaussian" else None,
        floats=module.floats if isinstance(module, CastingPPOModule) else None,
    )


def opaque_networks(module: Any) -> Networks:
    """Returns what is known of RLlib's default PPO module with layers of any kind.

    Args:
        module: The module, unwrapped; it meets `ANY_NETWORKS`.
    """
    distribution = _DISTRIBUTIONS[module.get_train_action_dist_cls()]
    return Networks((), (), (), distribution=distribution, is_dense=False)


def why_not_networks(module: Any) -> str | None:
    """Returns why the layers of a module cannot be read; None if they can."""
    return first_reason(NETWORKS, module)


def why_not_any(module: Any) -> str | None:
    """Returns why not even the outputs of a module are known; None if they are."""
    return first_reason(ANY_NETWORKS, module)


def _why_not_dense(module: Any) -> str | None:
    try:
        read_networks(module)
    except UnknownNetworkError as error:
        return str(error)
    return None


ANY_NETWORKS: tuple[Requirement[Any], ...] = (
    required(
        "RLlib's default PPO module, not compiled",
        lambda module: type(module) in DEFAULT_MODULES and "_forward_train" not in vars(module),
        "the module is a custom or a compiled one",
    ),
    required(
        "discrete or continuous actions",
        lambda module: module.get_train_action_dist_cls() in _DISTRIBUTIONS,
        "the actions are neither discrete nor continuous",
    ),
    required(
        "no frozen parameters",
        lambda module: all(parameter.requires_grad for parameter in module.parameters()),
        "some parameters are frozen",
    ),
)

# The last one is what reading finds out, if the module meets all others.
NETWORKS = (
    *ANY_NETWORKS,
    Requirement("dense layers with tanh, ReLU or nothing in between", _why_not_dense),
)


def dense_layers(module: Any) -> list[Forward] | None:
    """Returns the layers of a policy with a dense encoder; None if it is of another kind.

    Layers that `read_networks` does not know are called as they are.
    """
    try:
        encoder = _dense(_policy_encoder(module)[0], "an encoder")
    except UnknownNetworkError:
        return None
    if any(has_forward_hooks(part) for part in module.modules()):
        return None
    head = [module.pi]
    if type(module.pi) is TorchMLPHead and not module.pi.clip_log_std:
        head = _dense(module.pi, "a head")
    first = [module.floats] if isinstance(module, CastingPPOModule) else []
    return [*first, *(_cheap(layer) for layer in [*encoder, *head])]


def _cheap(layer: nn.Module) -> Forward:
    if type(layer) is nn.Linear:
        weight, bias = layer.weight, layer.bias
        return lambda x: nn.functional.linear(x, weight, bias)
    return _CHEAP.get(type(layer), layer)


def _policy_encoder(module: Any) -> tuple[nn.Module, bool]:
    """Returns the encoder of the policy, and whether it is also that of the value function."""
    if type(module.encoder) is not TorchActorCriticEncoder:
        raise UnknownNetworkError(f"the encoder is a {type(module.encoder).__name__}")
    shared = getattr(module.encoder, "encoder", None)
    return (module.encoder.actor_encoder, False) if shared is None else (shared, True)


def _dense(network: Any, what: str) -> list[nn.Module]:
    """Returns the layers of RLlib's dense encoder or head."""
    kinds = (TorchMLPEncoder, TorchMLPHead, TorchFreeLogStdMLPHead)
    if type(network) not in kinds or type(network.net) is not TorchMLP:
        raise UnknownNetworkError(f"{what} is a {type(network).__name__}")
    return list(network.net.mlp)


def _layers(pieces: Sequence[nn.Module], names: Mapping[int, str]) -> tuple[Layer, ...]:
    found: list[Layer] = []
    for piece in pieces:
        if type(piece) is nn.Linear:
            bias: Tensor | None = piece.bias
            bias_name = None if bias is None else names[id(bias)]
            found.append(Layer(names[id(piece.weight)], bias_name, None))
        elif type(piece) in _ACTIVATIONS and found and found[-1].activation is None:
            found[-1] = replace(found[-1], activation=_ACTIVATIONS[type(piece)])
        else:
            raise UnknownNetworkError(f"a network has a {type(piece).__name__} layer")
    return tuple(found)


# Whose a method is

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


def user_override(cls: type, *methods: str) -> str | None:
    """Returns which user's class overrides the first of some methods that one overrides."""
    users = ((overriding_class(cls, method), method) for method in methods)
    return next((f"{user} overrides `{method}`" for user, method in users if user), None)


# Parameters of N workers


def why_not_per_worker(module: nn.Module) -> str | None:
    """Returns why workers cannot have parameters of their own with this module; None if they can.

    A layer with running statistics (batch norm, instance norm) changes buffers in training. They
    are no parameters: all workers would write into the same ones.
    """
    return first_reason(PER_WORKER, module)


def why_not_stacked(module: Any) -> str | None:
    """Returns why a module cannot compute N parameter sets in one forward pass; None if it can.

    `torch.func.vmap` needs a forward pass without data-dependent branches, in-place tricks and
    hidden state: known of RLlib's default PPO module, of no module of a user's.
    """
    return first_reason(STACKED, module)


def _running_statistics(module: nn.Module) -> str | None:
    for name, layer in module.named_modules():
        if isinstance(getattr(layer, "running_mean", None), Tensor):
            return f"its layer {name!r} ({type(layer).__name__}) has running statistics"
    return None


PER_WORKER: tuple[Requirement[Any], ...] = (
    Requirement("no layer with running statistics", _running_statistics),
)

STACKED: tuple[Requirement[Any], ...] = (
    required(
        "RLlib's default PPO module and catalog",
        lambda module: type(module) in DEFAULT_MODULES and type(module.catalog) is PPOCatalog,
        "the module is a custom one",
    ),
    required(
        "a module without recurrent state",
        lambda module: not module.is_stateful(),
        "the module is a recurrent one",
    ),
    required(
        "a module that is not compiled",
        lambda module: not {"_forward_train", "_forward_exploration"} & vars(module).keys(),
        "the module is compiled",
    ),
    required(
        "no convolutions",
        lambda module: not any(isinstance(part, nn.Conv2d) for part in module.modules()),
        "the module has convolutions, which take longer all at once than one after the other",
    ),
    *PER_WORKER,
)


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
    def swapped(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """As `swapped_parameters`, without its checks, for use again and again.

        A `torch.func.functional_call` for all of a module's methods: that function only reaches
        `forward`, which RLlib does not call.
        """
        parameters = [module_parameters(owner)[attribute] for _, owner, attribute in self._all]
        try:
            for name, owner, attribute in self._all:
                module_parameters(owner)[attribute] = tensors[name]
            yield
        finally:
            for (_, owner, attribute), parameter in zip(self._all, parameters, strict=True):
                module_parameters(owner)[attribute] = parameter
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
    with places.swapped(tensors):
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
    module: nn.Module, stacked: Mapping[str, Any], rows: int | Sequence[int]
) -> dict[str, Tensor]:
    """Copies the parameters of one worker, or of some, to where a module computes.

    Args:
        module: The module, unwrapped, which says which parameters there are.
        stacked: Name -> [N, ...], tensors or numpy arrays. Names that the module lacks are
            ignored: an env runner's may have no critic.
        rows: The worker, or the workers.

    Returns:
        Name -> [...], or [len(rows), ...], in the parameter's dtype and on its device.

    Raises:
        ValueError: If a parameter is missing, or has another shape.
    """
    found = {}
    for name, parameter in module.named_parameters():
        _check(name, stacked, (len(stacked.get(name, ())), *parameter.shape))
        taken = stacked[name][rows]
        # A copy: arrays that came through Ray cannot be written to.
        tensor = taken.detach() if isinstance(taken, Tensor) else torch.tensor(taken)
        found[name] = tensor.to(device=parameter.device, dtype=parameter.dtype, copy=True)
    return found


Stacked = Mapping[str, Tensor]
StackedPass = Callable[[Stacked, Mapping[str, Any]], dict[str, Tensor]]


class StackedForward:
    """Forward passes of n workers, each with its own parameters on its own rows, as one.

    Each takes stacked parameters, name -> [n, ...] (names that the module lacks are ignored), and
    a batch of which `Columns.OBS`, [n, rows, ...], is read.

    Args:
        module: A module for which `why_not_stacked` is None. Its own parameters are not read.

    Attributes:
        forward_train: Returns `Columns.ACTION_DIST_INPUTS` of [n, rows, size] and
            `Columns.VF_PREDS` of [n, rows]. Gradients flow to the parameters: one backward pass
            over the sum of the workers' losses gives each worker's own gradient in its row.
        forward_exploration: Returns the outputs to explore with, without gradients.
        forward_inference: Returns the outputs to act greedily with, without gradients.
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

        self.forward_train = self._vmapped(train)
        self.forward_exploration = self._vmapped(module.forward_exploration)
        self.forward_inference = self._vmapped(module.forward_inference)

    def _vmapped(self, forward: Callable[[dict[str, Any]], dict[str, Tensor]]) -> StackedPass:
        def one(tensors: dict[str, Tensor], obs: Any) -> dict[str, Tensor]:
            with self._places.swapped(tensors):
                return forward({Columns.OBS: obs})

        # Dropout, if there is any, draws for each worker.
        mapped = torch.func.vmap(one, randomness="different")

        def every(stacked: Stacked, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            own = {name: stacked[name] for name in self._places.names}
            outputs: dict[str, Tensor] = mapped(own, batch[Columns.OBS])
            return outputs

        return every
