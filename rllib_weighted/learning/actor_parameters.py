"""A parameter set and an optimizer state per worker, as stacks, in a learner."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rllib_weighted.learning.exchange import Exchange
from rllib_weighted.learning.round_batch import WORKER_COLUMN, take_rows
from rllib_weighted.merging import StackedAdam, drift, parameter_mean
from rllib_weighted.stacks import swapped_parameters, why_not_actor_local

ActorExport = Literal["best", "mean"]


class ActorParameters:
    """θ_1 … θ_N, stacked by name: `{name: [N, …]}`, row i is worker i.

    Every learner has room for all N. In a round it moves the rows of its own workers; at the end
    the rows are shared, so that each of them can save all, and give all to the env runners.

    Args:
        module: The module that they are parameters of, unwrapped. All rows start as its own.
        num_workers: N.
        num_learners: Number of learners; worker i belongs to learner i modulo that number.

    Raises:
        ValueError: If workers cannot have parameters of their own with this module.
    """

    def __init__(self, module: nn.Module, *, num_workers: int, num_learners: int) -> None:
        if reason := why_not_actor_local(module):
            raise ValueError(
                "Actor strategies need a module in which training changes parameters only, but "
                f"{reason}, which all workers would share: use layer norm instead, or another "
                "`merge_strategy`."
            )
        self._module = module
        self._num_learners = max(1, num_learners)
        self.stacks: dict[str, Tensor] = {
            name: nn.Parameter(torch.stack([parameter.detach()] * num_workers))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = StackedAdam(self.stacks.values())

    @property
    def num_workers(self) -> int:
        """N."""
        return self.optimizer.num_rows

    def start_from_module(self) -> None:
        """Sets all rows to the module's parameters, and forgets the optimizer's state."""
        for name, parameter in self._module.named_parameters():
            if name in self.stacks:
                self.stacks[name].data.copy_(parameter.detach())
        self.optimizer.state.clear()

    def leaves(self, workers: Sequence[int]) -> dict[str, Tensor]:
        """Returns some workers' rows, name -> [n, …], as what gradients are taken of."""
        rows = self.rows_of(workers)
        return {name: stack.detach()[rows].requires_grad_() for name, stack in self.stacks.items()}

    def rows_of(self, workers: Sequence[int]) -> slice | Tensor:
        """Returns the index of some workers' rows; a slice, which copies nothing, if it goes."""
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

    def held(self, worker: int) -> contextlib.AbstractContextManager[None]:
        """Inside, the module computes with the parameters of one worker."""
        return swapped_parameters(self._module, self.of_worker(worker))

    def compute_values(self, module: Any, batch: dict[str, Any]) -> Tensor:
        """Returns value predictions for the rows of several workers, each by its own parameters.

        Args:
            module: The module, unwrapped.
            batch: Columns of [rows, …], among them the worker column.
        """
        owner = batch[WORKER_COLUMN]
        owner = owner[:, 0] if owner.ndim > 1 else owner  # Sequences are of one worker each.
        values, places = [], []
        for worker in owner.unique().tolist():
            rows = torch.nonzero(owner == worker).squeeze(1)
            with self.held(worker):
                values.append(module.compute_values(take_rows(batch, rows)))
            places.append(rows)
        return torch.cat(values)[torch.argsort(torch.cat(places))]

    def of_worker(self, worker: int) -> dict[str, Tensor]:
        """Returns the parameters of one worker, name -> […], those that are not trained too."""
        frozen = {n: p for n, p in self._module.named_parameters() if n not in self.stacks}
        return {**frozen, **{name: stack.detach()[worker] for name, stack in self.stacks.items()}}

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Returns all parameters, name -> [N, …], for the env runners; none of them is a view."""
        frozen = {
            name: parameter.detach().expand(self.num_workers, *parameter.shape)
            for name, parameter in self._module.named_parameters()
            if name not in self.stacks
        }
        return {
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in {**frozen, **self.stacks}.items()
        }

    def share(self, exchange: Exchange) -> None:
        """Gives every learner the rows of all workers, with their optimizer states."""
        if exchange.is_solo:
            return
        self.optimizer.prepare()
        tensors = [
            tensor
            for stack in self.stacks.values()
            for tensor in (stack.detach(), *self.optimizer.state[stack].values())
        ]
        own = torch.zeros(self.num_workers, dtype=torch.bool)
        own[exchange.index :: self._num_learners] = True
        # In float64, which holds every float32 and every step count exactly.
        flat = torch.cat(
            [
                torch.where(_like(own, t), t, 0).flatten().double().to(exchange.device)
                for t in tensors
            ]
        )
        pieces = exchange.sum(flat).split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def drift(self) -> list[float]:
        """Returns each worker's distance to the mean, relative to the mean's norm, [N]."""
        drifts: list[float] = drift(self.stacks).tolist()
        return drifts

    @torch.no_grad()
    def export(self, how: ActorExport, returns: Mapping[int, float]) -> int | None:
        """Writes *the* policy into the module: what is evaluated, and saved as its parameters.

        Args:
            how: "best": the worker with the highest return, the first of equals; the mean of the
                parameters as long as no return is known. "mean": that mean.
            returns: Worker -> its reward signal.

        Returns:
            The worker whose policy it is; None for the mean.
        """
        known = {w: value for w, value in sorted(returns.items()) if np.isfinite(value)}
        best = max(known, key=known.__getitem__) if known and how == "best" else None
        chosen = parameter_mean(self.stacks) if best is None else self.of_worker(best)
        for name, parameter in self._module.named_parameters():
            if name in self.stacks:
                parameter.copy_(chosen[name])
        return best

    # State

    def get_state(self) -> dict[str, Any]:
        """Returns all parameters, name -> [N, …]; the optimizer's state is saved by RLlib."""
        return {name: stack.detach().cpu().numpy().copy() for name, stack in self.stacks.items()}

    def fits(self, state: Any) -> bool:
        """Whether a state is of as many workers, and of the same parameters."""
        shapes = {name: tuple(stack.shape) for name, stack in self.stacks.items()}
        return isinstance(state, dict) and {n: np.shape(a) for n, a in state.items()} == shapes

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` returned."""
        for name, stack in self.stacks.items():
            stack.data.copy_(torch.as_tensor(state[name]))


def _like(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.to(rows.device).view(-1, *[1] * (rows.ndim - 1))
