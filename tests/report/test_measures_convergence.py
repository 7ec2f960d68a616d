from __future__ import annotations

import math

import numpy as np
import pytest

from rllib_weighted.report import ReportError, convergence, convergence_runs, thresholds
from rllib_weighted.report.measures import first_sustained, stopped_early
from tests.report.helpers import SECONDS, STEPS, curve, make_results


@pytest.mark.parametrize(
    ("values", "hold", "early", "expected"),
    [
        ([0, 5, 5, 5], 3, False, 1),
        ([5, 0, 5, 5], 2, False, 2),  # the first stretch is too short
        ([5, 5, 0, 5], 2, False, 0),
        ([0, 0, 5, 5], 3, False, None),  # cut off before it was held
        ([0, 0, 5, 5], 3, True, 2),  # ended early, maybe for reaching it
        ([5, 0, 0, 0], 3, True, None),
        ([0, 0, 0, 0], 1, True, None),
        ([0, 5, math.nan, 5], 2, False, None),
        ([5], 1, False, 0),
        ([5, 5, 5, 5], 4, False, 0),
        ([5, 5, 5, 0, 5], 3, True, 0),
        ([4.999, 5.0], 1, False, 1),  # at least the threshold
    ],
)
def test_first_sustained(values: list[float], hold: int, early: bool, expected: int | None) -> None:
    assert first_sustained(np.array(values, float), 5.0, hold, stopped_early=early) == expected


def test_a_shared_longest_length_is_a_budget() -> None:
    results = make_results({"average": {1: [1.0] * 5, 2: [1.0] * 5, 3: [1.0] * 3}})
    assert stopped_early(results.runs).tolist() == [False, False, True]
    results = make_results({"average": {1: [1.0] * 5, 2: [1.0] * 4}})
    assert stopped_early(results.runs).tolist() == [True, True]
    results = make_results({"average": {1: [1.0] * 5, 2: [1.0] * 4}}, finished=False)
    assert stopped_early(results.runs).tolist() == [False, False]


def test_a_given_threshold() -> None:
    results = make_results({"average": {1: [1.0, 2.0]}})
    assert thresholds(results, 5)["Env"].value == 5.0
    assert thresholds(results, {"Env": 7.0})["Env"].origin == "given"
    with pytest.raises(ReportError, match="unknown environment 'Evn': these results have Env"):
        thresholds(results, {"Evn": 7.0})
    with pytest.raises(ReportError, match="should be a finite number, found inf"):
        thresholds(results, math.inf)


def test_a_derived_threshold_by_hand() -> None:
    # Baseline: first values 0, 10, 20: median 10; finals 100, 110, 120: mean 110.
    # 10 + 0.9 * (110 - 10) = 100.
    runs = {1: [0.0, 100.0], 2: [10.0, 110.0], 3: [20.0, 120.0]}
    results = make_results({"average": runs, "sum": {1: [0.0, 900.0]}})
    found = thresholds(results)["Env"]
    assert found.value == 100.0
    assert "90% of the way from the first value of the runs of average (10, median)" in found.origin


def test_without_a_baseline_all_runs_are_taken() -> None:
    found = thresholds(make_results({"sum": {1: [0.0, 100.0]}}))["Env"]
    assert found.value == 90.0
    assert "all runs" in found.origin


@pytest.mark.parametrize(
    ("values", "message"), [([5.0, 5.0], "did not improve"), ([math.nan], "never finished")]
)
def test_no_threshold_can_be_derived(values: list[float], message: str) -> None:
    results = make_results({"average": {1: values}})
    found = thresholds(results)["Env"]
    assert not found.exists
    assert message in found.origin
    assert convergence(results).empty
    assert convergence_runs(results).empty


def test_runs_by_hand() -> None:
    results = make_results({"average": {1: [0.0, 5.0, 5.0, 5.0], 2: [0.0] * 4}})
    found = convergence_runs(results, threshold=5, hold=2).set_index("seed")
    assert found["reached"].to_dict() == {1: True, 2: False}
    assert found["env_steps"].to_dict() == {1: 2 * STEPS, 2: 4 * STEPS}
    assert found["time_s"].to_dict() == {1: 2 * SECONDS, 2: 4 * SECONDS}


def test_arms_by_hand() -> None:
    results = make_results(
        {
            "average": {1: [0.0, 5.0, 5.0, 5.0], 2: [0.0] * 4},
            "sum": {1: [5.0] * 4, 2: [0.0, 0.0, 5.0, 5.0]},
        }
    )
    found = convergence(results, threshold=5, hold=2).set_index("arm")
    assert found["num_reached"].to_dict() == {"average": 1, "sum": 2}
    # Up to 4 rounds: average (2 + 4) / 2, with the second run censored; sum (1 + 3) / 2.
    assert found["horizon_env_steps"].tolist() == [4 * STEPS] * 2
    assert found["mean_env_steps"].to_dict() == {"average": 3.0 * STEPS, "sum": 2.0 * STEPS}
    assert found["mean_time_s"].to_dict() == {"average": 3 * SECONDS, "sum": 2 * SECONDS}
    assert found["median_env_steps"].to_dict() == {"average": 2.0 * STEPS, "sum": 1.0 * STEPS}
    assert found["low_env_steps"]["sum"] >= 1.0 * STEPS


def test_an_arm_that_has_just_begun_does_not_shorten_the_horizon() -> None:
    runs = {1: [0.0, 5.0, 5.0, 5.0], 2: [0.0] * 4}
    results = make_results({"average": runs, "sum": {1: [0.0]}})
    found = convergence(results, threshold=5, hold=2).set_index("arm")
    assert found["horizon_env_steps"]["average"] == 4 * STEPS
    assert math.isnan(found["mean_env_steps"]["sum"])


def test_nobody_reached_it() -> None:
    results = make_results({"average": {1: [0.0] * 4, 2: [0.0] * 4}})
    (row,) = convergence(results, threshold=5).to_dict("records")
    assert row["num_reached"] == 0
    assert row["mean_env_steps"] == 4 * STEPS  # at least that
    assert math.isnan(row["median_env_steps"])


def test_unknown_times_leave_the_steps_alone() -> None:
    results = make_results({"average": {1: [5.0] * 4, 2: [5.0] * 4}})
    results.progress["time_s"] = math.nan
    (row,) = convergence(results, threshold=5, hold=1).to_dict("records")
    assert row["mean_env_steps"] == STEPS
    assert math.isnan(row["mean_time_s"])


def test_bad_arguments() -> None:
    results = make_results({"average": {1: curve(5.0)}})
    with pytest.raises(ReportError, match="`hold` should be at least 1 round, found 0"):
        convergence(results, hold=0)
    with pytest.raises(ReportError, match="unknown baseline 'x'"):
        convergence(results, baseline="x")
