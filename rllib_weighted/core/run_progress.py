"""What a run carries from round to round, and into its checkpoints."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from rllib_weighted.core.episode_signals import EpisodeSignals


@dataclass
class RunProgress:
    """What a run carries from round to round, and into its checkpoints.

    Args:
        root_seed: The run's root seed.
        round: Number of rounds that have begun.
        last_returns: Worker -> its last known mean return.
        recent_returns: Returns of the latest episodes of all workers.
        num_resets: Slot -> resets of that sub-environment so far.
        num_replaced: Env runners replaced so far.
        episodes: What is known of the workers' episodes.
        stale_rounds: Rounds in a row in which the signals' mean age was above 1.
        diagnostics: Those of gradients as they were last measured, by metric.
    """

    root_seed: int
    round: int = 0
    last_returns: dict[int, float] = field(default_factory=dict)
    recent_returns: list[float] = field(default_factory=list)
    num_resets: dict[int, int] = field(default_factory=dict)
    num_replaced: int = 0
    episodes: EpisodeSignals = field(default_factory=EpisodeSignals)
    stale_rounds: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunProgress:
        """Takes what `dataclasses.asdict` returned; also of a version that had fewer fields."""
        copied = copy.deepcopy(state)
        episodes = EpisodeSignals(**copied.pop("episodes", {}))
        return cls(**copied, episodes=episodes)
