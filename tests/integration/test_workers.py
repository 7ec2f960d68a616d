"""Seeds, drops and restarts of workers, through the public interface of whole runs."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.utils.filter import RunningStat

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.fault_tolerance import kill_unresponsive
from rllib_weighted.records import read_history
from tests.sampling.envs import INF, NAN, ScriptedEnv, written

pytestmark = pytest.mark.usefixtures("ray_session")


def make_config(env: Any = "CartPole-v1", *, unit: str = "env", **runners: Any) -> Any:
    """2 remote env runners with 2 sub-environments each, and 10 steps of each in a round."""
    settings = {"num_env_runners": 2, "num_envs_per_env_runner": 2, **runners}
    return (
        WeightedPPOConfig()
        .environment(env)
        .env_runners(**settings)
        .training(merge_unit=unit, train_batch_size=40, minibatch_size=20, num_epochs=1, lr=1e-2)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=1)
    )


def scripted(
    folder: Path | None = None, env_config: dict[str, Any] | None = None, **kw: Any
) -> Any:
    places = {} if folder is None else {"folder": str(folder)}
    return make_config(ScriptedEnv, **kw).environment(env_config={**places, **(env_config or {})})


@contextlib.contextmanager
def running(config: Any) -> Iterator[WeightedPPO]:
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def make_filter(env: Any, spaces: Any, device: Any) -> MeanStdFilter:
    return MeanStdFilter()


def parameters(algorithm: WeightedPPO) -> np.ndarray:
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return np.concatenate([np.ravel(state[name]) for name in sorted(state)])


def history(algorithm: WeightedPPO) -> list[dict[str, Any]]:
    """The rows of the merge history; call it when the algorithm has stopped."""
    rows: list[dict[str, Any]] = read_history(algorithm.logdir).to_pylist()
    return rows


def assert_all_distinct(seeds: Iterable[list[int]]) -> None:
    together = [seed for own in seeds for seed in own]
    assert len(together) == len(set(together))


# Everybody is there, and twice the same


def _run(config: Any) -> tuple[np.ndarray, list[dict[str, Any]], list[dict[str, Any]]]:
    with running(config) as algorithm:
        results = [algorithm.train() for _ in range(3)]
        after = parameters(algorithm)
    return after, results, history(algorithm)


@pytest.fixture(scope="module")
def first_run(ray_session: None) -> Any:
    return _run(make_config())


def test_the_same_seed_gives_the_same_bits(first_run: Any) -> None:
    after, _, rows = first_run
    again, _, rows_again = _run(make_config())
    np.testing.assert_array_equal(after, again)
    drop = {"trial_id"}
    assert [{k: r[k] for k in r.keys() - drop} for r in rows] == [
        {k: r[k] for k in r.keys() - drop} for r in rows_again
    ]


def test_another_seed_gives_another_run(first_run: Any) -> None:
    after, _, rows = first_run
    other, _, other_rows = _run(make_config().debugging(seed=2))
    assert np.isfinite(other).all()
    assert not np.array_equal(after, other)
    assert not {row["seed"] for row in rows} & {row["seed"] for row in other_rows}


def _assert_all_there(results: list[Any], rows: list[Any], places: list[tuple[int, Any]]) -> None:
    for result in results:
        workers = result["merge"]["workers"]
        assert sorted(workers) == sorted(str(worker) for worker in range(len(places)))
        assert result["merge"]["num_workers"] == len(places)
        assert result["merge"]["num_dropped"] == 0
        assert all(math.isfinite(worker["loss"]) for worker in workers.values())
    assert [(row["round"], row["worker"]) for row in rows] == [
        (round_, worker) for round_ in range(1, len(results) + 1) for worker in range(len(places))
    ]
    for row in rows:
        assert (row["env_runner"], row["env_index"]) == places[row["worker"]]
        assert not row["dropped"]
        assert row["weight"] > 0
    seeds = {row["worker"]: row["seed"] for row in rows}
    assert len(set(seeds.values())) == len(places)
    assert all(row["seed"] == seeds[row["worker"]] for row in rows)


def test_every_sub_environment_is_a_worker_from_round_one(first_run: Any) -> None:
    _, results, rows = first_run
    _assert_all_there(results, rows, [(1, 0), (1, 1), (2, 0), (2, 1)])


# Seeds


@pytest.mark.slow
def test_streams_are_new_episodes_and_evaluations_are_apart(tmp_path: Path) -> None:
    training, evaluation = tmp_path / "training", tmp_path / "evaluation"
    for folder in (training, evaluation):
        folder.mkdir()
    config = scripted(training, env_to_module_connector=make_filter).evaluation(
        evaluation_interval=1,
        evaluation_duration=4,
        evaluation_num_env_runners=1,
        evaluation_config={"env_config": {"folder": str(evaluation)}},
    )
    with running(config) as algorithm:
        for _ in range(3):
            algorithm.train()
        algorithm.evaluate()
        connectors = algorithm.env_runner.get_state()["env_to_module_connector"]
    seeds, evaluation_seeds = written(training, "seeds"), written(evaluation, "seeds")
    assert seeds.keys() == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert min(map(len, seeds.values())) >= 5
    assert sum(map(len, evaluation_seeds.values())) >= 16
    assert_all_distinct([*seeds.values(), *evaluation_seeds.values()])
    first = {row["worker"]: row["seed"] for row in history(algorithm)}
    assert [first[w] for w in range(4)] == [seeds[place][0] for place in sorted(seeds)]
    assert_pooled(connectors, written(training, "observations"))


def assert_pooled(connectors: Any, observations: dict[tuple[int, int], list[Any]]) -> None:
    """The driver's filter holds what all env runners saw in training, and nothing else."""
    stat = RunningStat.from_state(connectors["MeanStdFilter"][None]["running_stats"][0])
    seen = np.concatenate([np.array(own) for own in observations.values()])
    assert stat.n == len(seen) > 120
    np.testing.assert_allclose(stat.mean, seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stat.std, seen.std(axis=0, ddof=1), rtol=1e-5)


def test_fixed_seeding_gives_every_sub_environment_its_own_for_the_whole_run(
    tmp_path: Path,
) -> None:
    _, results, rows = _run(scripted(tmp_path, env_seeding="fixed", unit="env_runner"))
    _assert_all_there(results, rows, [(1, None), (2, None)])
    seeds = written(tmp_path, "seeds")
    assert seeds.keys() == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert all(len(own) >= 4 and len(set(own)) == 1 for own in seeds.values())
    assert len({own[0] for own in seeds.values()}) == 4
    assert [row["seed"] for row in rows] == [seeds[1, 0][0], seeds[2, 0][0]] * 3


def test_one_process_is_enough_and_evaluates_apart(tmp_path: Path) -> None:
    config = scripted(tmp_path, num_env_runners=0).evaluation(evaluation_duration=3)
    with running(config) as algorithm:
        algorithm.train()
        training = {seed for own in written(tmp_path, "seeds").values() for seed in own}
        result = algorithm.evaluate()
        assert result["env_runners"]["episode_return_mean"] == 5.0
        evaluation = {s for own in written(tmp_path, "seeds").values() for s in own} - training
        assert len(evaluation) >= 3
        assert {seed % 2 for seed in training} == {0}
        assert {seed % 2 for seed in evaluation} == {1}
        assert algorithm.train()["merge"]["num_dropped"] == 0
    assert_all_distinct(written(tmp_path, "seeds").values())


# Bad numbers


def _make_misbehaving(context: Any) -> ScriptedEnv:
    invalid: dict[tuple[int, int], dict[str, Any]] = {
        (1, 1): {"rewards": {2: NAN}},
        (2, 0): {"observations": {3: NAN}},
        (2, 1): {"rewards": {1: INF}, "observations": {0: -INF}},
    }
    for key, value in invalid.get((context.worker_index, context.vector_index), {}).items():
        context[key] = value
    return ScriptedEnv(context)


@pytest.mark.slow
def test_workers_with_bad_numbers_are_dropped_and_the_others_train(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tune.register_env("misbehaving", _make_misbehaving)
    config = make_config("misbehaving", env_to_module_connector=make_filter)
    with running(config) as algorithm:
        before = parameters(algorithm)
        results = [algorithm.train() for _ in range(2)]
        after = parameters(algorithm)
        stat = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.get_state()["env_to_module_connector"], local_env_runner=False
        )
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)
    assert "nan" not in str(stat).lower()
    for result in results:
        assert result["merge"]["num_dropped"] == 3
        assert result["merge"]["num_skipped_steps"] == 0
        assert result["merge"]["effective_workers"] == pytest.approx(1)
        assert [result["merge"]["workers"][str(w)]["weight"] > 0 for w in range(4)] == [
            True,
            False,
            False,
            False,
        ]
    rows = history(algorithm)
    assert [row["dropped"] for row in rows] == [False, True, True, True] * 2
    assert [row["episode_return"] for row in rows][:4] == [5.0, None, None, None]
    for worker, text in (
        (1, "sub-environment 1: reward nan"),
        (2, "sub-environment 0: observation with NaN"),
        (3, "sub-environment 1: observation with NaN"),
    ):
        assert f"dropped worker(s) [{worker}]: {text}" in caplog.text


def test_a_round_without_a_sound_worker_changes_nothing() -> None:
    with running(scripted(env_config={"rewards": {1: NAN}}, num_env_runners=0)) as algorithm:
        before = parameters(algorithm)
        result = algorithm.train()
        np.testing.assert_array_equal(parameters(algorithm), before)
    assert result["merge"]["num_dropped"] == 2
    assert result["merge"]["effective_workers"] == 0


# Env runners that raise, hang or die


def test_an_env_runner_that_raises_or_hangs_is_dropped_and_comes_back(tmp_path: Path) -> None:
    config = scripted(tmp_path).env_runners(sample_timeout_s=5)
    with running(config) as algorithm:
        algorithm.train()
        (tmp_path / "raise-1").touch()
        raised = algorithm.train()
        (tmp_path / "raise-1").unlink()
        (tmp_path / "block-2").touch()
        started = time.monotonic()
        hung = algorithm.train()
        waited = time.monotonic() - started
        (tmp_path / "block-2").unlink()
        back = algorithm.train()
        (tmp_path / "raise-1").touch()
        (tmp_path / "raise-2").touch()
        with pytest.raises(RuntimeError, match=r"(?s)2 of 2 env runners.*was told to raise"):
            algorithm.train()
    assert 5 <= waited < 30
    counts = [result["merge"]["num_dropped"] for result in (raised, hung, back)]
    assert counts == [2, 2, 0]
    dropped = {(row["round"], row["env_runner"]) for row in history(algorithm) if row["dropped"]}
    assert dropped == {(2, 1), (3, 2)}
    assert_all_distinct(written(tmp_path, "seeds").values())


@pytest.mark.slow
def test_an_env_runner_that_hangs_for_good_does_not_keep_the_others_from_stopping(
    tmp_path: Path,
) -> None:
    config = scripted(tmp_path, num_envs_per_env_runner=1, unit="env_runner")
    with running(config.env_runners(sample_timeout_s=5)) as algorithm:
        (tmp_path / "block-2").touch()  # And nobody takes it away.
        assert algorithm.train()["merge"]["num_dropped"] == 1
        assert kill_unresponsive(algorithm.env_runner_group, timeout_s=3) == [2]
        started = time.monotonic()
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_an_env_runner_that_hangs_for_rounds_is_replaced_and_does_not_replay(
    tmp_path: Path,
) -> None:
    config = scripted(tmp_path).env_runners(sample_timeout_s=3)
    with running(config.fault_tolerance(max_missed_rounds=2)) as algorithm:
        algorithm.train()
        (tmp_path / "block-2").touch()
        replaced = [algorithm.train()["merge"]["num_replaced"] for _ in range(2)]
        (tmp_path / "block-2").unlink()
        deadline = time.monotonic() + 240
        while algorithm.train()["merge"]["num_dropped"]:
            assert time.monotonic() < deadline, "the env runner did not come back"
        assert algorithm.train()["merge"]["num_replaced"] == 1
    assert replaced == [0, 1]
    assert len(list(tmp_path.glob("seeds-2-0-*"))) == 2  # Two processes, one identity.
    assert_all_distinct(written(tmp_path, "seeds").values())


@pytest.mark.slow
def test_a_killed_env_runner_comes_back_as_itself_and_does_not_replay(tmp_path: Path) -> None:
    with running(scripted(tmp_path)) as algorithm:
        algorithm.train()
        actor = algorithm.env_runner_group._worker_manager.actors()[1]
        pid = ray.get(actor.apply.remote(lambda env_runner: os.getpid()))
        ray.kill(actor, no_restart=False)
        while os.path.exists(f"/proc/{pid}"):  # Until it is dead, it begins another round.
            time.sleep(0.05)
        results = [algorithm.train()]
        deadline = time.monotonic() + 120
        while results[-1]["merge"]["num_dropped"]:
            assert time.monotonic() < deadline, "the env runner did not come back"
            results.append(algorithm.train())
        algorithm.train()
        steps = results[-1]["env_runners"]["num_env_steps_sampled_lifetime"]
    assert results[0]["merge"]["num_dropped"] == 2
    rows = history(algorithm)
    assert {row["env_runner"] for row in rows if row["dropped"]} == {1}
    assert [row["worker"] for row in rows if row["round"] == 2 and row["dropped"]] == [0, 1]
    last = [row for row in rows if row["round"] == len(results) + 2]
    assert [(row["worker"], row["dropped"]) for row in last] == [(w, False) for w in range(4)]
    assert rows[-1]["env_steps"] > steps > 40
    seeds = written(tmp_path, "seeds")
    assert len(list(tmp_path.glob("seeds-1-0-*"))) == 2  # Two processes, one identity.
    assert_all_distinct(seeds.values())


# Vectorisation, callbacks


class _Ended(RLlibCallback):
    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        metrics_logger.log_value("ended_return", episode.get_return(), reduce="max")


@pytest.mark.parametrize("mode", ["async", "vector_entry_point"])
def test_other_vectorisations_train(mode: str) -> None:
    config = make_config(num_env_runners=0, gym_env_vectorize_mode=mode)
    with running(config) as algorithm:
        before = parameters(algorithm)
        results = [algorithm.train() for _ in range(2)]
        assert not np.array_equal(before, parameters(algorithm))
    assert [result["merge"]["num_dropped"] for result in results] == [0, 0]


def test_callbacks_and_whole_episodes_of_slow_workers() -> None:
    config = scripted(
        env_config={"length": [3, 35]}, num_env_runners=0, batch_mode="complete_episodes"
    ).callbacks(_Ended)
    with running(config) as algorithm:
        result = algorithm.train()
    assert result["env_runners"]["ended_return"] == 35
    returns = [result["merge"]["workers"][str(w)]["episode_return"] for w in range(2)]
    assert returns == [3, 35]
