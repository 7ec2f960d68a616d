"""Adam for N workers at once: one step over stacked parameters, with a step count per worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FIRST, _SECOND, _STEP = "exp_avg", "exp_avg_sq", "step"  # As in `torch.optim.Adam`.


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
