"""Signals from the environment to the weights, in whole rounds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.records import read_history

pytestmark = pytest.mark.usefixtures("ray_session")


class Coin(gym.Env[np.ndarray, int]):
    """Episodes of five steps; heads, by the action that it ends with, is success."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self._says = (config or {}).get("says", True)
        self._t = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self._obs(), {}

    def step(self, action: int) -> Any:
        self._t += 1
        done = self._t == 5
        info = {"is_success": bool(action)} if done and self._says else {}
        return self._obs(), float(action), done, False, info

    def _obs(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def build(env: Any = Coin, env_config: Any = None, **training: Any) -> WeightedPPOConfig:
    settings: dict[str, Any] = {"train_batch_size": 80, "minibatch_size": 20, "num_epochs": 2}
    return (
        WeightedPPOConfig()
        .environment(env, env_config=env_config or {})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(merge_unit="env", **{**settings, **training})
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=3)
    )


def train(config: WeightedPPOConfig, rounds: int) -> tuple[WeightedPPO, dict[str, Any]]:
    algorithm = config.build_algo()
    result: dict[str, Any] = {}
    for _ in range(rounds):
        result = algorithm.train()
    return algorithm, result


@pytest.mark.parametrize("batch_mode", ["truncate_episodes", "complete_episodes"])
def test_success_is_the_same_on_arrays_and_in_rllibs_own_loop(batch_mode: str) -> None:
    found = []
    for fast in (True, False):
        config = build(merge_strategy="learnability")
        config.env_runners(fast_sampling=fast, batch_mode=batch_mode)
        algorithm, result = train(config, 3)
        known = algorithm._progress.episodes
        assert result["merge"]["fast_sampling"] == float(fast)
        assert result["merge"]["signal_age_mean"] == 0.0
        found.append((known.successes, known.returns, result["merge"]["workers"]["2"]["weight"]))
        algorithm.stop()
    assert found[0] == found[1]
    successes = found[0][0]
    assert successes.keys() == {0, 1, 2, 3}
    assert all(0 < k < n for k, n in successes.values())
    assert found[0][2] != 0.25


def test_an_environment_that_says_nothing_is_named(caplog: pytest.LogCaptureFixture) -> None:
    config = build(env_config={"says": False}, merge_strategy="learnability")
    with caplog.at_level(logging.WARNING, logger="rllib_weighted.algorithm"):
        algorithm, _ = train(config, 12)
    algorithm.stop()
    messages = [record.getMessage() for record in caplog.records]
    (message,) = (m for m in messages if "none of the episodes so far said it" in m)
    assert "success_return" in message


@pytest.mark.parametrize(("strategy", "warns"), [("reward_weighted", True), ("average", False)])
def test_old_signals_are_warned_of_once(
    strategy: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # Episodes of 200 steps, 10 a round: one ends in every 20th round, and signals grow old again.
    config = build("Pendulum-v1", merge_strategy=strategy, train_batch_size=40)
    with caplog.at_level(logging.WARNING, logger="rllib_weighted.algorithm"):
        algorithm, result = train(config, 56)
    algorithm.stop()
    messages = [r.getMessage() for r in caplog.records if "rounds old on average" in r.getMessage()]
    assert len(messages) == int(warns)
    assert result["merge"]["signal_age_mean"] == 16.0
    if warns:
        assert '{"signal": "reward_rate"}' in messages[0]


def test_diagnostics_reach_result_history_and_checkpoint(tmp_path: Path) -> None:
    config = build(merge_strategy="inverse_variance", merge_diagnostics_interval=2)
    config.env_runners(batch_mode="complete_episodes")
    algorithm, first = train(config, 1)
    second = algorithm.train()
    for result in (first, second):
        found = result["merge"]["diagnostics"]
        assert {"signal_norm", "noise_scale", "heterogeneity", "agreement"} <= found.keys()
        assert found["speed"]["average"] == pytest.approx(1.0)
        assert found["policy"]["speed"].keys() == found["speed"].keys()
    assert first["merge"]["signal_age_mean"] == 0.0
    assert second["merge"]["signal_age_mean"] == 1.0
    assert (
        first["merge"]["diagnostics"]["noise_scale"]
        == second["merge"]["diagnostics"]["noise_scale"]
    )
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    third = algorithm.train()
    assert third["merge"]["diagnostics"]["noise_scale"] != found["noise_scale"]
    history = read_history(Path(algorithm.logdir) / "merge_history")
    noise = np.array(history["gradient_noise"].to_pylist(), np.float64).reshape(-1, 4)
    assert (noise[0] == noise[1]).all()
    assert history["signal_age"].to_pylist()[:8] == [0] * 4 + [1] * 4
    algorithm.stop()
    again = config.copy(copy_frozen=False).build_algo()
    again.restore_from_path(path)
    repeated = again.train()
    again.stop()
    assert repeated["merge"]["diagnostics"] == third["merge"]["diagnostics"]
    weights = [r["merge"]["workers"]["1"]["weight"] for r in (repeated, third)]
    assert weights[0] == weights[1]
