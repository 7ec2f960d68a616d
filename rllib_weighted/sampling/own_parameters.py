"""Acting with each worker's own parameters, for the time of a round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_weighted.stacks import (
    ParameterPlaces,
    StackedForward,
    swapped_parameters,
    why_not_stacked,
    worker_parameters,
)

_FORWARDS = ("forward_exploration", "forward_inference")  # All that RLlib acts with.


@contextlib.contextmanager
def acting_with(
    module: Any, actor_parameters: Mapping[str, Any] | None, workers: Sequence[int]
) -> Iterator[None]:
    """Inside, every sub-environment acts with its own worker's parameters.

    If all belong to one worker, the module has its parameters. Else the module's forward passes
    for acting compute each row of a batch, one per sub-environment, with that row's parameters,
    and everything else still sees the module's own. On leaving, it has those again, and only
    those.

    Args:
        module: The env runner's module.
        actor_parameters: Name -> [N, ...], see `RoundOrder`; None: nothing changes.
        workers: The worker of each sub-environment.

    Raises:
        ValueError: If the parameters do not fit the module.
    """
    if actor_parameters is None:
        yield
    elif len(set(workers)) == 1:
        own = worker_parameters(module, actor_parameters, workers[0])
        with swapped_parameters(module, own):
            yield
    else:
        own = worker_parameters(module, actor_parameters, workers)
        forwards = (_one_by_one if why_not_stacked(module) else _all_at_once)(module, own)
        with _shadowed(module, forwards):
            yield


@contextlib.contextmanager
def _shadowed(module: Any, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Puts functions in front of methods of one object, and takes them away again."""
    before = {name: vars(module)[name] for name in forwards if name in vars(module)}
    for name, forward in forwards.items():
        setattr(module, name, forward)
    try:
        yield
    finally:
        for name in forwards:
            delattr(module, name)
        for name, forward in before.items():
            setattr(module, name, forward)


def _all_at_once(module: Any, own: dict[str, Tensor]) -> dict[str, Callable[..., Any]]:
    """The fast way: one forward pass over rows with parameters of their own."""
    stacked = StackedForward(module)

    def make(name: str) -> Callable[..., Any]:
        forward = getattr(stacked, name)

        def act(batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
            _check_rows(batch, own)
            obs = tree.map_structure(lambda column: column.unsqueeze(1), batch[Columns.OBS])
            outputs = forward(own, {Columns.OBS: obs})
            return {key: output.squeeze(1) for key, output in outputs.items()}

        return act

    return {name: make(name) for name in _FORWARDS}


def _one_by_one(module: Any, own: dict[str, Tensor]) -> dict[str, Callable[..., Any]]:
    """The general way: the module's own forward pass on each row alone."""
    places = ParameterPlaces(module)
    rows = [dict(zip(own, tensors, strict=True)) for tensors in zip(*own.values(), strict=True)]

    def make(name: str) -> Callable[..., Any]:
        forward = getattr(module, name)

        def act(batch: Mapping[str, Any], **kwargs: Any) -> Any:
            _check_rows(batch, own)
            outputs = []
            for index, tensors in enumerate(rows):
                with places.hold(tensors):
                    outputs.append(forward(_row(batch, index, len(rows)), **kwargs))
            return tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

        return act

    return {name: make(name) for name in _FORWARDS}


def _row(batch: Mapping[str, Any], index: int, num_rows: int) -> dict[str, Any]:
    def cut(column: Any) -> Any:
        has_rows = isinstance(column, Tensor) and column.ndim and len(column) == num_rows
        return column[index : index + 1] if has_rows else column

    return {key: tree.map_structure(cut, value) for key, value in batch.items()}


def _check_rows(batch: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """ValueError unless the batch has one row per sub-environment: else whose is a row?"""
    num_rows = len(tree.flatten(batch[Columns.OBS])[0])
    num_envs = len(next(iter(own.values())))
    if num_rows != num_envs:
        raise ValueError(
            f"the env-to-module connectors should make one row per sub-environment ({num_envs}) "
            f"when each acts with its worker's own parameters, found {num_rows}: use connectors "
            'that keep the rows, or merge_unit="env_runner"'
        )
