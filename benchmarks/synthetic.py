"""A learner in this process, and made-up rollouts for it."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.messages import UpdateRequest
from rllib_weighted.core.rollouts import CHUNK, RolloutColumns
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import ColumnTrainingData
from rllib_weighted.merging import resolve_strategy

OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
ACTIONS = gym.spaces.Discrete(4)
# BipedalWalker's sizes.
WIDE_OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (24,), np.float32)
WIDE_ACTIONS = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)


def make_learner(
    strategy: str,
    num_workers: int,
    *,
    hiddens: tuple[int, ...] = (64, 64),
    shares_layers: bool = True,
    observations: gym.Space = OBSERVATIONS,
    actions: gym.Space = ACTIONS,
) -> WeightedPPOLearner:
    """Builds a learner in this process, as `num_learners=0` does.

    Policy and value have their hidden layers in common, as `DefaultModelConfig` has it, unless
    `shares_layers` is False.
    """
    is_continuous = isinstance(actions, gym.spaces.Box)
    config = (
        WeightedPPOConfig()
        .environment(observation_space=observations, action_space=actions)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=num_workers // 2)
        .training(
            merge_strategy=strategy,
            merge_unit="env",
            use_kl_loss=False,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=list(hiddens),
                free_log_std=is_continuous,
                vf_share_layers=shares_layers,
            )
        )
        .debugging(seed=0)
    )
    learner = WeightedPPOLearner(config=config, module_spec=config.get_multi_rl_module_spec())
    learner.build()
    return learner


def make_rollouts(
    num_workers: int,
    batch: int,
    seed: int,
    *,
    observations: gym.Space = OBSERVATIONS,
    actions: gym.Space = ACTIONS,
) -> ColumnTrainingData:
    """Draws one episode chunk per worker; together they hold `batch` steps."""
    rng = np.random.default_rng(seed)
    length = batch // num_workers
    steps = num_workers * length
    if isinstance(actions, gym.spaces.Discrete):
        inputs = rng.normal(size=(steps, actions.n)).astype(np.float32)
        taken = rng.integers(0, actions.n, steps)
        logp = torch.log_softmax(torch.from_numpy(inputs), -1).numpy()[np.arange(steps), taken]
    else:
        inputs = np.zeros((steps, 2 * actions.shape[0]), np.float32)
        taken = rng.normal(size=(steps, *actions.shape)).astype(np.float32)
        density = torch.distributions.Normal(0.0, 1.0).log_prob(torch.from_numpy(taken))
        logp = density.sum(-1).numpy()
    chunks = np.zeros(num_workers, CHUNK)
    chunks["worker"], chunks["length"] = np.arange(num_workers), length
    shape = (steps + num_workers, *observations.shape)
    return ColumnTrainingData(
        columns=RolloutColumns(
            rng.uniform(-1, 1, shape).astype(np.float32),
            {
                Columns.ACTIONS: taken,
                Columns.REWARDS: rng.normal(size=steps),
                Columns.ACTION_LOGP: logp,
                Columns.ACTION_DIST_INPUTS: inputs,
            },
            chunks,
        )
    )


def update_seconds(
    learner: WeightedPPOLearner,
    strategy: str,
    data: ColumnTrainingData,
    *,
    num_workers: int,
    round: int,
    minibatch: int = 256,
    epochs: int = 10,
    measures_gradients: bool | None = None,
) -> tuple[float, float]:
    """Returns the seconds of one update: on the wall, and of this process on all cores.

    The workers' gradients are measured if the strategy reads their noise, or as is said.
    """
    resolved = resolve_strategy(strategy)
    predicts_gains = bool(measures_gradients)
    if measures_gradients is None:
        measures_gradients = any("gradient" in name for name in resolved.signals)
    known = {worker: float(worker) / num_workers for worker in range(num_workers)}
    order = UpdateRequest(
        round=round,
        root_seed=0,
        num_workers=num_workers,
        strategy=resolved,
        reward_signals={worker: float(worker) for worker in range(num_workers)},
        episode_signals={"success": known, "success_episodes": known, "return_variance": known},
        measures_gradients=measures_gradients,
        predicts_gains=predicts_gains,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    learner.update(
        training_data=data,
        merge=order,
        num_epochs=epochs,
        minibatch_size=minibatch,
        shuffle_batch_per_epoch=True,
    )
    return time.perf_counter() - wall, time.process_time() - cpu
