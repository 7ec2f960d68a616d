"""One RLModule, many parameter sets: N workers' forward passes in one, or one after the other.

The parameters of N workers are stacked by name, `{name: [N, ...]}`, with the names of the
module's `named_parameters()`. Both sides need this: the learner with gradients, an env runner
whose sub-environments act with parameters of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from torch import Tensor, nn


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
    return why_not_actor_local(module)


def why_not_actor_local(module: nn.Module) -> str | None:
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
