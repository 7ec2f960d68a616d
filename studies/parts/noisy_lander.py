"""Half of the workers with noisy rewards, on another environment than CartPole."""

from studies.design import Experiment, Part
from studies.parts.arms import (
    ADVANTAGE_DOWN,
    AVERAGE_BATCH,
    MEASURED,
    R_RANDOM_NORMALISED,
    against,
)
from studies.parts.context_tasks import NOISY_LUNAR_LANDER

_ARMS = (ADVANTAGE_DOWN, R_RANDOM_NORMALISED)

PART = Part(
    name="noisy_lander",
    title="Half of the workers noisy, on LunarLander",
    question="""
On CartPole with noisy rewards for half of the workers, advantage scale a = -1 was faster than both
averages. Is that so on an environment whose rewards are dense, shaped and of both signs?

- **Primary**: advantage scale a = -1 against the better of the two averages, in environment steps
  to 50, scored by the workers without noise. It wins if it is faster than both, with intervals
  above 1 after Holm's correction over the contrasts of this part; it reaches the paper's figure if
  the interval also includes 1.25 (20.14 % sooner) or lies above it, and its held-out return is no
  worse.
- **Secondary**: random shares, which would be faster too if any unequal weights did it; mean score,
  final score and held-out return.

Predictions: a = -1 is faster than both averages, by 1.5 or more; random shares are not; batch
normalisation is the slowest.
""",
    cuts="""
One kind of noise, of one size, 16 seeds. Seeds 1 and 2 were pilots with 400,000 steps: the average
got to 0 after 287,000 and 344,000 steps, a = -1 after 176,000 and 156,000, and to 50 after 266,000
and 287,000. Length, threshold and prediction come from these; no other noise was looked at.
""",
    experiments=(
        Experiment(
            NOISY_LUNAR_LANDER,
            (MEASURED, AVERAGE_BATCH, *_ARMS),
            tuple(range(12_000, 12_016)),
            against(MEASURED, *_ARMS) + against(AVERAGE_BATCH, MEASURED, *_ARMS),
        ),
    ),
)
