"""The parameters of workers that have their own: kept in stacks, moved, averaged, exported."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from torch import Tensor, nn

from rllib_weighted.core.modules import ParameterPlaces, why_not_per_worker
from rllib_weighted.learning.adam import Rows, StackedAdam, adam_state, flat_rows, like_rows
from rllib_weighted.learning.batch import WORKER_COLUMN, compute_by_owner
from rllib_weighted.learning.collectives import Collectives

Stacked: TypeAlias = dict[str, Tensor]  # Name -> [n, ...].
ActorExport = Literal["best", "mean"]


class PerWorkerParameters:
    """θ_1 … θ_N, stacked by name: `{name: [N, …]}`, row i is worker i.

    Every learner has room for all N. In a round it moves the rows of its own workers; at the end
    the rows are shared, so that each of them can save all, and give all to the env runners.

    Args:
        module: The module that they are parameters of, unwrapped. All rows start as its own.
        num_workers: N.

    Attributes:
        stacked: Name -> [N, …], of all parameters that are trained.
        optimizer: Their optimizer.

    Raises:
        ValueError: If workers cannot have parameters of their own with this module.
    """

    def __init__(self, module: nn.Module, *, num_workers: int) -> None:
        if reason := why_not_per_worker(module):
            raise ValueError(
                "Actor strategies need a module in which training changes parameters only, but "
                f"{reason}, which all workers would share: use layer norm instead, or another "
                "`merge_strategy`."
            )
        self._trained, self._frozen = (
            {n: p for n, p in module.named_parameters() if p.requires_grad == is_trained}
            for is_trained in (True, False)
        )
        self._places = ParameterPlaces(module)
        self.num_workers = num_workers
        self.stacked: Stacked = {
            name: nn.Parameter(torch.stack([parameter.detach()] * num_workers))
            for name, parameter in self._trained.items()
        }
        self.optimizer = StackedAdam(self.stacked.values())

    def start_from_module(self) -> None:
        """Sets all rows to the module's parameters, and forgets the optimizer's state."""
        for name, parameter in self._trained.items():
            self.stacked[name].data.copy_(parameter.detach())
        self.optimizer.state.clear()

    def leaves(self, workers: Sequence[int]) -> Stacked:
        """Returns some workers' rows, name -> [n, …], as what gradients are taken of."""
        rows = self.rows_of(workers)
        return {name: s.detach()[rows].requires_grad_() for name, s in self.stacked.items()}

    def rows_of(self, workers: Sequence[int]) -> Rows:
        """Returns the index of some workers' rows: where possible a slice, which copies nothing."""
        workers = list(workers)
        if workers == list(range(self.num_workers)):
            return slice(None)
        if not workers:
            return torch.empty(0, dtype=torch.int64)
        stride = workers[1] - workers[0] if len(workers) > 1 else 1
        regular = slice(workers[0], workers[-1] + 1, stride)
        if workers == list(range(self.num_workers))[regular]:
            return regular
        return torch.tensor(workers, dtype=torch.int64)

    def as_worker(self, worker: int) -> contextlib.AbstractContextManager[None]:
        """Inside, the module computes with the parameters of one worker."""
        return self._places.swapped(self.of_worker(worker))

    def compute_values(self, module: ValueFunctionAPI, batch: dict[str, Any]) -> Tensor:
        """Returns value predictions for the rows of several workers, each by its own parameters.

        Args:
            module: The module, unwrapped.
            batch: Columns of [rows, …], among them the worker column.
        """
        owner = batch[WORKER_COLUMN]
        owner = owner[:, 0] if owner.ndim > 1 else owner  # Sequences are of one worker each.

        def compute(worker: int, part: dict[str, Any]) -> Tensor:
            with self.as_worker(worker):
                values: Tensor = module.compute_values(part)
                return values

        return compute_by_owner(compute, batch, owner)

    def of_worker(self, worker: int) -> dict[str, Tensor]:
        """Returns the parameters of one worker, name -> […], those that are not trained too."""
        rows = {name: stacked.detach()[worker] for name, stacked in self.stacked.items()}
        return {**self._frozen, **rows}

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Returns all parameters, name -> [N, …], for the env runners; none of them is a view."""
        frozen = {
            name: parameter.expand(self.num_workers, *parameter.shape).cpu().numpy().copy()
            for name, parameter in self._frozen.items()
        }
        return {**frozen, **self.get_state()}

    def share(self, collectives: Collectives) -> None:
        """Gives every learner the rows of all workers, with their optimizer states.

        Worker i belongs to learner i modulo their number.
        """
        if collectives.is_solo:
            return
        tensors = [
            tensor
            for stacked in self.stacked.values()
            for tensor in (stacked.detach(), *adam_state(self.optimizer, stacked).values())
        ]
        own = torch.zeros(self.num_workers, dtype=torch.bool)
        own[collectives.index :: collectives.num_learners] = True
        # In float64, which holds every float32 and every step count exactly.
        flat = torch.cat(
            [
                torch.where(like_rows(own, t), t, 0).flatten().double().to(collectives.device)
                for t in tensors
            ]
        )
        summed = torch.split(collectives.sum(flat), [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, summed, strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def export(self, how: ActorExport, returns: Mapping[int, float]) -> None:
        """Writes *the* policy into the module: what is evaluated, and saved as its parameters.

        Args:
            how: "best": the worker with the highest return, the first of equals; the mean of the
                parameters as long as no return is known. "mean": that mean.
            returns: Worker -> its reward signal.
        """
        known = {w: value for w, value in sorted(returns.items()) if np.isfinite(value)}
        if known and how == "best":
            chosen = self.of_worker(max(known, key=known.__getitem__))
        else:
            chosen = parameter_mean(self.stacked)
        for name, parameter in self._trained.items():
            parameter.copy_(chosen[name])

    def get_state(self) -> dict[str, np.ndarray]:
        """Returns all parameters, name -> [N, …]; the optimizer's state is saved by RLlib."""
        return {name: s.detach().cpu().numpy().copy() for name, s in self.stacked.items()}

    def fits(self, state: object) -> bool:
        """Whether a state is of as many workers, and of the same parameters."""
        shapes = {name: tuple(stacked.shape) for name, stacked in self.stacked.items()}
        return isinstance(state, dict) and {n: np.shape(a) for n, a in state.items()} == shapes

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes what `get_state` returned."""
        for name, stacked in self.stacked.items():
            stacked.data.copy_(torch.as_tensor(state[name]))


def actor_gradients(own: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> Stacked:
    """g_i' = g_i + merged, for every worker i (arXiv 2304.12778).

    Args:
        own: name -> [n, ...], each worker's own gradient.
        merged: name -> [...], the merged gradient of all workers, as `weighted_rows` returns it.

    Returns:
        name -> [n, ...].
    """
    return {name: rows + merged[name] for name, rows in own.items()}


def weighted_rows(own: Mapping[str, Tensor], weights: Tensor) -> Stacked:
    """sum_j w_j g_j over the workers with w_j != 0, which alone are read.

    Args:
        own: name -> [n, ...], each worker's own gradient; may be NaN where the weight is 0.
        weights: [n], cast to the gradients' dtype and device.

    Returns:
        name -> [...]; zeros if all weights are 0.
    """
    kept = weights.nonzero().squeeze(1)
    if len(kept) < len(weights):
        weights = weights[kept]
        own = {name: rows[kept.to(rows.device)] for name, rows in own.items()}
    return {name: torch.tensordot(weights.to(rows), rows, dims=1) for name, rows in own.items()}


def finite_rows(own: Mapping[str, Tensor]) -> Tensor:
    """Which workers' gradients have only finite entries.

    Args:
        own: name -> [n, ...], at least one.

    Returns:
        [n] bool.
    """
    largest = [
        torch.linalg.vector_norm(flat_rows(rows), ord=torch.inf, dim=1)  # NaN if an entry is.
        for rows in own.values()
    ]
    return torch.isfinite(torch.stack(largest)).all(dim=0)


def parameter_mean(stacked: Mapping[str, Tensor]) -> Stacked:
    """The mean of the workers' parameters, taken in float64: identical workers give just theirs.

    Args:
        stacked: name -> [N, ...].

    Returns:
        name -> [...], in the dtype of the parameter, detached.
    """
    return {
        name: rows.detach().mean(dim=0, dtype=torch.float64).to(rows.dtype)
        for name, rows in stacked.items()
    }


def drift(stacked: Mapping[str, Tensor]) -> Tensor:
    """How far each worker is from the mean of all: ‖θ_i - θ̄‖ / ‖θ̄‖, over all parameters.

    Args:
        stacked: name -> [N, ...], at least one.

    Returns:
        [N] float64, >= 0; 0 for a worker that is where the mean is.
    """
    squares, mean_square = [], []
    for tensor in stacked.values():
        rows = flat_rows(tensor.detach()).to(torch.float64)
        mean = rows.mean(dim=0)
        squares.append((rows - mean).square_().sum(dim=1))
        mean_square.append(mean.square_().sum())
    distances = torch.stack(squares).sum(dim=0).sqrt_()
    norm = torch.stack(mean_square).sum().sqrt_()
    return torch.where(distances == 0, 0.0, distances / norm)
