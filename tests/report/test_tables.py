from __future__ import annotations

from rllib_weighted.report import compute
from tests.report.helpers import make_results


def test_the_baselines_arms() -> None:
    results = make_results({"average": {1: [0.0, 1.0]}, ("sum_x", 0.5): {1: [0.0, 1.0]}})
    tables = compute(results)
    assert tables.baseline == "average"
    assert tables.baseline_arms("Env") == ["average"]
    assert compute(results, baseline="sum_x").baseline_arms("Env") == ["sum_x"]
    assert tables.baseline_arms("Other") == []


def test_arms_without_a_counterpart_are_named() -> None:
    results = make_results({"sum": {1: [0.0, 1.0]}, "max": {1: [0.0, 1.0]}})
    assert compute(results).problems == [
        "there is no baseline among max, sum: choose one with --baseline"
    ]


def test_an_arm_that_matches_no_baseline_is_named() -> None:
    arms = {("average", 1.0): {1: [0.0, 1.0]}, ("average", 2.0): {1: [0.0, 1.0]}}
    results = make_results({**arms, "sum": {1: [0.0, 1.0]}})
    assert compute(results).problems == [
        "Env: sum is not compared, because no single arm of average has the same other settings"
    ]
