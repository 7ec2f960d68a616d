"""Parameters, gradients and Adam's moments of a round, each as one flat matrix [sets, size].

One set for all workers, or one per worker. A round starts with a copy of what RLlib's module and
optimizer hold, and ends with a copy back: in between, a step is a handful of operations, however
many parameters there are, and an exception leaves the state before the round in place.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
