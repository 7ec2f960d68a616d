"""Arms by the names that users give them: `merge_arm` in a config, `names` in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_weighted.report import ReportError, load_results, sensitivity
from rllib_weighted.report.arms import assign_arms, name_arms
from rllib_weighted.report.trials import parse_settings
from tests.report.helpers import curve, params, write_trial

WEIGHTED = {"merge_strategy": "reward_weighted"}


def labels(*configs: dict[str, Any], names: dict[str, str] | None = None) -> list[str]:
    settings = [parse_settings(params(**config), "PPO_x") for config in configs]
    return assign_arms(name_arms(settings, names or {}))[0]


def test_an_arm_has_the_name_that_the_config_gives_it() -> None:
    found = labels(
        {"merge_arm": "plain"},
        {**WEIGHTED, "min_weight": 0.5, "merge_arm": "reward_weighted 0.5"},
        {**WEIGHTED, "min_weight": 1.0, "merge_arm": "reward_weighted 1"},
        {**WEIGHTED, "min_weight": 2.0},
    )
    assert found == ["plain", "reward_weighted 0.5", "reward_weighted 1", "reward_weighted, m=2"]


def test_arms_of_one_name_stay_apart() -> None:
    found = labels(
        {"merge_arm": "mine", "lr": 0.1},
        {"merge_arm": "mine", "lr": 0.2},
        {"merge_arm": "mine", **WEIGHTED, "min_weight": 1.0, "lr": 0.2},
    )
    assert found == ["mine, m=–, lr=0.1", "mine, m=–, lr=0.2", "mine, m=1, lr=0.2"]
    assert labels({"merge_arm": "mine"}, {"merge_arm": "mine", "merge_strategy": "sum"}) == [
        "mine",
        "mine (2)",
    ]


def test_runs_that_differ_in_the_name_only_are_one_arm() -> None:
    assert labels({"merge_arm": "a"}, {"merge_arm": "b"}) == ["average", "average"]
    assert labels({"merge_arm": "a"}, {}) == ["average", "average"]


@pytest.mark.parametrize(
    ("which", "index"),
    [
        ("reward_weighted, m=1, lr=0.1", 1),  # a label, as a report without names shows it
        ("min_weight=1,lr=0.10", 1),
        ("merge_strategy=reward_weighted, lr=0.2", 3),
        ("average", 0),
    ],
)
def test_names_for_a_report(which: str, index: int) -> None:
    configs = (
        {"lr": 0.1},
        {**WEIGHTED, "min_weight": 1.0, "lr": 0.1},
        {**WEIGHTED, "min_weight": 2.0, "lr": 0.1},
        {**WEIGHTED, "min_weight": 1.0, "lr": 0.2},
    )
    found = labels(*configs, names={"x": which})
    assert [place for place, label in enumerate(found) if label == "x"] == [index]


def test_several_arms_may_share_a_name_and_stay_apart() -> None:
    configs = ({**WEIGHTED, "min_weight": weight, "lr": 0.1} for weight in (1.0, 2.0))
    assert labels(*configs, names={"x": "merge_strategy=reward_weighted"}) == ["x, m=1", "x, m=2"]


def test_a_name_for_nothing() -> None:
    with pytest.raises(ReportError, match=r"unknown arm 'lr=7': these results have average"):
        labels({"lr": 0.1}, names={"x": "lr=7"})
    with pytest.raises(ReportError, match=r"unknown arm 'nothing=1'"):
        labels({"lr": 0.1}, names={"x": "nothing=1"})


def test_named_arms_are_swept_and_compared_as_others_are(tmp_path: Path) -> None:
    for number, (strategy, weight) in enumerate(
        [("average", None), ("reward_weighted", 0.5), ("reward_weighted", 1.0)]
    ):
        name = f"{strategy} {weight}"
        changes = {"merge_strategy": strategy, "min_weight": weight, "merge_arm": name}
        write_trial(tmp_path / f"t{number}", curve(9.0), **changes)
    results = load_results(tmp_path, names={"base": "average None"})
    assert list(results.arms["arm"]) == ["base", "reward_weighted 0.5", "reward_weighted 1.0"]
    table = sensitivity(results)
    assert list(table["line"]) == ["average", "reward_weighted", "reward_weighted"]
    assert list(table["arm"]) == list(results.arms["arm"])
