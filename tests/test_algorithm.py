"""The algorithm's own part: what a round logs, records and hands to evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.filter import RunningStat

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.records import read_history
from rllib_weighted.records.history import HISTORY_DIR, SCHEMA
from tests.sampling.envs import INF, NAN, ScriptedEnv

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


# After a round


def weights_and_steps(env_runner: Any) -> tuple[list[np.ndarray], int]:
    state = env_runner.get_state()
    return list(state["rl_module"].values()), state["num_env_steps_sampled_lifetime"]


@pytest.mark.slow
def test_after_a_round_env_runners_hold_its_weights_and_counter(build: Any) -> None:
    """As RLlib's do: a user's own evaluation of them is that of the newest policy."""
    algorithm = build(small_config().env_runners(num_env_runners=2, num_envs_per_env_runner=2))
    before = None
    for _ in range(2):
        steps = algorithm.train()["num_env_steps_sampled_lifetime"]
        learner = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
        found = algorithm.env_runner_group.foreach_env_runner(weights_and_steps)
        assert len(found) == 3  # The local one, and two.
        for weights, counter in found:
            names = algorithm.env_runner.get_state()["rl_module"]
            for name, value in zip(names, weights, strict=True):
                np.testing.assert_array_equal(value, learner[name])
            assert counter == steps
        assert before is None or not np.array_equal(before, found[1][0][0])
        before = found[1][0][0]


# Rounds in which nothing is learned


def invalid_config(**env_config: Any) -> WeightedPPOConfig:
    settings = {"length": 10, "rewards": {3: NAN}, **env_config}
    return small_config().environment(ScriptedEnv, env_config=settings)


def test_rounds_without_an_update_warn_and_end_the_run(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm = build(invalid_config().fault_tolerance(max_rounds_without_update=2))
    merge = algorithm.train()["merge"]
    cause = "sub-environment 0: reward nan"
    assert merge["num_dropped"] == 3
    assert merge["drop_cause"] == f"worker 0 (and 2 more): {cause}"
    assert f"nothing was learned. The first: round 1, worker 0: {cause}" in caplog.text
    with pytest.raises(RuntimeError, match=rf"2 rounds in a row.*first cause: round 1.*{cause}"):
        algorithm.train()
    assert set(read_history(algorithm.logdir)["round"].to_pylist()) == {1, 2}  # Also the last one.


def test_a_run_without_drops_names_no_cause(build: Any) -> None:
    assert "drop_cause" not in build(small_config()).train()["merge"]


# Returns that are not finite


# Stock PPO's own, and its learner's arithmetic with infinite rewards.
@pytest.mark.filterwarnings("ignore:.*Overriding environment:UserWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("remote", [0, 1])
def test_returns_in_training_and_evaluation_are_those_of_stock_ppo(
    build: Any, value: float, remote: int
) -> None:
    rewards = {10: value}

    def of(config: Any) -> list[float]:
        config = config.environment(ScriptedEnv, env_config={"length": 10, "rewards": rewards})
        config.evaluation(
            evaluation_interval=1, evaluation_duration=3, evaluation_num_env_runners=remote
        )
        result = build(config).train()
        return [
            (result if part is None else result[part])["env_runners"][f"episode_return_{kind}"]
            for part in (None, "evaluation")
            for kind in ("mean", "min", "max")
        ]

    stock = PPOConfig().env_runners(num_env_runners=0, num_envs_per_env_runner=3)
    stock.training(train_batch_size=300, minibatch_size=100, num_epochs=1)
    np.testing.assert_equal(of(small_config()), of(stock))


# Interruptions


def test_an_interrupted_round_is_begun_anew(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config().environment(ScriptedEnv, env_config={"length": 10})
    algorithm = build(config.training(train_batch_size=45, minibatch_size=15))
    algorithm.train()
    runner, stepped = algorithm.env_runner, []

    class Stopped(ScriptedEnv):
        def step(self, action: Any) -> Any:
            stepped.append(action)
            if len(stepped) == 20:
                raise KeyboardInterrupt
            return super().step(action)

    for env in runner.env.unwrapped.envs:
        env.unwrapped.__class__ = Stopped
    with pytest.raises(KeyboardInterrupt):
        algorithm.train()
    assert algorithm.rounds_done == 1
    results = [algorithm.train() for _ in range(3)]
    for result in results:
        assert result["env_runners"]["episode_len_min"] == 10
    assert [result["training_iteration"] for result in results] == [2, 3, 4]
    algorithm.save_to_path()
    assert set(read_history(algorithm.logdir)["round"].to_pylist()) == {1, 2, 3, 4}


# Checkpoints of something else


def trained(build: Any, config: Any, path: Path) -> str:
    algorithm = build(config)
    algorithm.train()
    return str(algorithm.save_to_path(str(path)))


@pytest.mark.parametrize(
    ("changes", "unit", "keeps_counters"),
    [
        ({"num_envs_per_env_runner": 2}, "env", False),
        ({"num_envs_per_env_runner": 3}, "env_runner", True),
    ],
)
def test_what_of_other_workers_is_dropped_is_said(
    build: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    unit: str,
    keeps_counters: bool,
) -> None:
    path = trained(build, small_config(), tmp_path / "checkpoint")
    other = small_config().env_runners(**changes)
    other.training(merge_unit=unit, merge_strategy="loss_weighted" if unit == "env" else "average")
    restored = build(other)
    restored.restore_from_path(path)
    (text,) = [r.getMessage() for r in caplog.records if "Dropped" in r.getMessage()]
    assert "of 3 workers (`num_env_runners`=0, `num_envs_per_env_runner`=3" in text
    assert ("and the counters of the environments' seeds" in text) is not keeps_counters
    assert restored._progress.last_returns == {}
    assert bool(restored._progress.num_resets) is keeps_counters
    assert restored._progress.recent_returns
    assert restored.train()["training_iteration"] == 2


@pytest.mark.slow
def test_the_same_workers_in_other_processes_keep_everything(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = trained(build, small_config(), tmp_path / "checkpoint")
    other = small_config().env_runners(num_env_runners=3, num_envs_per_env_runner=1)
    restored = build(other)
    restored.restore_from_path(path)
    assert "Dropped" not in caplog.text
    assert len(restored._progress.last_returns) == len(restored._progress.num_resets) == 3


def test_a_checkpoint_of_0_1_with_other_slots_is_said_too(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm = build(small_config())
    algorithm.train()
    state = algorithm.get_state()
    del state["weighted_ppo"]["layout"]
    algorithm.set_state(state)
    assert "Dropped" not in caplog.text
    state["weighted_ppo"]["num_resets"] = dict.fromkeys(range(8), 1)
    algorithm.set_state(state)
    assert "of another number of sub-environments" in caplog.text
    assert algorithm._progress.num_resets == {}


def test_a_checkpoint_of_stock_ppo_is_taken_and_said(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=3,
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
        )
        .training(train_batch_size=300, minibatch_size=100, num_epochs=1)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
    )
    path = trained(build, stock, tmp_path / "checkpoint")
    algorithm = build(small_config())
    with caplog.at_level(logging.WARNING):
        algorithm.restore_from_path(path)
    assert "of an algorithm that does not merge (RLlib's PPO?)" in caplog.text
    assert algorithm.train()["training_iteration"] == 2
    algorithm.save_to_path()
    assert set(read_history(algorithm.logdir)["round"].to_pylist()) == {2}
