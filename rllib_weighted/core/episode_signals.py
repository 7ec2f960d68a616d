"""Signals that follow from the episodes of each worker that ended: returns and success."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

SUCCESS_DECAY = 0.9
"""What is left of a round's episodes in `success` one round later."""

VARIANCE_EPISODES = 32
"""Number of a worker's latest episodes that `return_variance` is taken over."""


@dataclass
class EpisodeSignals:
    """What a run knows of its workers' episodes; part of its checkpoints.

    Args:
        ended: Worker -> round in which its last episode ended.
        returns: Worker -> returns of its latest `VARIANCE_EPISODES` episodes.
        lowest: Lowest return that any worker has seen.
        highest: The highest.
        successes: Worker -> (successes, episodes), both decayed by `SUCCESS_DECAY` each round.
    """

    ended: dict[int, int] = field(default_factory=dict)
    returns: dict[int, list[float]] = field(default_factory=dict)
    lowest: float = math.inf
    highest: float = -math.inf
    successes: dict[int, tuple[float, float]] = field(default_factory=dict)

    def add(
        self,
        round: int,
        returns: Mapping[int, Sequence[float]],
        successes: Mapping[int, Sequence[bool]],
        success_return: float | None = None,
    ) -> None:
        """Takes in the episodes that ended in a round.

        Args:
            round: Number of the round.
            returns: Worker -> undiscounted returns of its episodes that ended.
            successes: Worker -> whether they succeeded, those of which the environment says so.
            success_return: An episode with this return has succeeded, whatever the environment
                says; None: as it says.
        """
        for worker, ended in returns.items():
            if not ended:
                continue
            self.ended[worker] = round
            latest = [*self.returns.get(worker, ()), *map(float, ended)]
            self.returns[worker] = latest[-VARIANCE_EPISODES:]
            self.lowest = min(self.lowest, *ended)
            self.highest = max(self.highest, *ended)
        if success_return is not None:
            successes = {w: [r >= success_return for r in ended] for w, ended in returns.items()}
        self.successes = {
            worker: (SUCCESS_DECAY * k, SUCCESS_DECAY * n)
            for worker, (k, n) in self.successes.items()
        }
        for worker, outcomes in successes.items():
            k, n = self.successes.get(worker, (0.0, 0.0))
            self.successes[worker] = (k + sum(outcomes), n + len(outcomes))

    def signals(self, num_workers: int) -> dict[str, dict[int, float]]:
        """Returns the signals by their names, worker -> value; without those that are missing.

        Args:
            num_workers: N. Once a worker is known to succeed or fail, the others have 0 episodes.
        """
        counted = {worker: (k, n) for worker, (k, n) in self.successes.items() if n > 0}
        episodes = {w: counted.get(w, (0.0, 0.0))[1] for w in range(num_workers)} if counted else {}
        return {
            "success": {worker: k / n for worker, (k, n) in counted.items()},
            "success_episodes": episodes,
            "return_variance": {w: self._variance(values) for w, values in self.returns.items()},
        }

    def ages(self, round: int) -> dict[int, int]:
        """Returns worker -> rounds since one of its episodes ended (0: in this one)."""
        return {worker: round - ended for worker, ended in self.ended.items()}

    def _variance(self, returns: Sequence[float]) -> float:
        spread = self.highest - self.lowest
        return float(np.var(np.array(returns) / spread)) if 0 < spread < math.inf else 0.0


def success_of(info: Mapping[str, object]) -> bool | None:
    """Returns whether an episode succeeded, by its last info; None if that says nothing.

    By `is_success` (gymnasium-robotics, Stable-Baselines3), else by `success` (Meta-World).
    """
    value = info.get("is_success", info.get("success"))
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or np.isnan(array).any():
        return None
    return bool(array.item() > 0)
