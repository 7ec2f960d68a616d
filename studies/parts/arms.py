"""Arms that several parts share. What is here is part of every pre-registration that uses it.

Names without a remark are the paper's: weights p + 1/N, which sum to 2. "normalised" weights sum to
1, as the average's do, so that direction and step size are not confused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from studies.design import Arm, Task


def arm(name: str, strategy: str, normalization: str = "worker", /, **options: Any) -> Arm:
    """Returns an arm with a strategy, an advantage normalisation, and options of the strategy."""
    training: dict[str, Any] = {"merge_strategy": strategy}
    if options:
        training["merge_options"] = options
    if normalization != "worker":
        training["advantage_normalization"] = normalization
    return Arm(name, training)


AVERAGE = arm("average", "average")
AVERAGE_BATCH = arm("average, batch norm.", "average", "batch")
MEASURED = replace(AVERAGE, training={**AVERAGE.training, "merge_diagnostics_interval": 10})
"""The average, whose diagnostics predict what the others would gain."""
SUM = arm("sum", "sum")
R = arm("R", "reward_weighted")
R_NORMALISED = arm("R, normalised", "reward_weighted", normalize=True)
R_RANDOM = arm("R, random shares", "reward_weighted", transform="random")
R_RANDOM_NORMALISED = arm(
    "R, random shares, normalised", "reward_weighted", transform="random", normalize=True
)
L = arm("L", "loss_weighted")
L_NORMALISED = arm("L, normalised", "loss_weighted", normalize=True)
L_LOW = arm("L low", "loss_weighted", direction="low")
L_LOW_NORMALISED = arm("L low, normalised", "loss_weighted", direction="low", normalize=True)
ACTOR_AVERAGE = arm("Actor-avg", "actor_average")
ACTOR_SUM = arm("Actor-sum", "actor_sum")

# Merges that adapt: their weights sum to 1.
R_VALUE_TARGET = arm(
    "R of value targets, normalised", "reward_weighted", signal="value_target", normalize=True
)
LEARNABILITY = arm("learnability", "learnability")
LEARNABILITY_BATCH = arm("learnability, batch norm.", "learnability", "batch")
ADVANTAGE_UP = arm("advantage scale, a = 1", "advantage_scaled", exponent=1.0)
ADVANTAGE_UP_TWICE = arm("advantage scale, a = 2", "advantage_scaled", exponent=2.0)
ADVANTAGE_DOWN = arm("advantage scale, a = -1", "advantage_scaled", exponent=-1.0)
INVERSE_VARIANCE = arm("inverse variance", "inverse_variance")


def at_rate(base: Arm, task: Task, factor: float) -> Arm:
    """Returns an arm with the learning rate of the task, or of its whole schedule, times factor."""
    rate = task.training["lr"]
    scaled = [[at, factor * v] for at, v in rate] if isinstance(rate, list) else factor * rate
    return replace(
        base, name=f"{base.name}, rate x {factor:g}", training={**base.training, "lr": scaled}
    )


def against(baseline: Arm, *arms: Arm) -> tuple[tuple[str, str], ...]:
    """Returns the contrasts of arms with a baseline."""
    return tuple((one.name, baseline.name) for one in arms)
