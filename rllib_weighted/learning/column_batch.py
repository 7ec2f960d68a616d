"""A round's batch straight from columns: no episode objects, one pass over all values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from rllib_weighted.columns import RolloutColumns
from rllib_weighted.learning.advantages import chunk_advantages
from rllib_weighted.learning.round_batch import WORKER_COLUMN, RoundBatch

_Values = Callable[[dict[str, Any]], Tensor]


def column_batch(
    columns: RolloutColumns,
    compute_values: _Values,
    *,
    gamma: float,
    lambda_: float,
    reward_scale: float = 1.0,
    device: Any = None,
) -> RoundBatch:
    """Builds the batch that RLlib's learner connectors would, row for row and bit for bit.

    Args:
        columns: The rollouts of some workers, in any order.
        compute_values: Observations (and the worker column) of [rows, …] -> value predictions.
        gamma: Discount factor.
        lambda_: GAE's decay.
        reward_scale: What rewards are multiplied by; see `ScaleRewards`.
        device: Where the learner computes.
    """
    columns = columns.by_worker()
    chunks = columns.chunks
    tensors = {name: convert_to_torch_tensor(v, device=device) for name, v in columns.steps.items()}
    scaled = columns.steps[Columns.REWARDS] * reward_scale
    tensors[Columns.REWARDS] = convert_to_torch_tensor(scaled, device=device)
    obs = convert_to_torch_tensor(columns.obs, device=device)
    owner = torch.from_numpy(np.repeat(chunks["worker"], chunks["length"] + 1)).to(obs.device)
    with torch.no_grad():
        predicted = compute_values({Columns.OBS: obs, WORKER_COLUMN: owner})
    values = predicted.cpu().numpy()
    advantages = chunk_advantages(
        tensors[Columns.REWARDS].cpu().numpy(),
        values,
        chunks["length"],
        terminated=chunks["terminated"],
        gamma=gamma,
        lambda_=lambda_,
    )
    # In `obs` a chunk has one row more than in `steps`.
    chunk_of = np.repeat(np.arange(len(chunks)), chunks["length"])
    now = np.arange(len(chunk_of)) + chunk_of
    tensors[Columns.OBS] = obs[torch.from_numpy(now).to(obs.device)]
    targets = (advantages + values[now]).astype(np.float32)
    tensors[Postprocessing.ADVANTAGES] = torch.from_numpy(advantages).to(obs.device)
    tensors[Postprocessing.VALUE_TARGETS] = torch.from_numpy(targets).to(obs.device)
    owners = chunks["worker"][chunk_of]
    workers, starts = np.unique(owners, return_index=True)
    ends = [*starts[1:], len(owners)]
    rows = {
        int(worker): np.arange(start, end)
        for worker, start, end in zip(workers, starts, ends, strict=True)
    }
    return RoundBatch(tensors, rows, is_sequences=False)
