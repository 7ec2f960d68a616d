"""Level replay on MountainCar once more, with fresh seeds: does its lead hold up?"""

from dataclasses import replace

from studies.design import Experiment, Part
from studies.parts.arms import AVERAGE, AVERAGE_BATCH, against
from studies.parts.context_tasks import MOUNTAIN_CAR_LEVELS
from studies.parts.levels import levels_arm

_TASK = replace(
    MOUNTAIN_CAR_LEVELS,
    name="MountainCar, engines as levels, 150,000 steps",
    total_steps=150_000,
)
_BY_LEARNABILITY = levels_arm(
    "levels by learnability, batch norm.", _TASK, AVERAGE_BATCH, score="learnability"
)
_IN_TURN = levels_arm("levels in turn, batch norm.", _TASK, AVERAGE_BATCH, staleness=1.0)

PART = Part(
    name="replay",
    title="Levels by learnability, with fresh seeds",
    question="""
In the part above, levels by learnability with batch normalisation were 1.25 (1.04 to 1.49) times as
fast as the better average on MountainCar, p 0.02, which did not hold up among all comparisons of
that part. This part asks only that, with twice the seeds and half as many steps again, because a
quarter of the runs had not learned it within 100,000.

- **Primary**: levels by learnability with batch normalisation against both averages, in environment
  steps to a greedy success of 0.9. They win if they are faster than both, with intervals above 1
  after Holm's correction over the three contrasts of this part; they reach the paper's figure if
  both intervals also include 1.25 (20.14 % sooner) or lie above it, and the held-out success is no
  worse.
- **Control**: levels in turn, with the same normalisation. If they are as fast, it is the mixing of
  contexts that pays, not the choice.

Prediction: 1.15 to 1.25 against batch normalisation, 1.3 against the average; levels in turn are
no faster than batch normalisation.
""",
    cuts="""
One environment, one score, one pool of eight. 32 pairs see a speed of 1.25 about nine times in ten,
if the spread is that of the part above.
""",
    experiments=(
        Experiment(
            _TASK,
            (AVERAGE, AVERAGE_BATCH, _BY_LEARNABILITY, _IN_TURN),
            tuple(range(8000, 8032)),
            (
                *against(AVERAGE, _BY_LEARNABILITY),
                *against(AVERAGE_BATCH, _BY_LEARNABILITY),
                *against(_IN_TURN, _BY_LEARNABILITY),
            ),
        ),
    ),
)
