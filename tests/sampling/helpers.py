"""Env runners without an algorithm and without Ray."""

from __future__ import annotations

from typing import Any

import torch

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.sampling.env_runner import WeightedEnvRunner

SEED = 3


def make_config(env: Any = "CartPole-v1", **env_runners: Any) -> WeightedPPOConfig:
    """A small config with 2 sub-environments in the local env runner, each a worker."""
    settings = {"num_env_runners": 0, "num_envs_per_env_runner": 2, **env_runners}
    return (
        WeightedPPOConfig()
        .environment(env)
        .env_runners(**settings)
        .training(merge_unit="env", train_batch_size=40, minibatch_size=20)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=SEED)
    )


def make_runner(
    config: WeightedPPOConfig, *, worker_index: int | None = 0, cls: type = WeightedEnvRunner
) -> WeightedEnvRunner:
    config = config.copy(copy_frozen=False)
    config.env_runner_cls = cls
    config.validate()
    torch.manual_seed(0)  # The module's weights.
    runner: WeightedEnvRunner = cls(config=config, worker_index=worker_index, num_workers=0)
    return runner


def sample(
    runner: WeightedEnvRunner,
    round: int = 1,
    num_resets: dict[int, int] | None = None,
    **request: Any,
) -> SampleResult:
    """Samples a round that must not fail."""
    result = runner.sample_round(SampleRequest(round, SEED, {}, num_resets or {}, **request))
    assert result.error is None, result.error
    return result
