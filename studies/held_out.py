"""How good a trained policy is where it has never been: greedy episodes on seeds kept apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils.spaces.space_utils import unsquash_action

from rllib_weighted._private import env_to_module, filtered
from rllib_weighted.core.envs import env_creator
from studies.design import Context, Task

Filter: TypeAlias = Callable[[np.ndarray], np.ndarray]

_FIRST_SEED = 2**30 + 1  # Odd: training's seeds are even, see `core.seeding.environment_seed`.
_MOST_STEPS = 10_000  # No environment here has longer episodes.


def held_out_returns(algorithm: Any, task: Task) -> list[float]:
    """Returns the mean return of the greedy policy in each held-out context.

    Args:
        algorithm: A trained algorithm with a local env runner.
        task: Says the contexts and the number of episodes. Seeds are the same for every run.
    """
    return context_returns(algorithm, task, task.held_out, task.held_out_episodes)


def context_returns(
    algorithm: Any, task: Task, contexts: Sequence[Context], num_episodes: int
) -> list[float]:
    """Returns the mean return of the greedy policy in each context, on held-out seeds."""
    create = env_creator(task.env)

    def environment(context: Context) -> gym.Env[Any, Any]:
        return create(EnvContext(dict(context), worker_index=0))

    made = [environment(context) for context in contexts for _ in range(num_episodes)]
    returns = greedy_returns(algorithm.get_module(), made, observation_filter(algorithm))
    return np.reshape(returns, (len(contexts), num_episodes)).mean(axis=1).tolist()


def observation_filter(algorithm: Any) -> Filter:
    """Returns what the policy sees of rows of observations `[n, d]`."""
    for connector in env_to_module(algorithm.env_runner).connectors:
        if isinstance(connector, MeanStdFilter):
            own = copy.deepcopy(connector)  # It learns from what it sees; training's must not.
            return lambda rows: np.stack(filtered(own, rows))
    return lambda rows: rows


@torch.no_grad()
def greedy_returns(
    module: Any,
    environments: list[gym.Env[Any, Any]],
    seen: Filter = lambda rows: rows,
) -> list[float]:
    """Plays an episode in each environment, all in step; closes them.

    Args:
        module: An RLModule with one head of action parameters.
        environments: Environment k is reset with the k-th held-out seed.
        seen: What the policy sees of rows of observations.

    Returns:
        The undiscounted returns.
    """
    space = environments[0].action_space
    seeds = range(_FIRST_SEED, _FIRST_SEED + 2 * len(environments), 2)
    observations = [env.reset(seed=s)[0] for env, s in zip(environments, seeds, strict=True)]
    returns, running = [0.0] * len(environments), list(range(len(environments)))
    for _ in range(_MOST_STEPS):
        rows = seen(np.stack([observations[index] for index in running]).astype(np.float32))
        outputs = module.forward_inference({Columns.OBS: torch.from_numpy(rows)})
        actions = _greedy(outputs[Columns.ACTION_DIST_INPUTS].numpy(), space)
        still = []
        for index, action in zip(running, actions, strict=True):
            observations[index], reward, ended, cut, _ = environments[index].step(action)
            returns[index] += float(reward)
            if not (ended or cut):
                still.append(index)
        running = still
        if not running:
            break
    for env in environments:
        env.close()
    return returns


def _greedy(parameters: np.ndarray, space: gym.Space[Any]) -> Any:
    """Returns the most likely actions, as the environment takes them."""
    if isinstance(space, gym.spaces.Discrete):
        return parameters.argmax(axis=-1) + int(space.start)
    means = parameters[:, : space.shape[0]]  # type: ignore[index]
    return [unsquash_action(mean, space) for mean in means]
