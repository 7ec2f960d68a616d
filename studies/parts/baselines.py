"""RLlib's own algorithms beside ours: PPO, APPO, IMPALA, and A2C's update."""

from dataclasses import replace

from studies.design import Arm, Experiment, Part, Task
from studies.parts.arms import AVERAGE, R, against
from studies.parts.tasks import BIPEDAL_WALKER, CART_POLE, LUNAR_LANDER

PPO = Arm("RLlib's PPO", algorithm="PPO")
APPO = Arm("RLlib's APPO", {"train_batch_size_per_learner": 512}, algorithm="APPO")
IMPALA = Arm("RLlib's IMPALA", {"train_batch_size_per_learner": 512}, algorithm="IMPALA")
A2C = Arm(
    "A2C's update",
    {
        "merge_strategy": "average",
        "train_batch_size": 256,
        "minibatch_size": 256,
        "num_epochs": 1,
        "clip_param": 1e6,
        "advantage_normalization": "none",
        "lambda_": 1.0,
    },
)
_ARMS = (PPO, APPO, IMPALA, A2C, R)


def _experiment(task: Task, num_seeds: int, *arms: Arm) -> Experiment:
    plain = replace(task, env_backend="gymnasium")
    seeds = tuple(range(6000, 6000 + num_seeds))
    contrasts = against(PPO, AVERAGE, *(arm for arm in arms if arm is not PPO))
    return Experiment(plain, (AVERAGE, *arms), seeds, contrasts)


PART = Part(
    name="baselines",
    title="Beside RLlib's own algorithms",
    question="""
The paper names A3C and IMPALA as its next checks. RLlib 2.60 has PPO, APPO and IMPALA; A3C has
left it, and its update is that of PPO's learner with one epoch on the whole batch, no clipping,
returns of n steps and plain advantages (A2C). All have one process with eight sub-environments,
the network and the settings of our tuned examples as far as they have them, batches of 512 steps
for APPO and IMPALA and of 256 for A2C's update. No new default may be worse than stock PPO by
more than 5 %: the interval of the average's and R's speed against stock PPO is what says so.

With one process APPO and IMPALA lose what they were made for: sampling and learning at the same
time. Environment steps to the threshold are compared here, not seconds, and nobody's settings are
tuned.
""",
    cuts="""
Ten seeds on CartPole and LunarLander, ten on BipedalWalker with stock PPO and the average only:
APPO and IMPALA take three times as long there. No tuning of learning rates for APPO, IMPALA and
A2C.
""",
    experiments=(
        _experiment(CART_POLE, 10, *_ARMS),
        _experiment(LUNAR_LANDER, 10, *_ARMS),
        _experiment(BIPEDAL_WALKER, 10, PPO),
    ),
)
