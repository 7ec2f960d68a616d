"""Runs a part of a few seconds into the folder that it is given; a test kills it."""

import sys
from pathlib import Path

from studies import running
from studies.design import Arm, Experiment, Part, Task

TASK = Task(
    "CartPole",
    "CartPole-v1",
    total_steps=512,
    threshold=15.0,
    num_workers=2,
    hidden=(8,),
    held_out_episodes=2,
    training={"train_batch_size": 256, "minibatch_size": 128, "num_epochs": 1},
)
ARMS = (Arm("average", {"merge_strategy": "average"}), Arm("sum", {"merge_strategy": "sum"}))
PART = Part("tiny", "", "", "", (Experiment(TASK, ARMS, (1, 2, 3), ()),))

if __name__ == "__main__":
    missing = running.run(PART, processes=1, folder=Path(sys.argv[1]))
    sys.exit(missing)
