"""The parameters that a round moves, one set or one per worker, and how Adam moves them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from torch import Tensor, nn
from torch.optim import Optimizer

from rllib_weighted.core.modules import ParameterPlaces, why_not_per_worker
from rllib_weighted.learning.batch import WORKER_COLUMN, compute_by_owner
from rllib_weighted.learning.collectives import Collectives

Rows: TypeAlias = slice | Tensor  # int64 indices without repeats, or a bool mask.
Stacked: TypeAlias = dict[str, Tensor]  # Name -> [n, ...].
ActorExport = Literal["best", "mean"]
ClipBy: TypeAlias = Literal["value", "norm", "global_norm"]

_FIRST, _SECOND, _STEP = "exp_avg", "exp_avg_sq", "step"  # As in `torch.optim.Adam`.
_HUGE = 10e8  # What RLlib's `clip_gradients` takes for the norm of an infinite gradient.


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


class StackedAdam(Optimizer):
    """N independent `torch.optim.Adam` in one, over stacked parameters.

    Every parameter is stacked, [N, ...]: row i belongs to worker i, and moves as in an optimizer
    of its own, without weight decay and AMSGrad.

    Args:
        params: Stacked parameters [N, ...], or groups of them, all of the same N.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the denominator.

    Attributes:
        rows: The workers that take part in a step; all of them by default. It holds until it is
            set again, because RLlib calls `step` without arguments. The other rows' parameters,
            moments and step counts are not touched.

    Raises:
        ValueError: If the parameters differ in N, or a setting is out of its range.
    """

    rows: Rows = slice(None)

    def __init__(
        self,
        params: Iterable[Any],  # As torch's: tensors, or groups as dicts.
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for name, value, fine in (
            ("lr", lr, lr >= 0),
            ("betas", betas, all(0 <= beta < 1 for beta in betas)),
            ("eps", eps, eps >= 0),
        ):
            if not fine:
                raise ValueError(f"`{name}` of Adam is out of range: found {value}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        lengths = {len(p) if p.ndim else 0 for group in self.param_groups for p in group["params"]}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "stacked parameters should be [N, ...] with the same N >= 1, found first "
                f"dimensions {sorted(lengths)}: stack one tensor per worker"
            )
        self.num_rows: int = lengths.pop()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of Adam for the workers in `rows`; parameters without gradient are left out."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad[self.rows], group)
        return loss

    def _step(self, parameter: Tensor, gradients: Tensor, group: Mapping[str, Any]) -> None:
        state = adam_state(self, parameter)
        state[_STEP][self.rows] += 1
        stacked = parameter, state[_FIRST], state[_SECOND]
        taken = [tensor[self.rows] for tensor in stacked]
        own, first, second = taken
        adam_step(own, first, second, gradients, state[_STEP][self.rows].tolist(), group)
        if isinstance(self.rows, Tensor):  # Then they are copies; of a slice, views.
            for tensor, moved in zip(stacked, taken, strict=True):
                tensor[self.rows] = moved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state that `state_dict` returned.

        Raises:
            ValueError: If it is that of another number of workers.
        """
        found = {len(state[_STEP]) for state in state_dict["state"].values()}
        if found - {self.num_rows}:
            raise ValueError(
                f"the optimizer's state should be that of {self.num_rows} workers, found one of "
                f"{sorted(found)}: restore it into a run with as many workers"
            )
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state[_STEP] = state[_STEP].to(device="cpu", dtype=torch.int64, copy=True)


def adam_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Returns a parameter's state; where there is none, makes it as before the first step."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        # Step counts are on the CPU: nobody waits for them. Those of workers are whole numbers.
        is_stacked = isinstance(optimizer, StackedAdam)
        state[_STEP] = (
            torch.zeros(len(parameter), dtype=torch.int64) if is_stacked else torch.tensor(0.0)
        )
        state[_FIRST] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state[_SECOND] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


class FlatAdam:
    """Parameters, gradients and Adam's moments of a round, each as one matrix [sets, size].

    A step of all parameters is one pass over the matrices; module and optimizer see its result
    when it is stored.

    Args:
        parameters: Name -> parameter: the module's, [...], or stacked, [N, ...].
        optimizer: Their `torch.optim.Adam`, or their `StackedAdam`; see `has_one_step_count`.
        rows: Of stacked parameters, those that move, in their order.

    Attributes:
        parameters: [sets, size].
        gradients: [sets, size], written by whoever computes them.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], optimizer: Optimizer, rows: Rows = slice(None)
    ) -> None:
        self._own = dict(parameters)
        self._optimizer = optimizer
        self.is_stacked = isinstance(optimizer, StackedAdam)
        self._rows = rows
        sets = {name: self._sets(parameter.detach()) for name, parameter in parameters.items()}
        self._shapes = {name: part.shape[1:] for name, part in sets.items()}
        size = sum(shape.numel() for shape in self._shapes.values())
        first = next(iter(sets.values()))
        self._steps = [0] * len(first)
        self.parameters, self.gradients, self._first, self._second = (
            first.new_zeros(len(first), size) for _ in range(4)
        )

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Returns the parts of a matrix by name: [sets, ...], or [...] of the shared set."""
        parts = self._parts(flat)
        return parts if self.is_stacked else {name: part[0] for name, part in parts.items()}

    def _parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Name -> that parameter's columns of a matrix, [sets, ...]."""
        columns = torch.split(flat, [shape.numel() for shape in self._shapes.values()], dim=1)
        return {
            name: part.view(len(flat), *shape)
            for (name, shape), part in zip(self._shapes.items(), columns, strict=True)
        }

    def clip(self, gradients: Tensor, *, clip: float | None, by: ClipBy) -> Tensor:
        """Clips gradients [sets, size] in place; see `clip_rows`."""
        parts = [*self._parts(gradients).values()] if by == "norm" else [gradients]
        return clip_rows(parts, clip=clip, by=by)

    def step(self, gradients: Tensor, group: Mapping[str, Any]) -> None:
        """Moves all sets by their gradients, [sets, size]; see `adam_step`."""
        self._steps = [count + 1 for count in self._steps]
        adam_step(self.parameters, self._first, self._second, gradients, self._steps, group)

    def load(self) -> None:
        """Copies parameters and optimizer state from module and optimizer."""
        parts = [self._parts(flat) for flat in (self.parameters, self._first, self._second)]
        for name, parameter in self._own.items():
            state = self._optimizer.state.get(parameter, {})
            sources = parameter.detach(), state.get(_FIRST), state.get(_SECOND)
            for part, source in zip(parts, sources, strict=True):
                if source is None:
                    part[name].zero_()
                else:
                    part[name].copy_(self._sets(source))
            if _STEP in state:
                self._steps = [int(count) for count in self._sets(state[_STEP]).tolist()]

    def store(self) -> None:
        """Copies them back, if there was a step at all."""
        if not any(self._steps):
            return
        parts = [self._parts(flat) for flat in (self.parameters, self._first, self._second)]
        for name, parameter in self._own.items():
            state = adam_state(self._optimizer, parameter)
            targets = parameter.detach(), state[_FIRST], state[_SECOND]
            for part, target in zip(parts, targets, strict=True):
                self._write(target, part[name])
            self._write(state[_STEP], torch.tensor(self._steps, dtype=state[_STEP].dtype))

    def _sets(self, tensor: Tensor) -> Tensor:
        """[N, ...] or [...] -> [sets, ...]."""
        return tensor[self._rows] if self.is_stacked else tensor.unsqueeze(0)

    def _write(self, target: Tensor, sets: Tensor) -> None:
        if self.is_stacked:
            target[self._rows] = sets
        else:
            target.copy_(sets[0])


def has_one_step_count(parameters: Iterable[Tensor], optimizer: Optimizer) -> bool:
    """Whether all parameters have taken the same steps; a restored state may be otherwise."""
    steps = [optimizer.state.get(parameter, {}).get(_STEP) for parameter in parameters]
    return len({None if step is None else tuple(step.flatten().tolist()) for step in steps}) == 1


def adam_step(
    parameters: Tensor,
    first: Tensor,
    second: Tensor,
    gradients: Tensor,
    counts: Sequence[int],
    group: Mapping[str, Any],  # A parameter group of torch: it holds floats and pairs of them.
) -> None:
    """Moves n parameter sets, in place (Kingma & Ba 2015, arXiv 1412.6980).

    Args:
        parameters: [n, ...].
        first: First moments, [n, ...].
        second: Second moments, [n, ...].
        gradients: [n, ...]. Not modified.
        counts: Of each set, the number of this step, from 1.
        group: Holds lr, betas and eps.
    """
    if not counts:
        return
    beta1, beta2 = group["betas"]
    first.lerp_(gradients, 1 - beta1)
    second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    roots = [math.sqrt(1 - beta2**count) for count in counts]
    sizes = [float(group["lr"]) / (1 - beta1**count) for count in counts]
    if len(set(counts)) == 1:
        denominators = second.sqrt().div_(roots[0]).add_(group["eps"])
        parameters.addcdiv_(first, denominators, value=-sizes[0])
        return

    def column(values: Sequence[float]) -> Tensor:
        return like_rows(torch.tensor(values, dtype=torch.float64).to(first), first)

    denominators = second.sqrt().div_(column(roots)).add_(group["eps"])
    parameters.addcdiv_(first * -column(sizes), denominators)


def clip_rows(parts: Sequence[Tensor], *, clip: float | None, by: ClipBy) -> Tensor:
    """Clips each row's gradient as RLlib's `clip_gradients` clips that of one model, in place.

    Args:
        parts: The gradient of every parameter, [n, ...] each; at least one.
        clip: The limit, > 0; None, 0 or infinity: nothing is clipped.
        by: "value": every entry into [-clip, clip]; "norm": every part of every row to at most
            that L2 norm; "global_norm": every row over all parts.

    Returns:
        The norm of each row over all parts before, [n].

    Raises:
        ValueError: If `by` is none of the three.
    """
    norms = [torch.linalg.vector_norm(flat_rows(part), dim=1) for part in parts]
    total = _over_parts(norms)
    if not clip or math.isinf(clip):
        return total
    if by == "value":
        for part in parts:
            part.clamp_(-clip, clip)
    elif by == "norm":
        for part, norm in zip(parts, map(_bounded, norms), strict=True):
            part.mul_(like_rows(torch.where(norm > clip, clip / norm, 1.0), part))
    elif by == "global_norm":
        bounded = _bounded(_over_parts([_bounded(norm) for norm in norms]))
        factors = (clip / (bounded + 1e-6).clamp_(min=clip)).clamp_(max=1.0)
        for part in parts:
            part.mul_(like_rows(factors, part))
    else:
        raise ValueError(
            f"`grad_clip_by` should be 'value', 'norm' or 'global_norm', found {by!r}: use one"
        )
    return total


def _over_parts(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _bounded(norms: Tensor) -> Tensor:
    """Huge where a norm is infinite, 0 where it is NaN."""
    return norms.nan_to_num(neginf=-_HUGE, posinf=_HUGE)


def flat_rows(rows: Tensor) -> Tensor:
    """[n, ...] -> [n, size]; n may be 0."""
    return rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)


def like_rows(factors: Tensor, rows: Tensor) -> Tensor:
    """[n] factors in the shape that multiplies the rows of [n, ...]."""
    return factors.reshape(-1, *[1] * (rows.ndim - 1))
