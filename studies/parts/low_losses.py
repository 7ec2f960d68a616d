"""Does it pay to weigh workers with low losses up? A lead of the paper's part, asked again."""

from dataclasses import replace

from studies.design import Experiment, Part, Task
from studies.parts.arms import AVERAGE, L_LOW_NORMALISED, R_RANDOM_NORMALISED, against
from studies.parts.tasks import CART_POLE, LUNAR_LANDER


def _experiment(task: Task, num_seeds: int) -> Experiment:
    arms = (AVERAGE, L_LOW_NORMALISED, R_RANDOM_NORMALISED)
    contrasts = (
        *against(AVERAGE, L_LOW_NORMALISED, R_RANDOM_NORMALISED),
        *against(R_RANDOM_NORMALISED, L_LOW_NORMALISED),
    )
    return Experiment(task, arms, tuple(range(14_000, 14_000 + num_seeds)), contrasts)


PART = Part(
    name="low_losses",
    title="Identical environments: does it pay to weigh low losses up?",
    question="""
In the paper's part, on CartPole with identical workers, one of eleven arms was faster than the
average: L in the direction of low losses, with weights that sum to 1, 1.32 times to a return of 400
(1.18 to 1.47, ten pairs, p 0.008 after Holm). Nobody had predicted it, and random shares were at
1.14 (1.01 to 1.30). This part asks again with fresh seeds, and on a second task.

- **Primary**: the speed against the average on each task. Confirmed there if the 95 % interval
  lies above 1 after Holm's correction over the six contrasts; refuted on CartPole if it lies below
  1.32.
- It is due to the losses only if the arm is faster than random shares, too.
- Prediction, from theory: no merge of workers that are alike is faster than the average, so that
  both arms are between 0.9 and 1.05 on both tasks.
""",
    cuts="""
24 seeds on CartPole, where a run takes 20 seconds, 16 on LunarLander. With the spread of the parts
above (0.2 to 0.25 of the logarithm), a speed of 1.2 would be seen on CartPole nine times in ten, on
LunarLander eight times. BipedalWalker, where a run takes three minutes, is left out.
""",
    experiments=(
        _experiment(CART_POLE, 24),
        _experiment(replace(LUNAR_LANDER, env_backend="envpool"), 16),
    ),
)
