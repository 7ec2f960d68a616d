"""Value errors of single episodes, |GAE advantage| before any normalisation: scores of levels.

Each learner knows those of its own workers' episodes; the driver puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_weighted.learning.batch import RoundBatch

ValueErrors = dict[str, tuple[float, int]]
"""Episode's id -> sum of |GAE advantage| over its steps, and their number."""


def episode_value_errors(ids: Sequence[str], batch: RoundBatch) -> ValueErrors:
    """Returns the value errors of a batch's episodes; before its advantages are standardised.

    Args:
        ids: Of each of `batch.chunks`, its episode's id.
        batch: A batch that knows its chunks.
    """
    assert batch.chunks is not None
    owner = batch.chunks
    advantages = batch.columns[Postprocessing.ADVANTAGES].cpu().numpy()
    if batch.mask is not None:
        mask = batch.mask.cpu().numpy()
        owner, advantages = np.broadcast_to(owner[:, None], mask.shape)[mask], advantages[mask]
    # In float64: a chunk alone decides its own sum.
    errors = np.bincount(owner, np.abs(advantages.astype(np.float64)), minlength=len(ids))
    counts = np.bincount(owner, minlength=len(ids))
    found: ValueErrors = {}
    for id_, error, count in zip(ids, errors.tolist(), counts.tolist(), strict=True):
        before = found.get(id_, (0.0, 0))  # A round may hold an episode in pieces.
        found[id_] = before[0] + error, before[1] + count
    return found
