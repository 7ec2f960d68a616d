"""A round's batch straight from columns: what the learner connectors do, without episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.common import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.connectors.learner import (
    AddColumnsFromEpisodesToTrainBatch,
    AddOneTsToEpisodesAndTruncate,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from rllib_weighted.columns import RolloutColumns
from rllib_weighted.learning.advantages import EpisodeAdvantages
from rllib_weighted.learning.connectors import ScaleRewards
from rllib_weighted.learning.overrides import definer
from rllib_weighted.learning.round_batch import WORKER_COLUMN, RoundBatch

_OWN_PACKAGES = ("ray.rllib.", "rllib_weighted.")
# What the pipeline of a single-agent PPO is made of (tested with Ray 2.60), apart from
# `ScaleRewards`: what `column_batch` stands in for.
_FIRST = (AddOneTsToEpisodesAndTruncate,)
_LAST = (
    AddObservationsFromEpisodesToBatch,
    AddColumnsFromEpisodesToTrainBatch,
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    BatchIndividualItems,
    NumpyToTensor,
    EpisodeAdvantages,
)


def why_not_columns(learner: Any) -> str | None:
    """Returns what in a built learner needs episodes; None if columns will do."""
    if not learner.config.fast_sampling:
        return "`fast_sampling`=False"
    if len(learner.module.keys()) != 1:
        return "several modules"
    (module_id,) = learner.module.keys()
    module = learner.module[module_id].unwrapped()
    if module.is_stateful() or not isinstance(module, ValueFunctionAPI):
        return "the module is a recurrent one, or has no value function"
    owner = definer(type(learner), "update")
    if owner is not Learner and not owner.__module__.startswith(_OWN_PACKAGES):
        return f"{owner.__name__} overrides `update`"
    pieces = list(learner._learner_connector.connectors)
    ends = pieces[: len(_FIRST)], pieces[len(pieces) - len(_LAST) :]
    customs = pieces[len(_FIRST) : len(pieces) - len(_LAST)]
    are_known = [tuple(map(type, end)) for end in ends] == [_FIRST, _LAST]
    if not are_known or any(type(piece) is not ScaleRewards for piece in customs):
        return "custom learner connectors"
    return None


def column_batch(learner: Any, columns: RolloutColumns) -> tuple[str, RoundBatch]:
    """Returns the module's id and the same batch as the learner connectors make of episodes.

    One forward pass predicts the values of all observations, the bootstrap ones included.

    Args:
        learner: A learner for which `why_not_columns` is None.
        columns: The learner's workers' steps, worker after worker; one or more.
    """
    (module_id,) = learner.module.keys()
    lengths = columns.chunks["length"]
    names = {*columns.steps} - {Columns.REWARDS}
    batch: dict[str, Any] = convert_to_torch_tensor(
        {
            Columns.OBS: columns.obs,
            WORKER_COLUMN: np.repeat(columns.chunks["worker"], lengths + 1),
            **{name: columns.steps[name] for name in names},
            Columns.REWARDS: _rewards(learner, columns),
        },
        device=learner.device,
    )
    values = _values(learner, module_id, batch)
    predictions = np.asarray(convert_to_numpy(values))
    # An observation's row in `obs`: one more per chunk before it than in `steps`.
    rows = np.arange(len(predictions) - len(lengths)) + np.repeat(np.arange(len(lengths)), lengths)
    ends = np.zeros(len(rows), np.bool_)
    ends[np.cumsum(lengths) - 1] = True
    terminated = np.zeros(len(rows), np.bool_)
    terminated[ends] = columns.chunks["terminated"]
    advantages = chunk_advantages(
        np.asarray(convert_to_numpy(batch[Columns.REWARDS])),
        predictions[rows],
        predictions[rows + 1],
        ends=ends,
        terminated=terminated,
        gamma=learner.config.gamma,
        lambda_=learner.config.lambda_,
    ).astype(np.float32)
    del batch[WORKER_COLUMN]
    index = torch.from_numpy(rows).to(batch[Columns.OBS].device)
    batch[Columns.OBS] = batch[Columns.OBS][index]
    targets = (advantages + predictions[rows]).astype(np.float32)
    batch[Postprocessing.ADVANTAGES] = torch.from_numpy(advantages).to(values.device)
    batch[Postprocessing.VALUE_TARGETS] = torch.from_numpy(targets).to(values.device)
    if not learner.has_stock_loss(module_id):
        truncated = ends & ~terminated  # A chunk that goes on counts as truncated in RLlib's batch.
        flags = {Columns.TERMINATEDS: terminated, Columns.TRUNCATEDS: truncated}
        batch |= convert_to_torch_tensor(flags, device=learner.device)
    return module_id, RoundBatch(batch, _rows(columns), False)


def _rewards(learner: Any, columns: RolloutColumns) -> np.ndarray:
    """Returns the rewards as the learner sees them; of several scales, the last one counts."""
    rewards = columns.steps[Columns.REWARDS]
    scales = [
        piece.scale
        for piece in learner._learner_connector.connectors
        if isinstance(piece, ScaleRewards)
    ]
    return rewards * scales[0] if scales else rewards


def _values(learner: Any, module_id: str, batch: dict[str, Any]) -> Tensor:
    module = learner.module[module_id].unwrapped()
    seen = {name: batch[name] for name in (Columns.OBS, WORKER_COLUMN)}
    with torch.no_grad():
        values: Tensor = (
            learner.actors.compute_values(module, seen)
            if learner.actors is not None
            else module.compute_values(seen)
        )
    return values


def _rows(columns: RolloutColumns) -> dict[int, np.ndarray]:
    owner = np.repeat(columns.chunks["worker"], columns.chunks["length"])
    workers, starts = np.unique(owner, return_index=True)
    stops = [*starts[1:].tolist(), len(owner)]
    return {
        int(worker): np.arange(start, stop)
        for worker, start, stop in zip(workers, starts.tolist(), stops, strict=True)
    }


def chunk_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    *,
    ends: np.ndarray,
    terminated: np.ndarray,
    gamma: float,
    lambda_: float,
) -> np.ndarray:
    """Returns the GAE advantages of many chunks at once; see `episode_advantages` for one.

    ``A_t = delta_t + c_t A_{t+1}``, with ``c_t`` = γλ inside a chunk and 0 at its end, is a linear
    recurrence: after k doublings each entry holds the sum over its next 2^k steps (Hillis and
    Steele 1986).

    Args:
        rewards: [steps], chunk after chunk.
        values: [steps]: predictions for the observation of each step.
        next_values: [steps]: those for the observation after it.
        ends: [steps]: whether the step is the last one of its chunk.
        terminated: [steps]: whether nothing comes after it.
        gamma: Discount factor.
        lambda_: GAE's decay.

    Returns:
        [steps], float64. A chunk with NaN or infinite numbers spoils no other.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # Such a worker is dropped.
        following = np.where(terminated, 0.0, next_values.astype(np.float64))
        sums = rewards + gamma * following - values.astype(np.float64)
        factors = np.where(ends, 0.0, gamma * lambda_)
        reach = 1
        while reach < len(sums) and factors.any():
            own = factors[:-reach]
            # Not multiplied by 0: what lies beyond a chunk's end may be NaN.
            further = np.where(own != 0, own * sums[reach:], 0.0)
            sums[:-reach] += further
            factors[:-reach] = own * factors[reach:]
            factors[-reach:] = 0.0
            reach *= 2
    return sums
