"""Value errors of single episodes, |GAE advantage| before any normalisation: scores of levels.

Each learner knows those of its own workers' episodes; the driver puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_weighted.core.rollouts import RolloutColumns

EPISODE_COLUMN = "rllib_weighted_episode"
"""Column of the number of each step's episode in a round."""

ValueErrors = dict[str, tuple[float, int]]
"""Episode's id -> sum of |GAE advantage| over its steps, and their number."""


def column_value_errors(columns: RolloutColumns, batch: dict[str, Any]) -> ValueErrors:
    """Returns the value errors of the episodes of a column batch.

    Args:
        columns: What the batch was made of.
        batch: The batch's columns, [steps, …], in the same order.
    """
    owner = np.repeat(np.arange(len(columns.ids)), columns.chunks["length"])
    return _by_episode(columns.ids, owner, batch[Postprocessing.ADVANTAGES].cpu().numpy())


def tag_episodes(episodes: Sequence[SingleAgentEpisode]) -> list[str]:
    """Writes each episode's number into a per-step column that survives every connector.

    Returns:
        The episodes' ids. RLlib's connectors change them.
    """
    for number, episode in enumerate(episodes):
        lookback = episode.rewards.lookback
        tags = np.full(len(episode) + lookback, number, np.int64)
        episode.extra_model_outputs[EPISODE_COLUMN] = InfiniteLookbackBuffer(
            tags, lookback=lookback
        )
    return [episode.id_ for episode in episodes]


def tagged_value_errors(ids: Sequence[str], batch: dict[str, Any]) -> ValueErrors:
    """Returns the value errors of tagged episodes, and takes the tags out of their batch.

    Args:
        ids: What `tag_episodes` returned.
        batch: The module's columns, as the learner connectors made them.
    """
    owner = batch.pop(EPISODE_COLUMN).cpu().numpy()
    advantages = batch[Postprocessing.ADVANTAGES].cpu().numpy()
    is_step = np.ones(owner.shape, np.bool_)
    if Columns.LOSS_MASK in batch:  # Without the artificial row at the end of each episode.
        is_step = batch[Columns.LOSS_MASK].cpu().numpy().astype(np.bool_)
    return _by_episode(ids, owner[is_step], advantages[is_step])


def _by_episode(ids: Sequence[str], owner: np.ndarray, advantages: np.ndarray) -> ValueErrors:
    """Sums up, [steps] -> one number per id. In float64: a chunk alone decides its own sum."""
    errors = np.bincount(owner, np.abs(advantages.astype(np.float64)), minlength=len(ids))
    counts = np.bincount(owner, minlength=len(ids))
    found: ValueErrors = {}
    for id_, error, count in zip(ids, errors.tolist(), counts.tolist(), strict=True):
        before = found.get(id_, (0.0, 0))  # A round may hold an episode in pieces.
        found[id_] = before[0] + error, before[1] + count
    return found
