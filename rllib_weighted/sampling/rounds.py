"""What the algorithm asks of an env runner for one round, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.columns import RolloutColumns


@dataclass(frozen=True)
class RoundOrder:
    """Everything that an env runner needs in order to sample one round.

    Env runners hold no training state of their own: a restarted one gets all of it here.

    Args:
        round: Number of the round, from 1.
        root_seed: The run's root seed.
        state: RLlib env-runner state: module weights, connector states, lifetime counters.
        num_resets: Slot -> resets of that sub-environment that the run has already used.
        lineage: Names what the run grew from; it changes when a checkpoint is restored, and then
            an env runner that lived through it starts over from these counters.
        expires: `time.time()` from when on nobody waits for the round.
        actor_parameters: Name, as in the module's `named_parameters()`, -> [N, ...]: each worker
            acts with the parameters in its row, in this round only. They stand in for the weights
            in `state`, which the env runner keeps for everything else, evaluation above all. From
            numpy arrays every env runner reads just its own rows; detached tensors will do. None:
            all act with the weights in `state`.
        takes_columns: Whether columns will do, where they can be had; else: episodes.
    """

    round: int
    root_seed: int
    state: dict[str, Any]
    num_resets: dict[int, int]
    lineage: str = ""
    expires: float = math.inf
    actor_parameters: Mapping[str, Any] | None = None
    takes_columns: bool = False


@dataclass
class RoundRollouts:
    """What one env runner sampled in one round.

    Args:
        env_runner: RLlib's index of the env runner (0 = local).
        episodes: Episodes and chunks of episodes, each with its worker in `custom_data`.
        columns: The same as columns, instead of them.
        is_fast: Whether they were sampled on the fast path.
        metrics: The env runner's reduced metrics.
        connector_states: State of both connector pipelines after the round.
        num_resets: Slot -> resets used so far.
        returns: Worker -> undiscounted returns of its episodes that ended in this round.
        faults: Worker -> what was wrong with its numbers; such a worker must be dropped.
        error: Traceback of an exception that ended the round early; then nothing else is set.
    """

    env_runner: int
    episodes: list[SingleAgentEpisode] = field(default_factory=list)
    columns: RolloutColumns | None = None
    is_fast: bool = False
    metrics: Any = None
    connector_states: dict[str, Any] = field(default_factory=dict)
    num_resets: dict[int, int] = field(default_factory=dict)
    returns: dict[int, list[float]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    error: str | None = None
