"""Learner time per round of each merge strategy, as a ratio to `average`.

    python benchmarks/merge_overhead.py [--repeats 15] [--batch 4096] [--workers 8 64]

The same synthetic episodes go through one learner per strategy, in alternating order, so that
what else the machine does hits all of them alike; and it is the CPU time of one thread that counts,
not the time on the wall. Printed: the median over the repeats of (time of the strategy / time of
`average` in the same repeat), with its quartiles.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import machine_line
from synthetic import make_learner, make_rollouts, update_seconds

STRATEGIES = (
    "average",
    "reward_weighted",
    "loss_weighted",
    "actor_average",
    "learnability",
    "advantage_scaled",
    "inverse_variance",
    "torchjd",
)
MEASURED = "average, measured"  # With diagnostics in every round.


def main() -> None:
    """Runs the comparison and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine_line()}; batch {args.batch}, {args.repeats} repeats\n")
    print("| workers | strategy | learner CPU time / average | quartiles | s per round |")
    print("|---|---|---|---|---|")
    for num_workers in args.workers:
        arms = {arm: arm.split(",")[0] for arm in (*STRATEGIES, MEASURED)}
        learners = {arm: make_learner(strategy, num_workers) for arm, strategy in arms.items()}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for repeat in range(args.repeats + 1):
            for arm in arms if repeat % 2 else reversed(arms):
                data = make_rollouts(num_workers, args.batch, repeat)
                _, cpu = update_seconds(
                    learners[arm],
                    arms[arm],
                    data,
                    num_workers=num_workers,
                    round=repeat + 1,
                    measures_gradients=True if arm == MEASURED else None,
                )
                times[arm].append(cpu)
        for arm in arms:
            ratios = np.array(times[arm][1:]) / np.array(times["average"][1:])
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            print(
                f"| {num_workers} | `{arm}` | {middle:.3f} | {low:.3f} – {high:.3f} "
                f"| {np.median(times[arm][1:]):.3f} |"
            )


if __name__ == "__main__":
    main()
