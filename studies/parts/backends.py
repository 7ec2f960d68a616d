"""Does it matter to learning who steps the environments, gymnasium or EnvPool?"""

from dataclasses import replace

from studies.design import Experiment, Part
from studies.parts.arms import AVERAGE, against
from studies.parts.tasks import LUNAR_LANDER

_ON_ENVPOOL = replace(AVERAGE, name="average on EnvPool", task={"env_backend": "envpool"})

PART = Part(
    name="backends",
    title="gymnasium and EnvPool",
    question="""
EnvPool steps LunarLander with code of its own, and its seeds are other episodes than gymnasium's.
Does the average learn the same on both? The settings are those of the part on LunarLander, the
seeds fresh ones.

They differ if an interval of the speed, the mean return over the run or the held-out return
(greedy, in gymnasium's environment for both) excludes no difference. The power says what would have
been seen. Prediction: no difference.
""",
    cuts="""
Ten seeds, one environment.
""",
    experiments=(
        Experiment(
            LUNAR_LANDER,
            (AVERAGE, _ON_ENVPOOL),
            tuple(range(11_000, 11_010)),
            against(AVERAGE, _ON_ENVPOOL),
        ),
    ),
)
