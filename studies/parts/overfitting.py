"""Few environments, large networks: does R overfit to those with a high reward?"""

from dataclasses import replace

from studies.design import Experiment, Part
from studies.parts.arms import AVERAGE, R_NORMALISED, L, R, against
from studies.parts.tasks import LUNAR_LANDER

_FIXED = {"env_seeding": "fixed"}
_ARMS = tuple(replace(arm, env_runners=_FIXED) for arm in (AVERAGE, R, R_NORMALISED, L))

PART = Part(
    name="overfitting",
    title="Overfitting: eight landscapes, a large network",
    question="""
The paper fears that R overfits to environments with a high reward where they are few. Eight
workers play eight fixed landscapes of LunarLander, with networks of 256-256. What overfits has a
lower greedy return on 40 held-out landscapes than the average has, at the same or a higher return
in training.

R overfits more than the average if the interval of the difference in held-out return lies below 0
after Holm's correction.
""",
    cuts="""
One environment, one size, ten seeds. BipedalWalker, whose terrain differs more, would take five
times as long.
""",
    experiments=(
        Experiment(
            replace(
                LUNAR_LANDER,
                name="LunarLander-v3, eight fixed landscapes, 256-256",
                hidden=(256, 256),
                held_out_episodes=40,
            ),
            _ARMS,
            tuple(range(5000, 5010)),
            against(_ARMS[0], *_ARMS[1:]),
        ),
    ),
)
