"""What driver, env runners and learners send each other in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from rllib_weighted.core.levels import LevelDraws, LevelPlay
from rllib_weighted.core.rollouts import RolloutColumns
from rllib_weighted.merging import Diagnostics, Weighting


@dataclass(frozen=True)
class UpdateRequest:
    """How the workers' gradients are merged in one round.

    Args:
        round: Number of the round, from 1.
        root_seed: The run's root seed; shuffles and random shares are counted from it.
        num_workers: N, including the workers that sent nothing.
        strategy: Maps signals to weights.
        min_weight: Minimum weight m in this round; None is 1 / (number of merged workers).
        value_strategy: Weighs the value function's part of the loss; None: `strategy` does.
        value_min_weight: Its minimum weight.
        reward_signals: Worker -> last known mean return; absent means missing.
        episode_signals: Name of a signal -> worker -> value, of those that follow from episodes
            that ended and that the strategy reads.
        ages: Worker -> rounds since one of its episodes ended; absent if none has.
        measures_gradients: Whether signals of gradients are measured anew.
        predicts_gains: Whether it is then also predicted what each strategy would gain.
        invalid: Worker -> why it is dropped before the first step.
    """

    round: int
    root_seed: int
    num_workers: int
    strategy: Weighting
    min_weight: float | None = None
    value_strategy: Weighting | None = None
    value_min_weight: float | None = None
    reward_signals: dict[int, float] = field(default_factory=dict)
    episode_signals: dict[str, dict[int, float]] = field(default_factory=dict)
    ages: dict[int, int] = field(default_factory=dict)
    measures_gradients: bool = False
    predicts_gains: bool = True
    invalid: dict[int, str] = field(default_factory=dict)

    @property
    def needs_reward_sums(self) -> bool:
        """Whether a strategy reads the reward rate, or all signals are wanted."""
        strategies = self.strategy, self.value_strategy
        return self.measures_gradients or any(s and "reward_rate" in s.signals for s in strategies)


@dataclass(frozen=True)
class UpdateResult:
    """What the merges of one round did. All lists have one entry per worker, 0 … N - 1.

    Args:
        signals: Mean signal over the round's steps; None if it was missing throughout.
        shares: Mean share over the round's optimizer steps (0 in a step that left it out).
        weights: Mean weight, likewise.
        losses: Mean total loss over the steps in which it was finite; None if there is none.
        drops: Why a worker was left out of at least one merge of this round, else None.
        num_steps: Optimizer steps taken.
        num_skipped_steps: Steps skipped because no worker was left.
        drifts: ‖θ_i - θ̄‖ / ‖θ̄‖ after the round; None if the workers share their parameters.
        ages: Rounds since each worker's signal was measured; None if it never was.
        diagnostics: What the gradients say of the merge; None in a round that did not measure.
        gradient_signals: Name of a signal -> worker -> value, of gradients, as last measured.
        value_errors: Episode's id -> sum of |GAE advantage| over its steps of the round, and their
            number, if levels are scored.
    """

    signals: list[float | None]
    shares: list[float]
    weights: list[float]
    losses: list[float | None]
    drops: list[str | None]
    num_steps: int
    num_skipped_steps: int
    drifts: list[float] | None = None
    ages: list[int | None] | None = None
    diagnostics: Diagnostics | None = None
    gradient_signals: dict[str, dict[int, float]] = field(default_factory=dict)
    value_errors: dict[str, tuple[float, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRequest:
    """What an env runner needs in order to sample one round.

    Env runners hold no training state of their own: a restarted one gets everything here.

    Args:
        round: Number of the round, from 1.
        root_seed: The run's root seed.
        state: RLlib env-runner state: module weights, connector states, lifetime counters; or
            where in the object store it lies.
        num_resets: Slot -> resets of that sub-environment that the run has already used.
        restore_id: Changes when a checkpoint is restored: an env runner that was alive before
            then starts over from these counters.
        per_worker_parameters: Name, as in `named_parameters()`, -> [N, ...]: each worker acts with
            the parameters in its row, in this round only. The env runner keeps the weights in
            `state` for everything else, evaluation above all. Send numpy arrays: each env runner
            then reads only its own rows. None: all workers act with the weights in `state`.
        takes_columns: Whether the learner accepts columns instead of episodes.
        levels: What the levels of the round are drawn from, if there are any.
    """

    round: int
    root_seed: int
    state: dict[str, Any] | ray.ObjectRef[Any]
    num_resets: dict[int, int]
    restore_id: str = ""
    per_worker_parameters: Mapping[str, np.ndarray | Tensor] | None = None
    takes_columns: bool = False
    levels: LevelDraws | None = None


@dataclass
class SampleResult:
    """What one env runner sampled in one round.

    Args:
        env_runner: RLlib's index of the env runner (0 = local).
        episodes: Episodes and chunks of episodes, each with its worker in `custom_data`.
        columns: The same as columns; then there are no episodes.
        is_fast: Whether they were sampled on the fast path.
        metrics: The env runner's reduced metrics, in RLlib's own form.
        connector_states: State of both connector pipelines after the round.
        num_resets: Slot -> resets used so far.
        returns: Worker -> undiscounted returns of its episodes that ended in this round.
        successes: Worker -> whether they succeeded, those of which the environment says so.
        plays: What the round holds of each episode's level, if there are any.
        invalid: Worker -> why its numbers are invalid; such a worker must be dropped.
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
    successes: dict[int, list[bool]] = field(default_factory=dict)
    plays: list[LevelPlay] = field(default_factory=list)
    invalid: dict[int, str] = field(default_factory=dict)
    error: str | None = None
