from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rllib_weighted.merging import RewardWeighted
from rllib_weighted.merging.registry import _built_in
from rllib_weighted.records import resolved_settings
from rllib_weighted.records.origin import encode_settings
from rllib_weighted.report.trials import (
    PARAMS,
    WITHOUT_MIN_WEIGHT,
    Settings,
    Trial,
    find_trials,
    parse_settings,
    read_settings,
    recorded_settings,
)
from tests.report.helpers import params, write_trial


def test_strategies_without_a_minimum_weight_are_those_of_the_registry() -> None:
    without = {name for name, strategy in _built_in.items() if not strategy.uses_min_weight}
    assert without == WITHOUT_MIN_WEIGHT


def test_a_minimum_weight_that_is_not_set_is_one_over_the_workers() -> None:
    found = parse_settings(
        params(merge_strategy="reward_weighted", num_env_runners=2, num_envs_per_env_runner=4)
    )
    assert found.num_workers == 8
    assert found.min_weight == 1 / 8


@pytest.mark.parametrize(
    ("unit", "runners", "envs", "expected"),
    [("env", 2, 4, 8), ("env_runner", 2, 4, 2), ("env", 0, 4, 4), ("env_runner", 0, 4, 1)],
)
def test_number_of_workers(unit: str, runners: int, envs: int, expected: int) -> None:
    found = params(merge_unit=unit, num_env_runners=runners, num_envs_per_env_runner=envs)
    assert parse_settings(found).num_workers == expected


@pytest.mark.parametrize("strategy", sorted(WITHOUT_MIN_WEIGHT))
def test_a_minimum_weight_that_is_ignored_is_none(strategy: str) -> None:
    assert math.isnan(parse_settings(params(merge_strategy=strategy, min_weight=0.5)).min_weight)


def test_a_schedule_is_kept_as_text() -> None:
    found = parse_settings(
        params(merge_strategy="reward_weighted", min_weight=[[0, 1.0], [1000, 0.1]])
    )
    assert math.isnan(found.min_weight)
    assert found.schedule == "[[0, 1.0], [1000, 0.1]]"


def test_a_strategy_object_is_known_by_its_class() -> None:
    printed = str(RewardWeighted(offset="min", top_k=None))
    found = parse_settings(params(merge_strategy=printed))
    assert found.strategy == "reward_weighted"
    options = json.loads(found.options)
    assert options["offset"] == "min"
    assert options["top_k"] is None


@pytest.mark.parametrize(
    ("given", "strategy", "options"),
    [
        ("my.module.AboveMedian(boost=3.0)", "above_median", '{"boost": 3.0}'),
        ("Average()", "average", ""),
        ("Odd(rule=<object at 0x7f00>)", "odd", "rule=<object>"),
        ("<object at 0x7f00>", "<object at 0x7f00>", ""),
    ],
)
def test_other_objects(given: str, strategy: str, options: str) -> None:
    found = parse_settings(params(merge_strategy=given))
    assert (found.strategy, found.options) == (strategy, options)


def test_options_are_text() -> None:
    found = parse_settings(params(merge_options={"transform": "rank", "offset": 1}))
    assert found.options == '{"offset": 1, "transform": "rank"}'


def test_what_does_not_change_learning_is_ignored() -> None:
    other = parse_settings(
        params(evaluation_duration=3, _secret=1, log_level="INFO", sample_timeout_s=9, lr=0.1)
    ).other
    assert not {"evaluation_duration", "_secret", "log_level", "sample_timeout_s"} & other.keys()
    assert {"lr", "num_learners", "num_env_runners", "merge_unit"} <= other.keys()
    assert "seed" not in other
    assert "_model_config" in parse_settings(params(_model_config={"a": 1})).other


def test_addresses_do_not_tell_trials_apart() -> None:
    found = parse_settings(params(observation_fn="<function f at 0x7f48df75f920>"))
    assert found.other["observation_fn"] == "<function f>"


def test_an_algorithm_without_strategies_is_known_by_its_folder() -> None:
    stock = {k: v for k, v in params().items() if not k.startswith("merge_")}
    found = parse_settings(stock, "PPO_CartPole-v1_a19a6_00000_0_seed=1")
    assert found.strategy == "PPO"
    assert found.num_workers == 0
    assert math.isnan(found.min_weight)
    assert parse_settings(stock).strategy == "unknown"


@pytest.mark.parametrize("seed", [None, "7", 1.5])
def test_a_seed_is_a_whole_number_or_none(seed: Any) -> None:
    assert parse_settings(params(seed=seed)).seed is None


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_torn_config_leaves_the_settings_unknown(text: str, tmp_path: Path) -> None:
    (tmp_path / PARAMS).write_text(text)
    trial = Trial(fs.LocalFileSystem(), str(tmp_path), frozenset([PARAMS]), None)
    settings, problem = read_settings(trial)
    assert settings.strategy == "unknown"
    assert problem is not None
    assert f"left out {tmp_path}/{PARAMS}" in problem


def test_no_config() -> None:
    _, problem = read_settings(Trial(fs.LocalFileSystem(), "/x", frozenset(), None))
    assert problem == "/x has no params.json: its settings are unknown"


RESOLVED = resolved_settings(
    params(num_learners=2, evaluation_interval=5, seed=7),
    merge_strategy="reward_weighted",
    merge_options={"offset": "min"},
    min_weight=0.125,
    num_workers=8,
)


def settings_in(folder: Path) -> tuple[Settings, str | None]:
    (trial,), _ = find_trials(folder)
    return read_settings(trial)


@pytest.mark.parametrize(
    "written",
    [
        None,
        "{torn",
        json.dumps(params(merge_strategy="<object at 0x7f00>", min_weight="<object>", seed="<x>")),
    ],
)
def test_settings_come_from_the_merge_history(written: str | None, tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", recorded=RESOLVED)
    config = tmp_path / "t1" / PARAMS
    config.unlink() if written is None else config.write_text(written)
    found, problem = settings_in(tmp_path)
    assert problem is None
    assert (found.env, found.seed, found.evaluation_interval) == ("CartPole-v1", 7, 5)
    assert (found.strategy, found.options) == ("reward_weighted", '{"offset": "min"}')
    assert (found.min_weight, found.schedule, found.num_workers) == (0.125, "", 8)
    assert found.other["num_learners"] == "2"
    assert found.other["merge_unit"] == "env"


def test_a_history_of_before_leaves_the_settings_to_the_config(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", merge_strategy="sum", seed=9)
    found, problem = settings_in(tmp_path)
    assert (found.strategy, found.seed, problem) == ("sum", 9, None)


@pytest.mark.parametrize(
    ("min_weight", "number", "schedule"),
    [
        (0.5, 0.5, ""),
        ([[0, 1.0], [9, 0.1]], math.nan, "[[0, 1.0], [9, 0.1]]"),
        (None, math.nan, ""),
    ],
)
def test_recorded_minimum_weights(min_weight: Any, number: float, schedule: str) -> None:
    found = recorded_settings({**RESOLVED, "merge_strategy": "mine", "min_weight": min_weight})
    assert found.min_weight == pytest.approx(number, nan_ok=True)
    assert found.schedule == schedule


def test_recorded_and_guessed_settings_are_the_same_arm() -> None:
    config = params(merge_strategy="reward_weighted", min_weight=None, lr=[[0, 0.1], [9, 0.01]])
    resolved = resolved_settings(
        config, merge_strategy="reward_weighted", merge_options={}, min_weight=0.5, num_workers=2
    )
    assert recorded_settings(json.loads(encode_settings(resolved))) == parse_settings(config)
