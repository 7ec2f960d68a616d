"""Does R pay where all workers are alike? A pilot says so, theory says no."""

from studies.design import Experiment, Part
from studies.parts.arms import AVERAGE, AVERAGE_BATCH, R_NORMALISED, R_RANDOM, SUM, R, against
from studies.parts.tasks import LUNAR_LANDER

PART = Part(
    name="confirm",
    title="Identical environments: does reward weighting pay on LunarLander?",
    question="""
A pilot with 8 paired seeds and 8 arms found, without any correction, that R reaches a mean return
of 200 on LunarLander 1.11 times as fast as the average (1.02 to 1.20), the average with batch
normalisation 0.80 times (0.67 to 0.94), the sum 0.98 times and R's shares dealt out at random
1.03 times. All workers play the same environment there, so that weights that know nothing of the
gradients should only add noise. This part asks again, with 20 seeds that no pilot has used.

- **Primary**: R (as in the paper, weights p + 1/8, sum 2) against the average, both with
  normalisation per worker, in environment steps to a mean return of 200 over 100 episodes.
  Confirmed if the 95 % interval of the paired speed lies above 1 after Holm's correction; refuted
  if it lies below 1.11; else undecided, with the effect that could have been seen.
- **Secondary**: every other contrast of the table; mean return over the whole run; greedy return
  on held-out seeds.
- If R is faster, R with normalised weights (sum 1) and the sum (weights of 1, sum 8) say whether
  that is the step size, and random shares whether any other weights would do.

All runs have the same length, nothing is decided before all are there, and none is left out.
""",
    cuts="""
The settings are the pilot's: those of `tuned_examples/lunarlander.py` with batches of 4096 steps,
one process, 400,000 steps. L is left out (0.97 and 1.09 in the pilot, both undecided): it would
cost a third more, and no claim hangs on it. The other arms' runs ended after four or five seeds of
twenty, to leave the hours to other parts: what they show is no conclusion.

**Changed after registration.** Nothing in arms, seeds or thresholds. After two seeds of all arms
the runs of R and the average were made first, because the machine was slower than planned. p
values are those of paired t tests in place of permutation tests, as in the parts with ten seeds,
where the latter cannot get small enough.
""",
    experiments=(
        Experiment(
            task=LUNAR_LANDER,
            arms=(AVERAGE, R, AVERAGE_BATCH, R_RANDOM, SUM, R_NORMALISED),
            seeds=tuple(range(1000, 1020)),
            contrasts=against(AVERAGE, R, AVERAGE_BATCH, R_RANDOM, SUM, R_NORMALISED),
        ),
    ),
)
