"""Acting with each worker's own parameters: forward passes in place of the module's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModule
from torch import Tensor

from rllib_weighted.core.modules import (
    ParameterPlaces,
    StackedForward,
    swapped_parameters,
    why_not_stacked,
    worker_parameters,
)
from rllib_weighted.sampling.rollout_policy import ForwardPass


@contextlib.contextmanager
def per_worker_policy(
    module: RLModule,
    per_worker_parameters: Mapping[str, Any] | None,
    workers: Sequence[int],
) -> Iterator[dict[str, ForwardPass]]:
    """Lets every sub-environment act with its own worker's parameters.

    If all belong to one worker, the module has its parameters inside the block. Otherwise the
    block gets forward passes to call instead of the module's; each computes row i of a batch with
    the parameters of sub-environment i, and the module keeps its own parameters for everything
    else.

    Args:
        module: The env runner's module.
        per_worker_parameters: Name -> [N, ...], see `SampleRequest`; None: nothing changes.
        workers: The worker of each sub-environment.

    Yields:
        `forward_exploration` and `forward_inference` -> what to call instead; {} if nothing.

    Raises:
        ValueError: If the parameters do not fit the module.
    """
    if per_worker_parameters is None:
        yield {}
    elif len(set(workers)) == 1:
        with swapped_parameters(
            module, worker_parameters(module, per_worker_parameters, workers[0])
        ):
            yield {}
    else:
        own = worker_parameters(module, per_worker_parameters, workers)
        make = _row_by_row if why_not_stacked(module) else _all_rows_at_once
        # All that RLlib acts with.
        names = ("forward_exploration", "forward_inference")
        yield {name: make(module, own, name) for name in names}


@contextlib.contextmanager
def shadowed(module: RLModule, forwards: Mapping[str, ForwardPass]) -> Iterator[None]:
    """Puts functions in the place of methods of one module, and takes them away again.

    RLlib's own loop calls `self.module.forward_exploration` and can be given nothing else. Its
    module may be of any class, so its methods, and not the module, are replaced.
    """
    attributes = vars(module)
    before = {name: attributes[name] for name in forwards if name in attributes}
    attributes.update(forwards)
    try:
        yield
    finally:
        for name in forwards:
            del attributes[name]
        attributes.update(before)


def _all_rows_at_once(module: RLModule, own: dict[str, Tensor], name: str) -> ForwardPass:
    """Returns one forward pass over all rows; see `why_not_stacked`."""
    forward = getattr(StackedForward(module), name)

    def act(batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        _check_rows(batch, own)
        obs = tree.map_structure(lambda column: column.unsqueeze(1), batch[Columns.OBS])
        outputs = forward(own, {Columns.OBS: obs})
        return {key: output.squeeze(1) for key, output in outputs.items()}

    return act


def _row_by_row(module: RLModule, own: dict[str, Tensor], name: str) -> ForwardPass:
    """Returns a forward pass that calls the module's own with each row alone."""
    forward, places = getattr(module, name), ParameterPlaces(module)
    rows = [dict(zip(own, tensors, strict=True)) for tensors in zip(*own.values(), strict=True)]

    def act(batch: Mapping[str, Any], **kwargs: Any) -> Any:
        _check_rows(batch, own)
        outputs = []
        for index, parameters in enumerate(rows):
            row = tree.map_structure(functools.partial(_row, index=index, num=len(rows)), batch)
            with places.swapped(parameters):
                outputs.append(forward(row, **kwargs))
        return tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

    return act


def _row(column: Any, *, index: int, num: int) -> Any:
    has_rows = isinstance(column, Tensor) and column.ndim and len(column) == num
    return column[index : index + 1] if has_rows else column


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
