"""The algorithm's own part: what a round logs, records and hands to evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.filter import RunningStat

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.records import read_history
from rllib_weighted.records.history import HISTORY_DIR, SCHEMA

pytestmark = pytest.mark.usefixtures("ray_session")


def small_config() -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=3,
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
        )
        .training(
            merge_unit="env",
            train_batch_size=300,
            minibatch_size=100,
            num_epochs=2,
            min_weight=0.5,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=1)
    )


@pytest.fixture
def build(request: pytest.FixtureRequest) -> Iterator[Any]:
    algorithms = []

    def build_one(config: WeightedPPOConfig) -> WeightedPPO:
        algorithms.append(config.build_algo())
        return algorithms[-1]

    yield build_one
    for algorithm in algorithms:
        algorithm.stop()


def test_a_round_logs_every_worker_and_records_it(build: Any) -> None:
    algorithm = build(small_config())
    merge = algorithm.train()["merge"]

    assert set(merge["workers"]) == {"0", "1", "2"}
    shares = [worker["share"] for worker in merge["workers"].values()]
    weights = [worker["weight"] for worker in merge["workers"].values()]
    assert sum(shares) == pytest.approx(1.0)
    assert weights == pytest.approx([share + 0.5 for share in shares])
    assert merge["share_min"] == min(shares)
    assert merge["share_max"] == max(shares)
    assert merge["share_entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert merge["effective_workers"] == pytest.approx(
        sum(weights) ** 2 / sum(w * w for w in weights)
    )
    assert (merge["num_workers"], merge["num_dropped"]) == (3, 0)

    algorithm.save_to_path()
    history = read_history(algorithm.logdir)
    assert history.schema.names == SCHEMA.names
    for row in history.to_pylist():
        logged = merge["workers"][str(row["worker"])]
        assert row["round"] == 1
        assert row["share"] == pytest.approx(logged["share"])
        assert row["weight"] == pytest.approx(logged["weight"])
        assert row["loss"] == pytest.approx(logged["loss"])
        assert row["signal"] == pytest.approx(logged["signal"])


def test_the_reward_signal_is_the_last_known_return(build: Any) -> None:
    """A worker none of whose episodes ended in a round keeps its signal."""
    config = small_config().training(train_batch_size=30, minibatch_size=30)
    algorithm = build(config)
    known: dict[str, float] = {}
    kept = 0
    for _ in range(12):
        for name, worker in algorithm.train()["merge"]["workers"].items():
            if worker["num_episodes"]:
                known[name] = worker["episode_return"]
            elif name in known:
                kept += 1
                assert math.isnan(worker["episode_return"])
            if name in known:
                assert worker["signal"] == pytest.approx(known[name])
            else:
                assert math.isnan(worker["signal"])
    assert kept > 0


@pytest.mark.parametrize("num_evaluation_env_runners", [0, 1])
def test_evaluation_filters_as_training_does(build: Any, num_evaluation_env_runners: int) -> None:
    config = small_config().evaluation(
        evaluation_interval=1,
        evaluation_duration=2,
        evaluation_num_env_runners=num_evaluation_env_runners,
    )
    algorithm = build(config)
    result = algorithm.train()
    assert result["evaluation"]["env_runners"]["num_episodes"] == 2

    (state,) = algorithm.eval_env_runner_group.foreach_env_runner(
        lambda env_runner: env_runner._env_to_module.get_state(),
        local_env_runner=num_evaluation_env_runners == 0,
    )
    own = algorithm.env_runner._env_to_module.get_state()
    trained, evaluated = (
        RunningStat.from_state(s["MeanStdFilter"][None]["running_stats"][0]) for s in (own, state)
    )
    # It has seen training's observations, and then its own.
    assert trained.num_pushes >= 300
    assert evaluated.num_pushes > trained.num_pushes


def test_a_trial_that_starts_anew_forgets_the_rounds_of_its_first_life(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill before the first checkpoint: Tune starts the trial in the same folder."""
    location = (LocalFileSystem(), str(tmp_path))
    monkeypatch.setattr(WeightedPPO, "_trial_folder", lambda self: location)
    for rounds in (3, 2):
        algorithm = build(small_config())
        for _ in range(rounds):
            algorithm.train()
        algorithm.save_to_path()
    history = read_history(tmp_path)
    assert history["round"].to_pylist() == [1] * 3 + [2] * 3
    files = (tmp_path / HISTORY_DIR).glob("*.parquet")
    assert sum(pq.read_metadata(file).num_rows for file in files) == 6
