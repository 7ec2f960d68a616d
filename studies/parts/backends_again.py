"""EnvPool on LunarLander once more, with fresh seeds: is the average slower there?"""

from dataclasses import replace

from studies.design import Part
from studies.parts import backends

_FIRST = backends.PART.experiments[0]

PART = Part(
    name="backends_again",
    title="gymnasium and EnvPool, with fresh seeds",
    question="""
In the part above the mean return over the run was lower on EnvPool by 15 (3 to 27), p 0.02, one of
three measures; the speed 0.88 (0.77 to 1.01). A policy that had learned on gymnasium had the same
returns in both, 260 and 263, 400 episodes each. This part asks again.

They differ if the interval of the mean return over the run excludes no difference here, too; this
measure alone counts. If it does, results of the two backends must not be mixed, and the reason is
to be found. Prediction: no difference.
""",
    cuts="""
16 seeds see a difference of 15 about nine times in ten, if the spread is that of the part above.
""",
    experiments=(replace(_FIRST, seeds=tuple(range(13_000, 13_016))),),
)
