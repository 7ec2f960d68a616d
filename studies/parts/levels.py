"""Where to sample, not how to merge: level replay against workers that stay in their contexts."""

from dataclasses import replace
from typing import Any

from studies.design import Arm, Experiment, Part, Task
from studies.parts.arms import AVERAGE, AVERAGE_BATCH, LEARNABILITY_BATCH, against
from studies.parts.context_tasks import MOUNTAIN_CAR_LEVELS


def levels_arm(name: str, task: Task, base: Arm, **options: Any) -> Arm:
    """Returns an arm that draws from a pool of the task's contexts; see `level_options`."""
    pool = [dict(context) for context in task.contexts]
    runners = {"env_seeding": "prioritized", "level_options": {"pool": pool, **options}}
    return replace(base, name=name, env_runners=runners)


def _experiment(task: Task, num_seeds: int) -> Experiment:
    arms = (
        levels_arm("levels in turn", task, AVERAGE, staleness=1.0),
        levels_arm("levels by value error", task, AVERAGE, score="value_error"),
        levels_arm("levels by learnability", task, AVERAGE, score="learnability"),
        levels_arm(
            "levels by learnability, batch norm.", task, AVERAGE_BATCH, score="learnability"
        ),
        LEARNABILITY_BATCH,
    )
    return Experiment(
        task,
        (AVERAGE, AVERAGE_BATCH, *arms),
        tuple(range(3000, 3000 + num_seeds)),
        against(AVERAGE, *arms) + against(AVERAGE_BATCH, AVERAGE, *arms),
    )


PART = Part(
    name="levels",
    title="Level replay: moving the samples",
    question="""
If a fraction f of the workers carries information, weights gain at most 1/f, moving their steps
to informative environments up to 1/f^2. Here every episode of every worker is drawn from the pool
of the eight contexts that the workers of the part above have for themselves: by value error, by
learnability, or in turn, the control that takes contexts from the workers without any preference.

Greedy episodes in all eight contexts, on seeds kept apart, are the score: what an arm chooses to
play must not decide how well it seems to do. Level replay pays if it is faster than both averages
after Holm's correction, and it is the choice that pays if it is also faster than levels in turn.

Prediction: learnability is faster, early on, than everything else.
""",
    cuts="""
A pool of eight; one family of contexts. LunarLander with unequal gravity and wind was registered
too, with 12 seeds, and was left out before any run of it: greedy evaluations in eight worlds make
it the dearest task of all. Evaluations every 4,000 steps: speeds are no finer.
""",
    experiments=(_experiment(MOUNTAIN_CAR_LEVELS, 16),),
    num_cut_contrasts=11,
)
