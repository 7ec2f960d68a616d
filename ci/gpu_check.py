"""Checks on a GPU that the learner's device and the number of learners do not change the result.

    python ci/gpu_check.py [--cpu] [--rounds 3]

Three rounds of every strategy with the learner on the CPU are compared with the same rounds on the
GPU: in the driver's process, in a process of its own, and with one learner per GPU (NCCL) where
there are several. The env runners stay on CPUs. Then the learner's time per round on both, for a
small and a large network, as a ratio; and a training on CartPole that has to learn. Without a
GPU it says so and ends with 0. `--cpu` runs the same checks with learner processes on CPUs.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import time
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig

STRATEGIES = (
    "average",
    "sum",
    "reward_weighted",
    "loss_weighted",
    "actor_average",
    "actor_sum",
)
TOLERANCE = 1e-4  # Relative; float32 sums in another order, through three rounds of Adam.


def make_config(strategy: str, hidden: int = 64, **settings: Any) -> WeightedPPOConfig:
    """Eight workers in two env runners on CPUs."""
    training = {"train_batch_size": 1024, "minibatch_size": 256, "num_epochs": 4, **settings}
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=4,
            num_cpus_per_env_runner=0.5,
            batch_mode="complete_episodes",
        )
        .training(
            merge_strategy=strategy,
            merge_unit="env",
            lr=1e-3,
            gamma=0.98,
            lambda_=0.9,
            vf_clip_param=1e4,
            use_kl_loss=False,
            grad_clip=0.5,
            grad_clip_by="global_norm",
            **training,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[hidden, hidden]))
        .debugging(seed=1)
    )


def parameters(algorithm: WeightedPPO) -> np.ndarray:
    """Returns all parameters of the policy, flat."""
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return np.concatenate([np.ravel(value) for value in state.values()])


def after(config: WeightedPPOConfig, rounds: int) -> np.ndarray:
    """Returns the parameters after some rounds."""
    algorithm = config.build_algo()
    try:
        for _ in range(rounds):
            algorithm.train()
        return parameters(algorithm)
    finally:
        algorithm.stop()


def check_invariance(placements: dict[str, dict[str, Any]], rounds: int) -> bool:
    """Compares every placement of the learners with one on the CPU; returns whether all agree."""
    fine = True
    print("| strategy | learners | relative difference to one on the CPU |\n|---|---|---|")
    for strategy in STRATEGIES:
        expected = after(make_config(strategy), rounds)
        for name, placement in placements.items():
            found = after(make_config(strategy).learners(**placement), rounds)
            error = float(np.abs(found - expected).max() / np.abs(expected).max())
            fine &= error <= TOLERANCE
            print(
                f"| `{strategy}` | {name} | {error:.1e}{'' if error <= TOLERANCE else ' FAILED'} |"
            )
    return fine


def learner_seconds(config: WeightedPPOConfig, rounds: int = 5) -> float:
    """Returns the median time of a learner update; the first round, which warms up, is left out."""
    algorithm = config.build_algo()
    times: list[float] = []
    update = algorithm.learner_group.update

    def timed(**kwargs: Any) -> Any:
        started = time.perf_counter()
        result = update(**kwargs)
        times.append(time.perf_counter() - started)
        return result

    algorithm.learner_group.update = timed
    for _ in range(rounds + 1):
        algorithm.train()
    algorithm.stop()
    return statistics.median(times[1:])


def print_times(placements: dict[str, dict[str, Any]]) -> None:
    """Prints learner time per round against one learner on the CPU."""
    print("\n| network | learners | s per round | against one on the CPU |\n|---|---|---|---|")
    for hidden in (64, 1024):
        base = learner_seconds(make_config("reward_weighted", hidden))
        print(f"| {hidden}-{hidden} | one on the CPU | {base:.3f} | 1.00 |")
        for name, placement in placements.items():
            config = make_config("reward_weighted", hidden).learners(**placement)
            seconds = learner_seconds(config)
            print(f"| {hidden}-{hidden} | {name} | {seconds:.3f} | {seconds / base:.2f} |")


def check_training(placement: dict[str, Any], rounds: int = 40) -> bool:
    """Trains CartPole; returns whether the return has at least doubled."""
    config = make_config("reward_weighted", num_epochs=10).learners(**placement)
    algorithm = config.build_algo()
    returns = [algorithm.train()["merge"]["episode_return_mean"] for _ in range(rounds)]
    algorithm.stop()
    print(f"\nCartPole-v1, {rounds} rounds: mean return {returns[0]:.0f} -> {returns[-1]:.0f}")
    return returns[-1] > 2 * returns[0]


def main() -> int:
    """Runs all checks; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="learner processes on CPUs instead")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    num_gpus = torch.cuda.device_count()
    if not num_gpus and not args.cpu:
        print("gpu_check: skipped, torch finds no GPU here (--cpu runs the same on CPUs).")
        return 0
    devices = [torch.cuda.get_device_name(i) for i in range(num_gpus)] or ["no GPU"]
    print(
        f"ray {ray.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {', '.join(devices)}\n"
    )
    gpus = 0 if args.cpu else 1
    unit = {"num_gpus_per_learner": gpus, "num_cpus_per_learner": 0 if gpus else 0.5}
    kind = "CPU" if args.cpu else "GPU"
    placements = {
        f"{kind}, the driver's process": {"num_learners": 0, "num_gpus_per_learner": gpus},
        f"{kind}, a process of its own": {"num_learners": 1, **unit},
    }
    if args.cpu or num_gpus > 1:
        placements[f"2 on {kind}s"] = {"num_learners": 2, **unit}
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(num_cpus=8, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False)
    fine = check_invariance(placements, args.rounds)
    print_times(placements)
    fine &= check_training(placements[f"{kind}, a process of its own"])
    ray.shutdown()
    print("\ngpu_check: passed" if fine else "\ngpu_check: FAILED")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
