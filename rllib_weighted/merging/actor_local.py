"""Actor-avg and Actor-sum: one parameter set per worker, pure tensors.

Worker i has its own parameters θ_i, all of them identical at the start, and steps with

    g_i' = g_i + sum_j w_j g_j,    g_i: gradient of worker i at θ_i on data sampled with θ_i,

w_j = 1/N (Actor-avg) or 1 (Actor-sum); the idea is that of arXiv 2304.12778. The workers' tensors
are stacked by parameter name: `{name: [N, ...]}`, row i is worker i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

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
