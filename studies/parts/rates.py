"""Is the gain of `advantage_scaled` no more than that of another learning rate?"""

from studies.design import Arm, Experiment, Part, Task
from studies.parts import noise
from studies.parts.arms import (
    ADVANTAGE_DOWN,
    ADVANTAGE_UP_TWICE,
    AVERAGE,
    AVERAGE_BATCH,
    against,
    at_rate,
)
from studies.parts.context_tasks import NOISY_LUNAR_LANDER, NOISY_SENSORS

_NOISY_CART_POLE = noise.PART.experiments[0].task


def _experiment(
    task: Task, num_seeds: int, averages: tuple[Arm, ...], merges: tuple[Arm, ...]
) -> Experiment:
    contrasts = tuple(pair for average in averages for pair in against(average, *merges))
    seeds = tuple(range(15_000, 15_000 + num_seeds))
    return Experiment(task, (*averages, *merges), seeds, contrasts)


def _rates(base: Arm, task: Task, *factors: float) -> tuple[Arm, ...]:
    return (base, *(at_rate(base, task, factor) for factor in factors))


PART = Part(
    name="rates",
    title="The same gains with another learning rate?",
    question="""
On CartPole with identical workers, in the part on single gradients, the average with twice the
learning rate was 1.41 times as fast as with the rate of our tuned examples. The gains of advantage
scale, with a = -1 where rewards and with a = 2 where sensors are noisy, were measured at that rate.
Would an average with another one have done the same?

The gain holds on a task if one of the arms with advantage scale is faster than the average at
**every** rate, with intervals above 1 after Holm's correction over the contrasts of this part. Else
the page says that a larger step does the same there.

Predictions: all arms on CartPole gain from a larger rate; advantage scale keeps a lead of 1.2 over
the best average there, with noisy rewards and with noisy sensors, and of 1.5 on LunarLander, where
the noise makes half the rate the better one for the average.
""",
    cuts="""
Twice and four times the rate on CartPole, half and twice on LunarLander, twice with noisy sensors;
twelve and ten seeds. No other setting of PPO is tuned for each arm.
""",
    experiments=(
        _experiment(
            _NOISY_CART_POLE,
            12,
            _rates(AVERAGE, _NOISY_CART_POLE, 2.0, 4.0),
            _rates(ADVANTAGE_DOWN, _NOISY_CART_POLE, 2.0, 4.0),
        ),
        _experiment(
            NOISY_LUNAR_LANDER,
            10,
            _rates(AVERAGE, NOISY_LUNAR_LANDER, 0.5, 2.0),
            (ADVANTAGE_DOWN,),
        ),
        _experiment(
            NOISY_SENSORS,
            10,
            (
                *_rates(AVERAGE_BATCH, NOISY_SENSORS, 2.0),
                at_rate(AVERAGE, NOISY_SENSORS, 2.0),
            ),
            _rates(ADVANTAGE_UP_TWICE, NOISY_SENSORS, 2.0),
        ),
    ),
)
