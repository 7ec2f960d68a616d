"""Adam for one parameter set or for one per worker, and the clipping before it; all in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

Rows: TypeAlias = slice | Tensor  # int64 indices without repeats, or a bool mask.
ClipBy: TypeAlias = Literal["value", "norm", "global_norm"]

_FIRST, _SECOND, _STEP = "exp_avg", "exp_avg_sq", "step"  # As in `torch.optim.Adam`.
_HUGE = 10e8  # What RLlib's `clip_gradients` takes for the norm of an infinite gradient.


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
        counts: Steps that each set has taken.
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
        self.counts = [0] * len(first)
        self.parameters, self.gradients, self._first, self._second = (
            first.new_zeros(len(first), size) for _ in range(4)
        )

    def is_of(self, parameters: Mapping[str, Tensor], optimizer: Optimizer, rows: Rows) -> bool:
        """Whether these are the arguments that it was made of: the same objects, of one type."""
        if isinstance(rows, Tensor) and isinstance(self._rows, Tensor):
            same_rows = torch.equal(rows, self._rows)
        else:
            same_rows = type(rows) is type(self._rows) and rows == self._rows
        return (
            same_rows
            and self._optimizer is optimizer
            and self._own.keys() == parameters.keys()
            and all(
                parameter is self._own[name] and parameter.dtype == self.parameters.dtype
                for name, parameter in parameters.items()
            )
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
        self.counts = [count + 1 for count in self.counts]
        adam_step(self.parameters, self._first, self._second, gradients, self.counts, group)

    def step_if(
        self, go: Tensor, gradients: Tensor, group: Mapping[str, Any], lr: Tensor, counts: Tensor
    ) -> None:
        """As `step`, but nobody waits for the numbers that decide: they stay on the device.

        Args:
            go: [] bool: whether anything moves.
            gradients: [sets, size].
            group: Holds betas and eps.
            lr: [] learning rate.
            counts: [sets] float64, steps before this one. It does not change `counts` of this
                object: whoever steps this way sets them when the round is over.
        """
        state = self.parameters, self._first, self._second
        before = [tensor.clone() for tensor in state]
        adam_step(*state, gradients, counts + 1, group, lr)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(torch.where(go, tensor, old))

    def load(self) -> None:
        """Copies parameters and optimizer state from module and optimizer."""
        self.counts = [0] * len(self.counts)
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
                self.counts = [int(count) for count in self._sets(state[_STEP]).tolist()]

    def store(self) -> None:
        """Copies them back, if there was a step at all."""
        if not any(self.counts):
            return
        parts = [self._parts(flat) for flat in (self.parameters, self._first, self._second)]
        for name, parameter in self._own.items():
            state = adam_state(self._optimizer, parameter)
            targets = parameter.detach(), state[_FIRST], state[_SECOND]
            for part, target in zip(parts, targets, strict=True):
                self._write(target, part[name])
            self._write(state[_STEP], torch.tensor(self.counts, dtype=state[_STEP].dtype))

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
    counts: Sequence[int] | Tensor,
    group: Mapping[str, Any],  # A parameter group of torch: it holds floats and pairs of them.
    lr: Tensor | None = None,
) -> None:
    """Moves n parameter sets, in place (Kingma & Ba 2015, arXiv 1412.6980).

    Args:
        parameters: [n, ...].
        first: First moments, [n, ...].
        second: Second moments, [n, ...].
        gradients: [n, ...]. Not modified.
        counts: Of each set, the number of this step, from 1; [n] float64 if it is a tensor.
        group: Holds lr, betas and eps.
        lr: Learning rate, []; None: the group's.
    """
    if not len(counts):
        return
    beta1, beta2 = group["betas"]
    first.lerp_(gradients, 1 - beta1)
    second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    rate = float(group["lr"]) if lr is None else lr
    if isinstance(counts, Tensor):
        roots, sizes = (1 - beta2**counts).sqrt(), rate / (1 - beta1**counts)
    else:
        all_roots = [math.sqrt(1 - beta2**count) for count in counts]
        all_sizes = [rate / (1 - beta1**count) for count in counts]
        if len(set(counts)) == 1:
            denominators = second.sqrt().div_(all_roots[0]).add_(group["eps"])
            parameters.addcdiv_(first, denominators, value=-all_sizes[0])
            return
        roots, sizes = (torch.tensor(v, dtype=torch.float64) for v in (all_roots, all_sizes))
    denominators = second.sqrt().div_(like_rows(roots.to(first), second)).add_(group["eps"])
    parameters.addcdiv_(first * -like_rows(sizes.to(first), first), denominators)


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
