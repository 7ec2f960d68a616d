"""The signals that a learner measures on a round's batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_weighted.learning.batch import take_rows
from rllib_weighted.learning.signal_memory import Values, values_of
from rllib_weighted.learning.steps import Round
from rllib_weighted.merging import SIGNALS

RewardSums = Mapping[int, tuple[int, float]]

BATCH_SIGNALS = tuple(
    name for name, s in SIGNALS.items() if s.measured_on == "batch" and s.loss is None
)


def batch_signals(round: Round, rewards: RewardSums) -> dict[str, Values]:
    """Returns `BATCH_SIGNALS` of all workers; call it before advantages are standardised.

    Args:
        round: The round.
        rewards: Worker -> steps and sum of rewards, of this learner's workers.
    """
    batch = round.batch
    own = torch.zeros(0, 8, dtype=torch.float64)
    if batch.rows:
        index = torch.from_numpy(batch.all_rows)
        advantages, targets = (
            take_rows(batch.columns[name], index)
            for name in (Postprocessing.ADVANTAGES, Postprocessing.VALUE_TARGETS)
        )
        sums = torch.tensor([rewards.get(w, (0, 0.0)) for w in batch.rows], dtype=torch.float64)
        found = batch.moments(advantages, targets)
        own = torch.cat([sums.to(found), found], dim=1)
    found_all = round.table(own).cpu()[round.workers]
    steps, reward, count, _, squares, _, target, _ = found_all.unbind(1)
    columns_of = {
        "reward_rate": reward / steps,
        "value_target": target,
        "advantage_scale": (squares / count).sqrt(),
    }
    return {name: values_of(round.workers, column) for name, column in columns_of.items()}
