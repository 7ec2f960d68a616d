"""The paper's setting: identical environments, its merges, three environments, three networks."""

from dataclasses import replace

from studies.design import Arm, Experiment, Part, Task
from studies.parts.arms import (
    ACTOR_AVERAGE,
    ACTOR_SUM,
    AVERAGE_BATCH,
    L_LOW,
    L_LOW_NORMALISED,
    L_NORMALISED,
    MEASURED,
    R_NORMALISED,
    R_RANDOM_NORMALISED,
    SUM,
    L,
    R,
    against,
)
from studies.parts.tasks import BIPEDAL_WALKER, CART_POLE, LUNAR_LANDER

_PAPERS = (SUM, R, L, L_LOW, ACTOR_AVERAGE, ACTOR_SUM)
_CONTROLS = (AVERAGE_BATCH, R_NORMALISED, L_NORMALISED, L_LOW_NORMALISED, R_RANDOM_NORMALISED)


def _experiment(task: Task, seeds: range, *arms: Arm) -> Experiment:
    return Experiment(task, (MEASURED, *arms), tuple(seeds), against(MEASURED, *arms))


def _network(task: Task, size: int) -> Task:
    return replace(task, name=f"{task.name}, {size}-{size}", hidden=(size, size))


def _fixed_experiment(task: Task, seeds: range, *arms: Arm) -> Experiment:
    """Returns arms whose environments are the same in every episode of a worker."""
    seeded = replace(task, name=f"{task.name}, fixed seeds", env_backend="gymnasium")
    fixed = [replace(arm, env_runners={"env_seeding": "fixed"}) for arm in (MEASURED, *arms)]
    return Experiment(seeded, tuple(fixed), tuple(seeds), against(MEASURED, *arms))


_LUNAR_LANDER = replace(LUNAR_LANDER, env_backend="envpool")
_LARGE = replace(
    _network(CART_POLE, 600),
    name="CartPole-v1, 600-600, separate networks",
    vf_share_layers=False,
    total_steps=150_000,
)

PART = Part(
    name="paper",
    title="The paper's setting: identical environments",
    question="""
arXiv 2304.12778 trains workers with differently initialised copies of one environment, and claims
that R converges up to 20.14 % sooner than the usual merges, and that L and R gain 13.84 % and
2.33 % of cumulative reward. Every arm is compared with the average (normalised per worker), by
environment steps to the threshold, mean return over the run, and greedy return on held-out seeds.

- The claim of a merge is confirmed on a task if the 95 % interval of its speed lies above 1 after
  Holm's correction over all of this part's contrasts, and reaches the paper's figure if the
  interval includes 1.25 (20.14 % sooner) or lies above it. It is refuted if the interval lies
  below 1.25.
- "Normalised" arms have weights that sum to 1: what they gain is due to the direction. What the
  plain arms gain beyond that is the size of the step.
- Random shares say whether any unequal weights would have done the same.
- "Fixed seeds": every episode of a worker starts in the same environment, so that there is
  something persistent to weigh.
""",
    cuts="""
Ten seeds everywhere (LunarLander's main arms have 20 in the part above; BipedalWalker would need
seven hours for 20). LunarLander's stream seeds lack the arms that the part above has, and L low,
the mirror image of L. Networks of 256-256 and 600-600 (separate for policy and value: 730,000
parameters, 150,000 steps) run on CartPole with the main arms, 256-256 with R also on LunarLander; a
large network on BipedalWalker would cost more than the rest of the study. All are stepped by
EnvPool, except with fixed seeds, which it does not have. Fixed seeds on LunarLander are in the part
on overfitting, with a large network; on BipedalWalker they are left out, and batch normalisation
too.

Settled before the first run of this part: CartPole's length and threshold (see `tasks.py`), EnvPool
for LunarLander, and, when the study had used two thirds of its twelve hours of two cores, the arms.
""",
    experiments=(
        _experiment(CART_POLE, range(2000, 2010), *_PAPERS, *_CONTROLS),
        _fixed_experiment(CART_POLE, range(2000, 2010), R, L, ACTOR_AVERAGE, ACTOR_SUM),
        _experiment(_LUNAR_LANDER, range(2000, 2010), L, ACTOR_AVERAGE, ACTOR_SUM),
        _experiment(_network(CART_POLE, 256), range(2000, 2010), SUM, R, L),
        _experiment(_LARGE, range(2000, 2010), R, L),
        _experiment(_network(_LUNAR_LANDER, 256), range(2000, 2010), R),
        _experiment(BIPEDAL_WALKER, range(2000, 2010), R, L),
    ),
)
