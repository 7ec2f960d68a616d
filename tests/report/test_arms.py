from __future__ import annotations

import math
from typing import Any

import pytest

from rllib_weighted.report.arms import assign_arms, baseline_of, choose_baseline
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.trials import ReportError, Settings, parse_settings
from tests.report.helpers import params


def settings(**changes: Any) -> Settings:
    return parse_settings(params(**changes), "PPO_x")


def labels(*configs: dict[str, Any]) -> list[str]:
    return assign_arms([settings(**config) for config in configs])[0]


def test_seeds_are_repetitions() -> None:
    assert labels({"seed": 1}, {"seed": 2}, {"seed": None}) == ["average"] * 3


def test_crossed_duplicates_of_a_strategy_without_minimum_weight_are_one_arm() -> None:
    found = labels(
        {"merge_strategy": "sum", "min_weight": 0.5},
        {"merge_strategy": "sum", "min_weight": None},
        {"merge_strategy": "reward_weighted", "min_weight": 0.5},
        {"merge_strategy": "reward_weighted", "min_weight": 1.0},
    )
    assert found == ["sum", "sum", "reward_weighted, m=0.5", "reward_weighted, m=1"]


def test_an_unset_minimum_weight_and_its_number_are_one_arm() -> None:
    weighted = {"merge_strategy": "reward_weighted"}
    found = labels({**weighted, "min_weight": None}, {**weighted, "min_weight": 1 / 2})
    assert found == ["reward_weighted"] * 2


def test_labels_name_only_what_varies_within_the_strategy() -> None:
    found = labels(
        {"merge_strategy": "average", "lr": 0.1},
        {"merge_strategy": "reward_weighted", "lr": 0.1, "num_learners": 0},
        {"merge_strategy": "reward_weighted", "lr": 0.1, "num_learners": 2},
    )
    assert found == [
        "average",
        "reward_weighted, num_learners=0",
        "reward_weighted, num_learners=2",
    ]


def test_options_and_schedules_are_arms() -> None:
    weighted = {"merge_strategy": "reward_weighted"}
    found = labels(
        {**weighted, "merge_options": {"transform": "rank"}},
        weighted,
        {**weighted, "min_weight": [[0, 1.0]]},
    )
    assert found == [
        "reward_weighted, m=0.5, transform=rank",
        "reward_weighted, m=0.5, default options",
        "reward_weighted, m=[[0, 1.0]], default options",
    ]


def test_of_the_options_only_those_that_differ_are_named() -> None:
    weighted = {"merge_strategy": "reward_weighted"}
    found = labels(
        {**weighted, "merge_options": {"transform": "rank", "smoothing": 0.5}},
        {**weighted, "merge_options": {"transform": "rank", "smoothing": 0.9}},
        {**weighted, "merge_options": {"transform": "rank"}},
        {**weighted, "merge_arm": "mine", "merge_options": {"smoothing": 0.1}},
    )
    assert found == [
        "reward_weighted, smoothing=0.5, transform=rank",
        "reward_weighted, smoothing=0.9, transform=rank",
        "reward_weighted, transform=rank",
        "mine",
    ]


def test_environments_are_never_pooled() -> None:
    names, arms = assign_arms([settings(env="A"), settings(env="B"), settings(env="B", lr=1.0)])
    assert names[0] == "average"  # lr does not vary in its environment.
    assert names[1] != names[2]
    assert list(arms["env"]) == ["A", "B", "B"]


def test_values_that_are_cut_alike_stay_apart() -> None:
    first, second = ("x" * 60 + end for end in "ab")
    found = labels({"env_config": first}, {"env_config": second})
    assert found[0] != found[1]
    assert found[1].endswith("(2)")


def test_settings_that_only_some_algorithms_have_do_not_tell_them_apart() -> None:
    weighted = settings()
    stock = Settings(env="CartPole-v1", strategy="PPO", other={"lr": weighted.other["lr"]})
    names, arms = assign_arms([weighted, stock])
    assert names == ["average", "PPO"]
    row = arms.set_index("arm").loc["PPO"].rename(None)
    row["arm"] = "PPO"
    assert baseline_of(row, arms, "average") == ("average", [])


def table_of(*configs: dict[str, Any]) -> Any:
    return assign_arms([settings(**config) for config in configs])[1]


def rows(arms: Any) -> dict[str, Any]:
    return {row["arm"]: row for _, row in arms.iterrows()}


def test_the_baseline_with_the_same_hardware_is_taken() -> None:
    arms = table_of(
        *({"merge_strategy": s, "num_learners": n} for s in ("average", "sum") for n in (0, 2))
    )
    for number in (0, 2):
        row = rows(arms)[f"sum, num_learners={number}"]
        assert baseline_of(row, arms, "average") == (f"average, num_learners={number}", [])
    assert baseline_of(rows(arms)["average, num_learners=0"], arms, "average") == (None, [])
    label = "average, num_learners=2"
    other = baseline_of(rows(arms)["sum, num_learners=0"], arms, label)
    assert other == (label, ["num_learners"])


def test_a_single_baseline_is_taken_and_differences_are_named() -> None:
    arms = table_of({"lr": 0.1}, {"merge_strategy": "sum", "lr": 0.2})
    assert baseline_of(rows(arms)["sum"], arms, "average") == ("average", ["lr"])


def test_without_a_matching_baseline_nothing_is_compared() -> None:
    arms = table_of({"lr": 0.1}, {"lr": 0.2}, {"merge_strategy": "sum", "lr": 0.3})
    assert baseline_of(rows(arms)["sum"], arms, "average") == (None, [])


def test_choosing_the_baseline() -> None:
    arms = table_of({}, {"merge_strategy": "sum"})
    assert choose_baseline(arms, None) == "average"
    assert choose_baseline(arms, "sum") == "sum"
    assert choose_baseline(arms[arms["arm"] == "sum"], None) is None
    with pytest.raises(ReportError, match="unknown baseline 'avrage': these results have average"):
        choose_baseline(arms, "avrage")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (475.0, "475"),
        (0.03125, "0.0312"),
        (1234567.0, "1,234,567"),
        (-12.345, "-12.3"),
        (1.0, "1"),
        (math.nan, "–"),
        (1e-7, "0.0000001"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text
