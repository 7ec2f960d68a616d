"""A script: goes on from a checkpoint to the last round, and saves what comes out.

python -m tests.chaos.replay FROM TO
"""

from __future__ import annotations

import sys

import ray

from rllib_weighted import WeightedPPO
from tests.chaos.sweep import ROUNDS


def main() -> None:
    source, target = sys.argv[1:]
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    algorithm = WeightedPPO.from_checkpoint(source)
    while algorithm.rounds_done < ROUNDS:
        algorithm.train()
    algorithm.save_to_path(target)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
