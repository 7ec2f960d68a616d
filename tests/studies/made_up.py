"""A part and its runs, made up so that the true effect is known."""

import numpy as np
import pandas as pd

from studies.design import Arm, Experiment, Part, Task, digest

TASK = Task("task", "CartPole-v1", total_steps=1000, threshold=1.0, training={})
EXPERIMENT = Experiment(
    TASK,
    (Arm("base"), Arm("fast", {"lr": 1.0}), Arm("same", {"lr": 2.0})),
    seeds=tuple(range(20)),
    contrasts=(("fast", "base"), ("same", "base")),
)
PART = Part("made_up", "Made up", "Does it work?", "Nothing.", (EXPERIMENT,))


def row(arm, seed, steps, *, num_steps=1000, held_out=(0.0,), worst=()):
    reached = steps <= num_steps
    return {
        "experiment": "task",
        "arm": arm,
        "seed": seed,
        "digest": digest(TASK, EXPERIMENT.arm(arm)),
        "commit": "abc",
        "seconds": 1.0,
        "num_steps": num_steps,
        "steps_to_threshold": int(steps) if reached else None,
        "mean_score": 100.0 / steps,
        "final_score": 2.0,
        "env_steps": [100, 500, num_steps],
        "score": [0.0, 1.0, 2.0],
        "worst": list(worst),
        "held_out": list(held_out),
    }


def runs(speed=1.25, spread=0.2, num_seeds=20, num_steps=1000):
    """Arms "fast" and "same" take base's steps / speed and / 1, each times log-normal noise."""
    random = np.random.default_rng(0)
    rows = []
    for seed in range(num_seeds):
        shared = 400 * np.exp(0.1 * random.standard_normal())
        for arm, factor in (("base", 1.0), ("fast", speed), ("same", 1.0)):
            noise = np.exp(spread / 2**0.5 * random.standard_normal())
            rows.append(row(arm, seed, round(shared / factor * noise), num_steps=num_steps))
    return pd.DataFrame(rows)
