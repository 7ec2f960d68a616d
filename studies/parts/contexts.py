"""Workers that differ for good: does any merge beat both averages there?"""

from studies.design import Arm, Experiment, Part, Task
from studies.parts.arms import (
    ADVANTAGE_DOWN,
    ADVANTAGE_UP,
    AVERAGE_BATCH,
    INVERSE_VARIANCE,
    L_LOW_NORMALISED,
    L_NORMALISED,
    LEARNABILITY,
    LEARNABILITY_BATCH,
    MEASURED,
    R_NORMALISED,
    R_RANDOM_NORMALISED,
    R_VALUE_TARGET,
    against,
    arm,
)
from studies.parts.context_tasks import (
    LUNAR_LANDER_WORLDS,
    MOUNTAIN_CAR,
    NOISY_CART_POLE,
)

_ORACLE = arm("oracle: only the clean workers", "study_oracle", listen_to=(1.0, 0.0))


def _experiment(task: Task, num_seeds: int, *arms: Arm) -> Experiment:
    return Experiment(
        task,
        (MEASURED, AVERAGE_BATCH, *arms),
        tuple(range(3000, 3000 + num_seeds)),
        against(MEASURED, *arms) + against(AVERAGE_BATCH, MEASURED, *arms),
    )


PART = Part(
    name="contexts",
    title="Workers in different contexts",
    question="""
Where workers differ, weights have something to find. Every arm is compared with **both**
averages, normalised per worker and over the batch: which one is better depends on the task, and a
user can have either. An arm wins on a task if it is faster than both, with intervals above 1
after Holm's correction over all contrasts of the part; it reaches the paper's figure if both
intervals also include 1.25 (20.14 % sooner) or lie above it, and its greedy return on held-out
contexts is no worse than the better average's.

Predictions, from theory and pilots (`speed` against the average normalised per worker):

- *MountainCar, sparse reward*: only workers that have seen the goal carry information. Batch
  normalisation, learnability and advantage scale a = 1 are faster, R and random shares are not, a
  = -1 and inverse variance are slower (the uninformed are the quiet ones).
- *CartPole with noise*: half of the workers carry the same information with more noise. a = -1,
  inverse variance and the oracle are faster; batch normalisation and a = 1 are slower.
- *LunarLander, gravity and wind*: every worker informs about its own world. No weights are
  predicted to gain in the mean over the workers; R neglects the hard worlds, so its worst worker
  and worst held-out context are worse.

The score is the mean over the workers of each one's last ten episodes or more.
""",
    cuts="""
16 seeds where a run costs half a minute of a core, 10 on LunarLander, which has the main arms only.
(It was first registered with 12 seeds, L low, advantage scale a = 1 and inverse variance; cut
before its first run, when the study had used two thirds of its twelve hours of two cores.)
BipedalWalker with every second worker in its hardcore version was registered with ten seeds of four
arms, and cut before its first run, when the twelve hours were used up: three minutes of a core a
run, to a threshold where learning has only begun. MiniGrid's DoorKey is left out: another
dependency, and ten minutes a run.
Level replay and aggregators of gradients are parts of their own. Minimum weights are the
defaults.

**Changed after registration.** MountainCar first had engines of 0.0008 to 0.002. The first six
runs, one seed in six arms, never reached the goal in 120,000 steps: where no worker sees a reward,
no merge can be compared. Before any other run the task was replaced by one with the engines of the
pilot on this task, 0.001 to 0.0035, and 100,000 steps; the six runs are not used.
""",
    experiments=(
        _experiment(
            MOUNTAIN_CAR,
            16,
            R_NORMALISED,
            R_VALUE_TARGET,
            R_RANDOM_NORMALISED,
            LEARNABILITY,
            LEARNABILITY_BATCH,
            ADVANTAGE_UP,
            ADVANTAGE_DOWN,
            INVERSE_VARIANCE,
        ),
        _experiment(
            NOISY_CART_POLE,
            16,
            R_NORMALISED,
            L_NORMALISED,
            L_LOW_NORMALISED,
            R_RANDOM_NORMALISED,
            LEARNABILITY,
            ADVANTAGE_UP,
            ADVANTAGE_DOWN,
            INVERSE_VARIANCE,
            _ORACLE,
        ),
        _experiment(
            LUNAR_LANDER_WORLDS,
            10,
            R_NORMALISED,
            R_RANDOM_NORMALISED,
            LEARNABILITY,
            ADVANTAGE_DOWN,
        ),
    ),
    num_cut_contrasts=13,
)
