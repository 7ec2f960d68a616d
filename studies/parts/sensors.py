"""Half of the workers with noisy sensors: does it pay to listen to large advantages?"""

from studies.design import Experiment, Part
from studies.parts.arms import (
    ADVANTAGE_UP,
    ADVANTAGE_UP_TWICE,
    AVERAGE_BATCH,
    MEASURED,
    R_NORMALISED,
    R_RANDOM_NORMALISED,
    against,
)
from studies.parts.context_tasks import NOISY_SENSORS

_ARMS = (ADVANTAGE_UP_TWICE, ADVANTAGE_UP, R_NORMALISED, R_RANDOM_NORMALISED)

PART = Part(
    name="sensors",
    title="Half of the workers with noisy sensors",
    question="""
Noise on the rewards makes advantages larger. Noise on the observations does the opposite: a worker
that senses badly balances for a short time, whatever it does, so its returns and advantages are
small, and normalisation per worker blows them up to the size of the others'. Here the workers with
**large** advantages are the ones to listen to.

- **Primary**: advantage scale a = 2 against both averages, in environment steps to a mean return of
  150 over all workers, those with noise among them. It wins if it is faster than both, with
  intervals above 1 after Holm's correction over the contrasts of this part; it reaches the paper's
  figure if both intervals also include 1.25 (20.14 % sooner) or lie above it, and its return with
  clean sensors, on seeds kept apart, is no worse.
- **Secondary**: a = 1, which is batch normalisation but for the mean that is subtracted; R, whose
  signal, the return, tells the two kinds of workers apart too; random shares, the control.

Prediction from six pilots of 120,000 or 130,000 steps (seeds 1 to 6; first time at 150): a = 2 is
1.46 times as fast as the average and 1.25 times as batch normalisation; a = 1 1.39 and 1.18 times;
R, from two pilots, and random shares are no faster.
""",
    cuts="""
One kind of noise, of one size, in half of the workers. In pilots, a deviation of 1.0 (three seeds)
favoured the average, and actions that are random half of the time (two seeds) nothing: the task was
chosen because weights seemed to pay there, and says nothing about how often they do.
""",
    experiments=(
        Experiment(
            NOISY_SENSORS,
            (MEASURED, AVERAGE_BATCH, *_ARMS),
            tuple(range(9000, 9024)),
            against(MEASURED, *_ARMS) + against(AVERAGE_BATCH, *_ARMS),
        ),
    ),
)
