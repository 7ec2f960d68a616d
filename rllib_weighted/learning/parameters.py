"""A parameter set and an optimizer state per worker, as stacks, in a learner."""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rllib_weighted.core.modules import swapped_parameters, why_not_per_worker
from rllib_weighted.learning.batch import WORKER_COLUMN, take_rows
from rllib_weighted.learning.collectives import Collectives

ActorExport = Literal["best", "mean"]


class PerWorkerParameters:
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
        if reason := why_not_per_worker(module):
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

    def share(self, exchange: Collectives) -> None:
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


# Parameters, gradients and Adam's moments of a round, each as one flat matrix [sets, size]


_FIRST, _SECOND, _STEP = "exp_avg", "exp_avg_sq", "step"  # As in `torch.optim.Adam`.


class FlatAdam(abc.ABC):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980), in the order of operations of `torch.optim.Adam`.

    Args:
        shapes: Name -> shape of that parameter of one set.
        num_sets: Number of parameter sets.
        like: A tensor of the dtype and device of all of them.

    Attributes:
        parameters: [sets, size].
        gradients: [sets, size], written by whoever computes them.
        slices: Name -> the columns of that parameter.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], *, num_sets: int, like: Tensor) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.slices: dict[str, slice] = {}
        size = 0
        for name, shape in self._shapes.items():
            self.slices[name] = slice(size, size + math.prod(shape))
            size += math.prod(shape)
        self.parameters, self.gradients, self._first, self._second = (
            like.new_zeros(num_sets, size) for _ in range(4)
        )
        self._steps = [0] * num_sets

    def views(self, flat: Tensor, *, stacked: bool) -> dict[str, Tensor]:
        """Returns the parts of a flat matrix by name: [sets, ...], or [...] of the only set."""
        parts = {}
        for name, columns in self.slices.items():
            part = flat[:, columns].unflatten(1, self._shapes[name])
            parts[name] = part if stacked else part[0]
        return parts

    def clip(self, gradients: Tensor, *, clip: float | None, by: str) -> Tensor:
        """Clips every set's gradient as RLlib's `clip_gradients` does, in place.

        Args:
            gradients: [sets, size], finite.
            clip: The limit, > 0; None, 0 or infinity: nothing is clipped.
            by: "value", "norm" (of every parameter) or "global_norm" (of all).

        Returns:
            The norm of each set's gradient before, [sets].
        """
        norms = torch.linalg.vector_norm(gradients, dim=1)
        if not clip or math.isinf(clip):
            return norms
        if by == "value":
            gradients.clamp_(-clip, clip)
        elif by == "norm":
            for columns in self.slices.values():
                part = gradients[:, columns]
                norm = torch.linalg.vector_norm(part, dim=1, keepdim=True)
                part.mul_(torch.where(norm > clip, clip / norm, 1.0))
        else:
            factor = clip / (norms + 1e-6).clamp_(min=clip)
            gradients.mul_(factor.clamp_(max=1.0).unsqueeze(1))
        return norms

    def step(self, gradients: Tensor, group: Mapping[str, Any]) -> None:
        """Moves all sets by their gradients, [sets, size].

        Args:
            gradients: Not modified.
            group: The optimizer's parameter group: lr, betas, eps.
        """
        if not self._steps:
            return
        self._steps = [count + 1 for count in self._steps]
        beta1, beta2 = group["betas"]
        self._first.lerp_(gradients, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        denominator = self._second.sqrt()
        if len(set(self._steps)) == 1:
            count = self._steps[0]
            denominator.div_(math.sqrt(1 - beta2**count)).add_(group["eps"])
            step_size = float(group["lr"]) / (1 - beta1**count)
            self.parameters.addcdiv_(self._first, denominator, value=-step_size)
            return
        counts = torch.tensor(self._steps, dtype=torch.float64).unsqueeze(1)
        roots = (1 - beta2**counts).sqrt_().to(denominator)
        step_sizes = (float(group["lr"]) / (1 - beta1**counts)).to(denominator)
        denominator.div_(roots).add_(group["eps"])
        self.parameters.addcdiv_(self._first * -step_sizes, denominator)

    @abc.abstractmethod
    def load(self) -> None:
        """Copies parameters and optimizer state from RLlib's objects."""

    @abc.abstractmethod
    def store(self) -> None:
        """Copies them back."""


def step_counts(parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> set[int]:
    """Returns how many steps parameters have taken: one number, if all were in all of them."""
    return {int(optimizer.state.get(parameter, {}).get(_STEP, 0)) for parameter in parameters}


class SharedAdam(FlatAdam):
    """One set: a module's parameters and its `torch.optim.Adam`, which have one step count.

    Args:
        parameters: Name -> the module's parameter.
        optimizer: The optimizer of all of them.
    """

    def __init__(self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Adam) -> None:
        self._own = dict(parameters)
        self._optimizer = optimizer
        shapes = {name: p.shape for name, p in self._own.items()}
        super().__init__(shapes, num_sets=1, like=next(iter(self._own.values())).detach())

    def load(self) -> None:
        """See `FlatAdam.load`."""
        views = [self.views(flat, stacked=False) for flat in self._matrices]
        for name, parameter in self._own.items():
            state = self._optimizer.state.get(parameter, {})
            sources = parameter.detach(), state.get(_FIRST), state.get(_SECOND)
            for view, source in zip(views, sources, strict=True):
                view[name].copy_(torch.zeros_like(parameter) if source is None else source)
        (count,) = step_counts(self._own.values(), self._optimizer)
        self._steps = [count]

    def store(self) -> None:
        """See `FlatAdam.store`."""
        values, firsts, seconds = (self.views(flat, stacked=False) for flat in self._matrices)
        for name, parameter in self._own.items():
            parameter.data.copy_(values[name])
            if self._steps[0]:
                self._optimizer.state[parameter] = {
                    _STEP: torch.tensor(float(self._steps[0])),
                    _FIRST: firsts[name].clone(),
                    _SECOND: seconds[name].clone(),
                }

    @property
    def _matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.parameters, self._first, self._second


class RowsAdam(FlatAdam):
    """One set per worker: some rows of stacked parameters and of their `StackedAdam`.

    Args:
        stacks: Name -> all workers' parameters, [N, ...].
        optimizer: Their optimizer.
        rows: The rows of the workers here, in their order.
    """

    def __init__(self, stacks: Mapping[str, Tensor], optimizer: Any, rows: slice | Tensor) -> None:
        self._stacks = dict(stacks)
        self._optimizer = optimizer
        self._rows = rows
        first = next(iter(self._stacks.values())).detach()
        shapes = {name: stack.shape[1:] for name, stack in self._stacks.items()}
        super().__init__(shapes, num_sets=len(first[rows]), like=first)

    def load(self) -> None:
        """See `FlatAdam.load`."""
        self._optimizer.prepare()
        for name, columns in self.slices.items():
            stack = self._stacks[name]
            state = self._optimizer.state[stack]
            for flat, source in self._pairs(stack, state):
                flat[:, columns] = source[self._rows].flatten(1)
            self._steps = state[_STEP][self._rows].tolist()

    def store(self) -> None:
        """See `FlatAdam.store`."""
        steps = torch.tensor(self._steps, dtype=torch.int64)
        for name, columns in self.slices.items():
            stack = self._stacks[name]
            state = self._optimizer.state[stack]
            for flat, target in self._pairs(stack, state):
                target[self._rows] = flat[:, columns].unflatten(1, self._shapes[name])
            state[_STEP][self._rows] = steps

    def _pairs(self, stack: Tensor, state: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [
            (self.parameters, stack.detach()),
            (self._first, state[_FIRST]),
            (self._second, state[_SECOND]),
        ]


# Actor-avg and Actor-sum: one parameter set per worker, pure tensors


Stacks: TypeAlias = dict[str, Tensor]
ClipBy: TypeAlias = Literal["value", "norm", "global_norm"]

_HUGE = 10e8  # What RLlib's `clip_gradients` takes for the norm of an infinite gradient.


def actor_gradients(own: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> Stacks:
    """g_i' = g_i + merged, for every worker i (arXiv 2304.12778).

    Args:
        own: name -> [n, ...], each worker's own gradient.
        merged: name -> [...], the merged gradient of all workers, as `weighted_rows` returns it.

    Returns:
        name -> [n, ...].
    """
    return {name: rows + merged[name] for name, rows in own.items()}


def weighted_rows(own: Mapping[str, Tensor], weights: Tensor) -> Stacks:
    """sum_j w_j g_j over the workers with w_j != 0, which alone are read.

    Args:
        own: name -> [n, ...], each worker's own gradient; may be NaN where the weight is 0.
        weights: [n], cast to the gradients' dtype and device.

    Returns:
        name -> [...]; zeros if all weights are 0.
    """
    kept = weights.nonzero().squeeze(1)
    all_kept = len(kept) == len(weights)
    return {
        name: torch.tensordot(weights[kept].to(rows), _taken(rows, kept, all_kept), dims=1)
        for name, rows in own.items()
    }


def _taken(rows: Tensor, kept: Tensor, all_kept: bool) -> Tensor:
    return rows if all_kept else rows[kept.to(rows.device)]


def finite_rows(own: Mapping[str, Tensor]) -> Tensor:
    """Which workers' gradients have only finite entries.

    Args:
        own: name -> [n, ...], at least one.

    Returns:
        [n] bool.
    """
    largest = [
        torch.linalg.vector_norm(_flat(rows), ord=torch.inf, dim=1)  # NaN if an entry is.
        for rows in own.values()
    ]
    return torch.isfinite(torch.stack(largest)).all(dim=0)


def _flat(rows: Tensor) -> Tensor:
    """[n, ...] -> [n, size]."""
    return rows.reshape(len(rows), -1)


def _like(factors: Tensor, rows: Tensor) -> Tensor:
    """[n] factors in the shape that multiplies the rows of [n, ...]."""
    return factors.reshape(-1, *[1] * (rows.ndim - 1))


def clip_rows(gradients: Mapping[str, Tensor], *, clip: float | None, by: ClipBy) -> Stacks:
    """Clips each worker's gradient as RLlib's `clip_gradients` clips that of one model.

    Args:
        gradients: name -> [n, ...]. Not modified.
        clip: > 0, in the unit of the gradient; None: nothing is clipped.
        by: "value": every entry into [-clip, clip]; "norm": every tensor of every worker to at
            most that L2 norm; "global_norm": every worker's gradient over all tensors.

    Returns:
        name -> [n, ...].

    Raises:
        ValueError: if `by` is none of the three.
    """
    if clip is None:
        return dict(gradients)
    if by == "value":
        return {name: rows.clamp(-clip, clip) for name, rows in gradients.items()}
    norms = {name: _row_norms(rows) for name, rows in gradients.items()}
    if by == "norm":
        factors = {name: _factor(norm, clip) for name, norm in norms.items()}
        return {name: rows * _like(factors[name], rows) for name, rows in gradients.items()}
    if by != "global_norm":
        raise ValueError(
            f"`grad_clip_by` should be 'value', 'norm' or 'global_norm', found {by!r}: use one"
        )
    if not norms:
        return {}
    total = torch.linalg.vector_norm(torch.stack(list(norms.values())), dim=0)
    total = total.nan_to_num_(neginf=-_HUGE, posinf=_HUGE)
    coefficients = (clip / (total + 1e-6).clamp_(min=clip)).clamp_(max=1.0)
    return {name: rows * _like(coefficients, rows) for name, rows in gradients.items()}


def _row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row, [n]; huge where it is infinite, 0 where it is NaN."""
    norms = torch.linalg.vector_norm(_flat(rows), dim=1)
    return norms.nan_to_num_(neginf=-_HUGE, posinf=_HUGE)


def _factor(norms: Tensor, clip: float) -> Tensor:
    return torch.where(norms > clip, clip / norms, 1.0)


def parameter_mean(stacks: Mapping[str, Tensor]) -> Stacks:
    """The mean of the workers' parameters, taken in float64: identical workers give just theirs.

    Args:
        stacks: name -> [N, ...].

    Returns:
        name -> [...], in the dtype of the stack, detached.
    """
    return {
        name: stack.detach().mean(dim=0, dtype=torch.float64).to(stack.dtype)
        for name, stack in stacks.items()
    }


def drift(stacks: Mapping[str, Tensor]) -> Tensor:
    """How far each worker is from the mean of all: ‖θ_i - θ̄‖ / ‖θ̄‖, over all parameters.

    Args:
        stacks: name -> [N, ...], at least one.

    Returns:
        [N] float64, >= 0; 0 for a worker that is where the mean is.
    """
    squares, mean_square = [], []
    for stack in stacks.values():
        rows = _flat(stack.detach()).to(torch.float64)
        mean = rows.mean(dim=0)
        squares.append((rows - mean).square_().sum(dim=1))
        mean_square.append(mean.square_().sum())
    distances = torch.stack(squares).sum(dim=0).sqrt_()
    norm = torch.stack(mean_square).sum().sqrt_()
    return torch.where(distances == 0, 0.0, distances / norm)


# Adam for N workers at once: one step over stacked parameters, with a step count per worker


class StackedAdam(Optimizer):
    """N independent `torch.optim.Adam` in one (Kingma & Ba 2015, arXiv 1412.6980).

    Every parameter is a stack [N, ...]: row i belongs to worker i, and moves as in an optimizer of
    its own. Formula, defaults and order of operations are those of `torch.optim.Adam` without
    weight decay and AMSGrad.

    Args:
        params: Stacked parameters [N, ...], or groups of them, all of the same N.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the denominator.

    Attributes:
        rows: The workers that take part in a step: int64 indices without repeats, a bool mask
            [N], or a slice; all of them by default. It holds until it is set again. The other
            rows' parameters, moments and step counts are not touched: in such a step their
            optimizers were never there.

    Raises:
        ValueError: if the parameters differ in N, or a setting is out of its range.
    """

    rows: Tensor | slice = slice(None)

    def __init__(
        self,
        params: Iterable[Any],
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
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self._state_of(param) for param in params]
        stacks = [params, *([state[key] for state in states] for key in (_FIRST, _SECOND))]
        gradients: list[Any] = [param.grad for param in params]
        taken = stacks
        index = None
        if not _is_everything(self.rows):
            index = self._index().to(params[0].device)
            taken = [[stack[index] for stack in column] for column in stacks]
            gradients = [gradient[index] for gradient in gradients]
        steps = self._count([state[_STEP] for state in states])
        _adam(taken, gradients, steps, group)
        if index is not None:
            for column, rows in zip(stacks, taken, strict=True):
                for stack, moved in zip(column, rows, strict=True):
                    stack[index] = moved

    def _index(self) -> Tensor:
        if isinstance(self.rows, slice):
            return torch.arange(self.num_rows)[self.rows]
        return self.rows.nonzero().squeeze(1) if self.rows.dtype == torch.bool else self.rows

    def _count(self, steps: list[Tensor]) -> Tensor:
        """Counts a step of the rows that take part; returns their numbers, [parameters, n]."""
        if _is_everything(self.rows):
            torch._foreach_add_(steps, 1)
            return torch.stack(steps)
        index = self._index().cpu()
        for step in steps:
            step[index] += 1
        return torch.stack(steps)[:, index]

    def prepare(self) -> None:
        """Makes the state of every parameter, as before its first step, where there is none."""
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            # Whole numbers, on the CPU: exact after any number of steps, and never waited for.
            state[_STEP] = torch.zeros(len(param), dtype=torch.int64)
            state[_FIRST] = torch.zeros_like(param)
            state[_SECOND] = torch.zeros_like(param)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state that `state_dict` returned.

        Raises:
            ValueError: if it is that of another number of workers.
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


def _is_everything(rows: Tensor | slice) -> bool:
    return isinstance(rows, slice) and rows == slice(None)


def _adam(
    stacks: list[list[Tensor]],
    gradients: list[Tensor],
    steps: Tensor,
    group: dict[str, Any],
) -> None:
    """Moves parameters and moments in place.

    Args:
        stacks: Parameters, first moments and second moments: a list of [n, ...] each.
        gradients: A list of [n, ...]. Not modified.
        steps: [parameters, n] int64, the number of this step.
        group: Holds lr, betas and eps.
    """
    params, firsts, seconds = stacks
    beta1, beta2 = group["betas"]
    # Bias corrections in float64, as `torch.optim.Adam` computes them for its one step count.
    count = steps.to(torch.float64)
    step_sizes = -group["lr"] / (1 - beta1**count)
    roots = (1 - beta2**count).sqrt_()
    torch._foreach_lerp_(firsts, gradients, 1 - beta1)
    torch._foreach_mul_(seconds, beta2)
    torch._foreach_addcmul_(seconds, gradients, gradients, value=1 - beta2)
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_div_(denominators, _per_row(roots, params))
    torch._foreach_add_(denominators, group["eps"])
    scaled = torch._foreach_mul(firsts, _per_row(step_sizes, params))
    torch._foreach_addcdiv_(params, scaled, denominators)


def _per_row(values: Tensor, params: list[Tensor]) -> list[Tensor]:
    """[parameters, n] -> for each parameter [n, 1, ...] in its dtype and on its device."""
    cast = values.to(params[0])
    return [
        row.to(param).view(-1, *[1] * (param.ndim - 1))
        for row, param in zip(cast.unbind(), params, strict=True)
    ]
