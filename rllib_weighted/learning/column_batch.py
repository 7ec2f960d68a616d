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
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from rllib_weighted.columns import RolloutColumns
from rllib_weighted.learning.advantages import EpisodeAdvantages, chunk_advantages
from rllib_weighted.learning.connectors import ScaleRewards
from rllib_weighted.learning.overrides import overrider
from rllib_weighted.learning.round_batch import WORKER_COLUMN, RoundBatch

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
    if user := overrider(type(learner), "update"):
        return f"{user} overrides `update`"
    pieces = list(learner._learner_connector.connectors)
    ends = pieces[: len(_FIRST)], pieces[len(pieces) - len(_LAST) :]
    customs = pieces[len(_FIRST) : len(pieces) - len(_LAST)]
    are_known = [tuple(map(type, end)) for end in ends] == [_FIRST, _LAST]
    are_known &= len(customs) <= 1 and all(type(piece) is ScaleRewards for piece in customs)
    if not are_known:
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
    advantages = chunk_advantages(
        np.asarray(convert_to_numpy(batch[Columns.REWARDS])),
        predictions,
        lengths,
        terminated=columns.chunks["terminated"],
        gamma=learner.config.gamma,
        lambda_=learner.config.lambda_,
    )
    # An observation's row in `obs`: one more per chunk before it than in `steps`.
    rows = np.arange(len(advantages)) + np.repeat(np.arange(len(lengths)), lengths)
    del batch[WORKER_COLUMN]
    index = torch.from_numpy(rows).to(batch[Columns.OBS].device)
    batch[Columns.OBS] = batch[Columns.OBS][index]
    targets = (advantages + predictions[rows]).astype(np.float32)
    batch[Postprocessing.ADVANTAGES] = torch.from_numpy(advantages).to(values.device)
    batch[Postprocessing.VALUE_TARGETS] = torch.from_numpy(targets).to(values.device)
    if not learner.has_stock_loss(module_id):
        ends = np.cumsum(lengths) - 1
        terminated, truncated = (np.zeros(len(advantages), np.bool_) for _ in range(2))
        terminated[ends] = columns.chunks["terminated"]
        truncated[ends] = ~terminated[ends]  # So is a chunk that goes on, in RLlib's batch.
        flags = {Columns.TERMINATEDS: terminated, Columns.TRUNCATEDS: truncated}
        batch |= convert_to_torch_tensor(flags, device=learner.device)
    return module_id, RoundBatch(batch, _rows(columns), False)


def _rewards(learner: Any, columns: RolloutColumns) -> np.ndarray:
    """Returns the rewards as the learner sees them."""
    rewards = columns.steps[Columns.REWARDS]
    for piece in learner._learner_connector.connectors:
        if isinstance(piece, ScaleRewards):
            return rewards * piece.scale
    return rewards


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
