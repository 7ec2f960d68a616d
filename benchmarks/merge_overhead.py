"""Learner time per round of each merge strategy, as a ratio to `average`.

    python benchmarks/merge_overhead.py [--repeats 15] [--batch 4096] [--workers 8 64]

The same synthetic episodes go through one learner per strategy, in alternating order, so that
what else the machine does hits all of them alike; and it is the CPU time of one thread that counts,
not the time on the wall. Printed: the median over the repeats of (time of the strategy / time of
`average` in the same repeat), with its quartiles.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.orders import MergeOrder
from rllib_weighted.learning.worker_data import WorkerTrainingData
from rllib_weighted.merging import resolve_strategy

STRATEGIES = ("average", "reward_weighted", "loss_weighted", "actor_average")
OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
ACTIONS = gym.spaces.Discrete(4)


def make_learner(strategy: str, num_workers: int) -> WeightedPPOLearner:
    """Builds a learner in this process, as `num_learners=0` does."""
    config = (
        WeightedPPOConfig()
        .environment(observation_space=OBSERVATIONS, action_space=ACTIONS)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=num_workers // 2)
        .training(
            merge_strategy=strategy,
            merge_unit="env",
            use_kl_loss=False,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
        .debugging(seed=0)
    )
    learner = WeightedPPOLearner(config=config, module_spec=config.get_multi_rl_module_spec())
    learner.build()
    return learner


def make_episodes(num_workers: int, batch: int, seed: int) -> WorkerTrainingData:
    """Draws one episode chunk per worker; together they hold `batch` steps."""
    rng = np.random.default_rng(seed)
    length = batch // num_workers
    workers = {}
    for worker in range(num_workers):
        logits = rng.normal(size=(length, 4)).astype(np.float32)
        actions = rng.integers(0, 4, length)
        logp = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
        episode = SingleAgentEpisode(
            observations=rng.uniform(-1, 1, (length + 1, 8)).astype(np.float32),
            observation_space=OBSERVATIONS,
            infos=[{}] * (length + 1),
            actions=actions,
            action_space=ACTIONS,
            rewards=rng.normal(size=length),
            extra_model_outputs={
                "action_dist_inputs": logits,
                "action_logp": logp[np.arange(length), actions],
            },
            len_lookback_buffer=0,
        )
        workers[worker] = [episode.to_numpy()]
    return WorkerTrainingData.from_workers(workers)


def seconds(
    learner: WeightedPPOLearner, strategy: str, num_workers: int, batch: int, round: int
) -> float:
    """Returns the CPU time of one update: 10 epochs of minibatches of 256 steps."""
    data = make_episodes(num_workers, batch, round)
    order = MergeOrder(
        round=round,
        root_seed=0,
        num_workers=num_workers,
        strategy=resolve_strategy(strategy),
        reward_signals={worker: float(worker) for worker in range(num_workers)},
    )
    start = time.process_time()
    learner.update(
        training_data=data,
        merge=order,
        num_epochs=10,
        minibatch_size=256,
        shuffle_batch_per_epoch=True,
    )
    return time.process_time() - start


def main() -> None:
    """Runs the comparison and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"ray {ray.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, batch {args.batch}, {args.repeats} repeats\n"
    )
    print("| workers | strategy | learner CPU time / average | quartiles | s per round |")
    print("|---|---|---|---|---|")
    for num_workers in args.workers:
        learners = {strategy: make_learner(strategy, num_workers) for strategy in STRATEGIES}
        times: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
        for repeat in range(args.repeats + 1):
            for strategy in STRATEGIES if repeat % 2 else reversed(STRATEGIES):
                times[strategy].append(
                    seconds(learners[strategy], strategy, num_workers, args.batch, repeat + 1)
                )
        for strategy in STRATEGIES:
            ratios = np.array(times[strategy][1:]) / np.array(times["average"][1:])
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            print(
                f"| {num_workers} | `{strategy}` | {middle:.3f} | {low:.3f} – {high:.3f} "
                f"| {np.median(times[strategy][1:]):.3f} |"
            )


if __name__ == "__main__":
    main()
