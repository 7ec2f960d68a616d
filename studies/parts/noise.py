"""Half of the workers noisy: does it pay to weigh by the inverse scale of the advantages?"""

from dataclasses import replace

from studies.design import Experiment, Part
from studies.parts.arms import (
    ADVANTAGE_DOWN,
    AVERAGE_BATCH,
    INVERSE_VARIANCE,
    MEASURED,
    R_RANDOM_NORMALISED,
    against,
)
from studies.parts.context_tasks import NOISY_CART_POLE

_ARMS = (ADVANTAGE_DOWN, INVERSE_VARIANCE, R_RANDOM_NORMALISED)

PART = Part(
    name="noise",
    title="Half of the workers noisy, to a higher threshold",
    question="""
In the part above, advantage scale a = -1 was not faster to 195, the threshold chosen for it, by
more than chance, but its final return was 431 where the averages had 245 and 212. The threshold
was where learning had begun. This part asks again with fresh seeds, a longer run and a threshold
of 400.

- **Primary**: advantage scale a = -1 against the better of the two averages, in environment steps
  to 400. It wins if it is faster than both, with intervals above 1 after Holm's correction over
  the contrasts of this part; it reaches the paper's figure if the interval also includes 1.25
  (20.14 % sooner) or lies above it, and its held-out return is no worse.
- **Secondary**: inverse variance, which measures the noise instead of inferring it from the
  advantages; random shares, which would be faster too if any unequal weights did it.

Predictions: a = -1 is faster than both averages by 1.2 to 1.3; inverse variance by half of that;
random shares are not; batch normalisation is the slowest, because it lets the noisy workers' larger
advantages count more.
""",
    cuts="""
One kind of noise, of one size. Seeds 1 and 2 of the average got to 400 after 160,000 and 157,000
steps, seed 1 of a = -1 after 127,000: threshold, length and prediction come from these and from the
part above.
""",
    experiments=(
        Experiment(
            replace(
                NOISY_CART_POLE,
                name="CartPole, noisy rewards for half of the workers, to 400",
                total_steps=220_000,
                threshold=400.0,
                training={**NOISY_CART_POLE.training, "lr": [[0, 1e-3], [250_000, 1e-4]]},
            ),
            (MEASURED, AVERAGE_BATCH, *_ARMS),
            tuple(range(7000, 7016)),
            against(MEASURED, *_ARMS) + against(AVERAGE_BATCH, MEASURED, *_ARMS),
        ),
    ),
)
