"""On one GPU: the learner's time per update, and a whole round's, against stock RLlib.

    python benchmarks/gpu.py [--repeats 5] [--cpu]

Rows: stock RLlib's PPO; ours with autograd, as it was before steps were captured
(`fast_learner=False`); ours. Networks: 64-64 and 1024-1024-1024 on CartPole, and a convolutional
network on made-up images of 84 x 84 x 4. Batch 2048, minibatch 256, 6 epochs: 48 steps per update.
The learner is in the driver's process, env runners are on CPUs. The arms of a network take turns;
the table gives medians, and ratios of medians to stock's. `--cpu` puts the learner on the CPU, to
try the script.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from contenders import DQN_FILTERS
from machine import machine_line
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPOConfig

NETWORKS: dict[str, dict[str, Any]] = {
    "64-64": {"fcnet_hiddens": [64, 64]},
    "1024-1024-1024": {"fcnet_hiddens": [1024, 1024, 1024]},
    "CNN": {"conv_filters": DQN_FILTERS},
}
ARMS = ("stock RLlib", "ours, autograd", "ours", "ours, loss_weighted", "ours, actor_average")


class Images(gym.Env):
    """Noise to look at, and a reward that does not depend on the action."""

    action_space = gym.spaces.Discrete(6)

    def __init__(self, config: dict[str, Any]) -> None:
        # RLlib's own networks take floats only.
        dtype = np.uint8 if config["whole_numbers"] else np.float32
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 4), dtype)
        pool = np.random.default_rng(0).integers(0, 256, (32, 84, 84, 4))
        self._pool, self._steps = pool.astype(dtype), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Starts an episode of 100 steps."""
        self._steps = 0
        return self._pool[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Takes one of them."""
        self._steps += 1
        return self._pool[self._steps % 32], 1.0, self._steps >= 100, False, {}


def make_config(network: str, arm: str, num_gpus: int) -> PPOConfig:
    """Returns the config of a row."""
    is_stock = arm == "stock RLlib"
    config: Any = PPOConfig() if is_stock else WeightedPPOConfig()
    tune.register_env("images", Images)
    if network == "CNN":
        config.environment("images", env_config={"whole_numbers": not is_stock})
    else:
        config.environment("CartPole-v1")
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=4, num_cpus_per_env_runner=0.5)
    config.training(
        train_batch_size_per_learner=2048,
        minibatch_size=256,
        num_epochs=6,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    config.learners(num_learners=0, num_gpus_per_learner=num_gpus)
    config.rl_module(model_config=DefaultModelConfig(**NETWORKS[network]))
    if not is_stock:
        name = arm.removeprefix("ours").removeprefix(", ")
        strategy = name if name not in ("", "autograd") else "average"
        config.training(merge_strategy=strategy, merge_unit="env")
        config.learners(fast_learner=name != "autograd")
        if network == "CNN":
            config.rl_module(observation_scale=1 / 255)
    return config.debugging(seed=0)


class Row:
    """An algorithm whose updates and rounds are timed."""

    def __init__(self, config: PPOConfig) -> None:
        self.updates: list[float] = []
        self.rounds: list[float] = []
        self.algorithm = config.build_algo()
        self._update = self.algorithm.learner_group.update
        self.algorithm.learner_group.update = self._timed
        self.round()  # Warms up, and captures.
        self.updates.clear()
        self.rounds.clear()

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = self._update(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.updates.append(time.perf_counter() - started)
        return result

    def round(self) -> None:
        """Makes one round."""
        started = time.perf_counter()
        self.algorithm.train()
        self.rounds.append(time.perf_counter() - started)


def main() -> None:
    """Measures all rows and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--cpu", action="store_true", help="the learner on the CPU")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: --cpu runs the same with the learner on the CPU")
    device = "CPU" if args.cpu else torch.cuda.get_device_name()
    print(f"{device}; {machine_line()}; medians of {args.repeats}\n")
    print("| network | arm | s per update | stock / it | s per round | stock / it |")
    print("|---|---|---|---|---|---|")
    logging.getLogger("ray").setLevel(logging.ERROR)
    num_gpus = 0 if args.cpu else 1
    ray.init(num_cpus=4, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False)
    for network in args.networks:
        # Workers cannot have convolutions of their own that are computed at once.
        arms = [arm for arm in ARMS if network != "CNN" or "actor" not in arm]
        rows = {arm: Row(make_config(network, arm, num_gpus)) for arm in arms}
        for repeat in range(args.repeats):
            for arm in arms if repeat % 2 else reversed(arms):
                rows[arm].round()
        updates, rounds = (
            {arm: statistics.median(times) for arm, times in found.items()}
            for found in (
                {arm: row.updates for arm, row in rows.items()},
                {arm: row.rounds for arm, row in rows.items()},
            )
        )
        for arm, row in rows.items():
            print(
                f"| {network} | {arm} | {updates[arm]:.4f} | {updates[ARMS[0]] / updates[arm]:.2f} "
                f"| {rounds[arm]:.3f} | {rounds[ARMS[0]] / rounds[arm]:.2f} |",
                flush=True,
            )
            row.algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
