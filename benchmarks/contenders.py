"""One training run of one contender, in a process of its own; prints its rounds as JSON.

    python benchmarks/contenders.py CONTENDER ENVIRONMENT [--seconds 8]

All contenders train PPO with the same settings: 16 sub-environments, batches of 4096 steps,
minibatches of 256, 10 epochs (160 optimizer steps a round), separate 64-64 tanh networks for policy
and value, gradients clipped to norm 0.5, no KL term, no normalisation of observations or rewards.
RLlib and this package sample with two env runners of 8 sub-environments; this package merges 16
workers (`merge_unit="env"`). The first rounds are start-up and are not counted.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import typer

NUM_ENVS, NUM_ENV_RUNNERS = 16, 2
BATCH, MINIBATCH, EPOCHS = 4096, 256, 10
WARM_UP_ROUNDS, MIN_ROUNDS = 2, 5
OURS = ("average", "reward_weighted", "loss_weighted", "actor_average")
RLLIB, SB3_ONE, SB3_MANY = "rllib", "sb3 in one process", "sb3 in subprocesses"
CONTENDERS = (*OURS, RLLIB, SB3_ONE, SB3_MANY)


def resident_mib(pid: int | str = "self") -> float:
    """Returns the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def rllib_config(contender: str, environment: str) -> Any:
    """Returns the config of stock RLlib's PPO, or of this package with a merge strategy."""
    import gymnasium as gym
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    if contender == RLLIB:
        config = PPOConfig().training(train_batch_size_per_learner=BATCH)
    else:
        from rllib_weighted import WeightedPPOConfig

        config = WeightedPPOConfig().training(
            train_batch_size=BATCH, merge_strategy=contender, merge_unit="env"
        )
    with closing(gym.make(environment)) as env:
        model = DefaultModelConfig(
            fcnet_hiddens=[64, 64],
            vf_share_layers=False,  # As Stable-Baselines3; RLlib shares them unasked.
            free_log_std=isinstance(env.action_space, gym.spaces.Box),
        )
    return (
        config.environment(environment)
        .env_runners(
            num_env_runners=NUM_ENV_RUNNERS,
            num_envs_per_env_runner=NUM_ENVS // NUM_ENV_RUNNERS,
            num_cpus_per_env_runner=0.5,
        )
        .training(
            minibatch_size=MINIBATCH,
            num_epochs=EPOCHS,
            lr=3e-4,
            vf_loss_coeff=0.5,
            vf_clip_param=1e4,
            use_kl_loss=False,
            clip_param=0.2,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=model)
        .debugging(seed=0)
    )


def rllib_rounds(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with RLlib; yields the environment steps of each round."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    algorithm = rllib_config(contender, environment).build_algo()
    sampled = 0
    try:
        while True:
            result = algorithm.train()
            lifetime = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
            if not sampled:
                pids = algorithm.env_runner_group.foreach_env_runner(
                    lambda _: os.getpid(), local_env_runner=False
                )
                facts["env_runner_mib"] = max(map(resident_mib, pids))
            yield lifetime - sampled
            sampled = lifetime
    finally:
        algorithm.stop()
        ray.shutdown()


def sb3_rounds(contender: str, environment: str, facts: dict[str, Any]) -> Iterator[int]:
    """Trains with Stable-Baselines3; yields the environment steps of each round."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    kind = SubprocVecEnv if contender == SB3_MANY else DummyVecEnv
    vector = make_vec_env(environment, n_envs=NUM_ENVS, seed=0, vec_env_cls=kind)
    model = PPO(
        "MlpPolicy",
        vector,
        n_steps=BATCH // NUM_ENVS,
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        device="cpu",
    )
    try:
        while True:
            model.learn(total_timesteps=BATCH, reset_num_timesteps=False)
            yield BATCH
    finally:
        vector.close()


def main(
    contender: Annotated[str, typer.Argument(help=f"One of {', '.join(CONTENDERS)}.")],
    environment: Annotated[str, typer.Argument(help="A gymnasium id.")],
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 8.0,
    threads: Annotated[int, typer.Option(help="torch threads; 0: its own choice.")] = 0,
) -> None:
    """Runs one contender and prints seconds and steps of its rounds as one line of JSON."""
    started = time.time()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    if threads:
        torch.set_num_threads(threads)
    facts: dict[str, Any] = {"contender": contender, "environment": environment}
    train = sb3_rounds if contender.startswith("sb3") else rllib_rounds
    rounds: list[tuple[int, float]] = []
    total = 0.0
    with closing(train(contender, environment, facts)) as running:
        before = time.perf_counter()
        for number, steps in enumerate(running):
            now = time.perf_counter()
            if number == 0:
                facts["first_round_s"] = time.time() - started
            elif number >= WARM_UP_ROUNDS:
                rounds.append((steps, now - before))
                total += now - before
            if total >= seconds and len(rounds) >= MIN_ROUNDS:
                break
            before = time.perf_counter()
    print(json.dumps({**facts, "rounds": rounds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    typer.run(main)
