"""What the algorithm tells the learner about a round's merge, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from rllib_weighted.merging import Weighting


@dataclass(frozen=True)
class MergeOrder:
    """How the workers' gradients are merged in one round.

    Args:
        round: Number of the round, from 1.
        root_seed: The run's root seed; shuffles and random shares are counted from it.
        num_workers: N, also those that sent nothing.
        strategy: Maps signals to weights.
        min_weight: Minimum weight m in this round; None is 1 / (number of merged workers).
        reward_signals: Worker -> reward signal; absent means missing.
        faults: Worker -> why it is dropped before the first step.
    """

    round: int
    root_seed: int
    num_workers: int
    strategy: Weighting
    min_weight: float | None = None
    reward_signals: dict[int, float] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeReport:
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
        exported: The worker whose own policy is exported; None for a mean or a shared one.
    """

    signals: list[float | None]
    shares: list[float]
    weights: list[float]
    losses: list[float | None]
    drops: list[str | None]
    num_steps: int
    num_skipped_steps: int
    drifts: list[float] | None = None
    exported: int | None = None
