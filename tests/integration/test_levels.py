"""Levels and contexts in whole runs: who plays what, whatever the layout, and after a restore."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.records import read_history

pytestmark = pytest.mark.usefixtures("ray_session")

POOL = 24


class Lengthy(gym.Env):
    """Episode length and return follow from the level alone; `info` says whether it was long."""

    observation_space = gym.spaces.Box(-1000.0, 1000.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, context: Any) -> None:
        self.gain = context.get("gain", 1.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 9))
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        info = {"is_success": self.length > 5}
        return self._obs(), self.gain, self.t >= self.length, False, info

    def _obs(self) -> Any:
        return np.array([self.t, self.gain], np.float32)


def make_config(env: Any = Lengthy, **env_runners: Any) -> Any:
    settings: dict[str, Any] = {
        "num_env_runners": 2,
        "num_envs_per_env_runner": 2,
        "batch_mode": "complete_episodes",
        "env_seeding": "prioritized",
        "level_options": {"pool": POOL, "score": "return", "beta": 1.0},
        **env_runners,
    }
    return (
        WeightedPPOConfig()
        .environment(env)
        .env_runners(**settings)
        .training(merge_unit="env", train_batch_size=120, minibatch_size=40, num_epochs=1, lr=1e-2)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=4)
    )


@contextlib.contextmanager
def running(config: Any) -> Iterator[WeightedPPO]:
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def parameters(algorithm: WeightedPPO) -> np.ndarray:
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return np.concatenate([np.ravel(state[name]) for name in sorted(state)])


def history(algorithm: WeightedPPO) -> list[Any]:
    """What was played: (round, worker, levels, returns)."""
    names = ["round", "worker", "levels", "level_returns"]
    table = read_history(algorithm.logdir, columns=names)
    return [tuple(row[name] for name in names) for row in table.to_pylist()]


def run(config: Any, rounds: int = 5) -> tuple[list[Any], list[Any], np.ndarray]:
    with running(config) as algorithm:
        results = [algorithm.train()["merge"]["levels"] for _ in range(rounds)]
        after = parameters(algorithm)
    return history(algorithm), results, after


@pytest.fixture(scope="module")
def first_run(ray_session: None) -> Any:
    return run(make_config())


def test_all_levels_are_seen_and_then_the_high_ones_preferred(first_run: Any) -> None:
    played, results, _ = first_run
    assert [result["seen"] for result in results] == sorted(result["seen"] for result in results)
    assert results[-1]["seen"] == POOL
    assert all(1 < result["effective"] < result["seen"] for result in results)
    returns: dict[int, set[float]] = {}
    for _, _, levels, own in played:
        for level, value in zip(levels, own, strict=True):
            returns.setdefault(level, set()).add(value)
    assert all(len(values) == 1 for values in returns.values())  # A level is one environment.
    value_of = {level: min(values) for level, values in returns.items()}
    per_round: dict[int, list[float]] = {}
    for round_, _, levels, _ in played:
        per_round.setdefault(round_, []).extend(value_of[level] for level in levels)
    assert np.mean(per_round[5]) > np.mean(per_round[1]) + 0.5
    assert results[-1]["score_mean"] == pytest.approx(np.mean([*value_of.values()]))


@pytest.mark.slow
@pytest.mark.parametrize(("env_runners", "envs", "learners"), [(4, 1, 0), (0, 4, 0), (2, 2, 2)])
def test_any_number_of_env_runners_and_learners_plays_the_same(
    first_run: Any, env_runners: int, envs: int, learners: int
) -> None:
    config = make_config(num_env_runners=env_runners, num_envs_per_env_runner=envs)
    played, results, _ = run(config.learners(num_learners=learners, num_cpus_per_learner=0.5))
    assert played == first_run[0]
    assert results == first_run[1]


@pytest.mark.slow
def test_another_seed_plays_others(first_run: Any) -> None:
    assert run(make_config().debugging(seed=5))[0] != first_run[0]


@pytest.mark.slow
def test_value_errors_of_all_learners_score_the_levels() -> None:
    options = {"pool": POOL}
    scores = []
    for learners in (0, 2):
        config = make_config(level_options=options)
        config.learners(num_learners=learners, num_cpus_per_learner=0.5)
        _, results, _ = run(config, 2)
        scores.append([result["score_mean"] for result in results])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert all(score > 0 for score in scores[0])


@pytest.mark.slow
def test_what_env_says_of_success_makes_levels_learnable(tmp_path: Path) -> None:
    options = {"pool": POOL, "score": "learnability"}
    scores = [
        run(make_config(level_options=options, fast_sampling=fast), 2)[1][-1]["score_mean"]
        for fast in (True, False)
    ]
    assert scores[0] == scores[1]
    # One level, always or never long: k = 0 or n of n; 1 of 3 and 2 of 3 give 2/9, and less later.
    assert 0 < scores[0] <= 2 / 9


@pytest.mark.slow
@pytest.mark.parametrize("score", ["value_error", "learnability"])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, score: str) -> None:
    config = make_config("CartPole-v1", level_options={"pool": 12, "score": score, "beta": 0.5})
    with running(config) as straight:
        for _ in range(3):
            straight.train()
        straight.save_to_path(tmp_path / "checkpoint")
        expected = [straight.train()["merge"] for _ in range(3)]
        end = parameters(straight)
    resumed = WeightedPPO.from_checkpoint(str(tmp_path / "checkpoint"))
    try:
        found = [resumed.train()["merge"] for _ in range(3)]
        np.testing.assert_array_equal(parameters(resumed), end)
    finally:
        resumed.stop()
    assert found == expected
    assert history(resumed) == [row for row in history(straight) if row[0] > 3]


@pytest.mark.slow
def test_truncated_episodes_have_their_levels_too() -> None:
    played, results, _ = run(make_config(batch_mode="truncate_episodes"))
    assert results[-1]["seen"] == POOL
    assert all(math.isfinite(value) for *_, own in played for value in own)


# Contexts


@pytest.mark.slow
def test_workers_act_in_their_own_contexts_and_evaluation_in_all() -> None:
    gains = [1.0, 2.0, 4.0, 8.0]
    config = make_config(
        env_seeding="stream",
        level_options={},
        worker_env_config=[{"gain": gain} for gain in gains],
    ).evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=1,
        evaluation_duration=8,
        evaluation_config={"num_envs_per_env_runner": 1},
    )
    with running(config) as algorithm:
        result = algorithm.train()
        per_step = [worker["episode_return"] for worker in result["merge"]["workers"].values()]
        evaluated = result["evaluation"]["env_runners"]
    assert all(gain * 2 <= value <= gain * 8 for gain, value in zip(gains, per_step, strict=True))
    # Two episodes of each context, 2 to 8 steps long.
    assert 16 <= evaluated["episode_return_max"] <= 64
    assert evaluated["episode_return_min"] <= 8


def test_a_bad_context_of_an_environment_is_told_before_anything_starts() -> None:
    config = make_config("CartPole-v1", worker_env_config=lambda worker: {"gravity": worker})
    with pytest.raises(ValueError, match=r"keys that 'CartPole-v1' takes .*found 'gravity'"):
        config.build_algo()
