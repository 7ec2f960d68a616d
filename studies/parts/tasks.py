"""Tasks that several parts share. What is here is part of every pre-registration that uses it."""

from __future__ import annotations

from typing import Any

from studies.design import Task

PPO: dict[str, Any] = {
    "minibatch_size": 256,
    "clip_param": 0.2,
    "vf_clip_param": 1e4,
    "vf_loss_coeff": 0.5,
    "use_kl_loss": False,
    "grad_clip": 0.5,
    "grad_clip_by": "global_norm",
}

CART_POLE = Task(
    name="CartPole-v1",
    env="CartPole-v1",
    total_steps=200_000,
    threshold=400.0,
    env_backend="envpool",
    training={
        **PPO,
        "train_batch_size": 1024,
        "num_epochs": 10,
        "lr": [[0, 1e-3], [150_000, 1e-4]],
        "gamma": 0.98,
        "lambda_": 0.9,
    },
)
"""The settings of `tuned_examples/cartpole.py`, in one process.

First registered with 150,000 steps and a threshold of 475, which most runs of every arm did not
reach: 51 of them, one to seven seeds, were looked at, and none is used."""

LUNAR_LANDER = Task(
    name="LunarLander-v3",
    env="LunarLander-v3",
    total_steps=400_000,
    threshold=200.0,
    reward_scale=0.05,
    training={
        **PPO,
        "train_batch_size": 4096,
        "num_epochs": 6,
        "lr": 5e-4,
        "gamma": 0.999,
        "lambda_": 0.98,
        "entropy_coeff": 0.01,
    },
)
"""The settings of `tuned_examples/lunarlander.py` with half its batch, in one process."""

BIPEDAL_WALKER = Task(
    name="BipedalWalker-v3",
    env="BipedalWalker-v3",
    total_steps=1_200_000,
    threshold=250.0,
    reward_scale=0.1,
    normalize_observations=True,
    env_backend="envpool",
    training={
        **PPO,
        "train_batch_size": 8192,
        "num_epochs": 10,
        "lr": [[0, 3e-4], [1_500_000, 5e-5]],
        "gamma": 0.99,
        "lambda_": 0.95,
    },
)
"""The settings of `tuned_examples/bipedal.py`, in one process."""
