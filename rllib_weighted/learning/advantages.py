"""Generalized advantage estimation and the standardisation of advantages."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

AdvantageNormalization = Literal["worker", "batch", "none"]
MIN_STD = 1e-4  # As in stock RLlib's standardisation.


def chunk_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    *,
    terminated: np.ndarray,
    gamma: float,
    lambda_: float,
) -> np.ndarray:
    """Returns the GAE advantages of C chunks, all at once (Schulman et al. 2016, eq. 16).

    A number that is not finite stays within its chunk.

    Args:
        rewards: [steps], chunk after chunk.
        values: [steps + C]: value predictions, of each chunk one more than it has steps.
        lengths: [C], steps of each chunk, >= 1.
        terminated: [C]: whether the last step ended the episode: then nothing is bootstrapped.
        gamma: Discount factor.
        lambda_: GAE's decay.

    Returns:
        [steps], float32, computed in float64.
    """
    if not len(lengths):
        return np.zeros(0, np.float32)
    chunk_of = np.repeat(np.arange(len(lengths)), lengths)
    now = np.arange(len(chunk_of)) + chunk_of
    values = values.astype(np.float64)
    following = values[now + 1]
    following[(np.cumsum(lengths) - 1)[terminated]] = 0.0
    decay = gamma * lambda_
    # Time runs down the table, a column per chunk; past a chunk's end stand zeros.
    is_step = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(is_step.shape[::-1])
    with np.errstate(over="ignore", invalid="ignore"):  # Such a worker is dropped.
        table.T[is_step] = rewards + gamma * following - values[now]
        # A_t = delta_t + gamma lambda A_{t+1}.
        for time in range(len(table) - 2, -1, -1):
            table[time] += decay * table[time + 1]
        return table.T[is_step].astype(np.float32)


def moments(
    values: torch.Tensor, owner: torch.Tensor | None = None, *, num_groups: int = 1
) -> torch.Tensor:
    """Returns number, mean and sum of squared deviations of the values of each group.

    A group's numbers depend on its own values and their order only, to the last bit.

    Args:
        values: [rows].
        owner: [rows] int64, the group of each value; None: all are of one group.
        num_groups: Number of groups; some may be empty, and have zeros.

    Returns:
        [num_groups, 3] float64.
    """
    values = values.double()
    if owner is None:
        owner = torch.zeros(len(values), dtype=torch.int64, device=values.device)

    def sums(of: torch.Tensor) -> torch.Tensor:
        return of.new_zeros(num_groups).index_add_(0, owner, of)

    count = sums(torch.ones_like(values))
    mean = sums(values) / count.clamp_min(1)
    squares = sums((values - mean[owner]).square_())
    return torch.stack([count, mean, squares], dim=1)


def pooled(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance (population) of the union of some groups (Chan et al. 1979).

    The order of the rows alone decides the rounding, not who computed them.

    Args:
        parts: [N, 3], the `moments` of each group; those of empty groups are 0.
    """
    count, mean, squares = parts.unbind(1)
    total = count.sum().clamp_min(1)
    overall = (count * mean).sum() / total
    return overall, (squares.sum() + (count * (mean - overall).square()).sum()) / total


def standardize(
    advantages: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """Returns advantages with mean 0 and standard deviation 1 (population), in their own dtype.

    Args:
        advantages: [rows] or [sequences, time].
        mean: What to subtract, in a shape that fits.
        variance: Its square root is divided by, `MIN_STD` at least.
    """
    std = variance.sqrt().clamp_min(MIN_STD)
    return ((advantages.double() - mean) / std).to(advantages.dtype)
