"""Tune: plain dicts and config objects, sweeps, and settings that change between rounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig


def settings() -> dict[str, Any]:
    """Two workers in one process; minibatches large enough for both."""
    return {
        "env": "CartPole-v1",
        "num_env_runners": 0,
        "num_envs_per_env_runner": 2,
        "merge_unit": "env",
        "train_batch_size": 64,
        "minibatch_size": 32,
        "num_epochs": 1,
        "seed": 3,
        "use_kl_loss": False,
        "_model_config": DefaultModelConfig(fcnet_hiddens=[8]),
    }


def config() -> WeightedPPOConfig:
    return WeightedPPOConfig.from_dict(settings())


def fit(param_space: Any, folder: Path, **kwargs: Any) -> list[Any]:
    results = tune.Tuner(
        "WeightedPPO",
        param_space=param_space,
        tune_config=tune.TuneConfig(**kwargs),
        run_config=tune.RunConfig(
            storage_path=str(folder), stop={"training_iteration": 1}, verbose=0
        ),
    ).fit()
    assert results.num_errors == 0, results.errors
    return list(results)


def weights(result: dict[str, Any]) -> list[float]:
    return [worker["weight"] for worker in result["merge"]["workers"].values()]


STRATEGIES = ["average", "reward_weighted"]
# sum w: 1 for the average, whatever the minimum weight; else 1 + 2 m.
EXPECTED = {"average": 1.0, "reward_weighted": 2.0}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("as_dict", [True, False])
def test_a_sweep_over_strategies_and_minimum_weights(as_dict, tmp_path):
    grid, choice = tune.grid_search(STRATEGIES), tune.choice([0.5])
    if as_dict:
        space: Any = {**settings(), "merge_strategy": grid, "min_weight": choice}
    else:
        space = config().training(merge_strategy=grid, min_weight=choice)
    rows = fit(space, tmp_path, max_concurrent_trials=1)
    found = {row.config["merge_strategy"]: row for row in rows}
    assert sorted(found) == STRATEGIES
    for strategy, row in found.items():
        assert row.config["min_weight"] == 0.5
        assert sum(weights(row.metrics)) == pytest.approx(EXPECTED[strategy])
        assert row.metrics["merge"]["num_workers"] == 2
        columns = row.metrics_dataframe.columns
        assert {"merge/share_max", "merge/workers/1/weight"} <= set(columns)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("space", "match"),
    [
        ({"merge_strategy": "avrage"}, "did you mean 'average'"),
        ({"min_weight": -1}, "`min_weight` should be a number >= 0.*found -1"),
        ({"merge_strtegy": "sum"}, "did you mean `merge_strategy`"),
        ({"env": "BipedalWalkr-v3"}, "BipedalWalker-v3"),
    ],
)
def test_a_bad_value_ends_the_search_before_a_trial_starts(space, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        fit({**settings(), **space}, tmp_path)


@pytest.fixture
def algorithm(ray_session):
    built = []

    def build(**training: Any) -> WeightedPPO:
        built.append(config().training(**training).build_algo())
        return built[-1]

    yield build
    for algo in built:
        algo.stop()


def test_mutated_settings_hold_from_the_next_round_on(algorithm, tmp_path):
    """As population-based training does it: a checkpoint into a new algorithm."""
    old = algorithm(merge_strategy="average")
    assert weights(old.train()) == [0.5, 0.5]
    path = old.save_to_path(str(tmp_path / "checkpoint"))
    assert sum(weights(old.train())) == pytest.approx(1)
    new = algorithm(merge_strategy="reward_weighted", min_weight=3.0)
    new.restore_from_path(path)
    result = new.train()
    assert result["training_iteration"] == 2
    assert sum(weights(result)) == pytest.approx(1 + 2 * 3)
    assert new.config.merge_strategy == "reward_weighted"


CODE = """
import rllib_weighted
from ray.tune.registry import get_trainable_cls
assert get_trainable_cls("WeightedPPO") is rllib_weighted.WeightedPPO
"""


def test_the_import_alone_registers_the_algorithm():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=300)
