from __future__ import annotations

import math

import pytest
from scipy import stats

from rllib_weighted.report import final_returns, sensitivity
from tests.report.helpers import make_results


def test_finals_by_hand() -> None:
    results = make_results(
        {"average": {1: [0.0, 10.0], 2: [0.0, 20.0], 3: [0.0, 60.0]}},
        held_out={"average": {1: 8.0, 2: 15.0, 3: 58.0}},
    )
    (row,) = final_returns(results).to_dict("records")
    assert row["final"] == 30.0
    assert row["held_out"] == 27.0
    assert row["num_held_out"] == 3
    # Differences 2, 5, 2: mean 3, t interval.
    assert row["gap"] == 3.0
    expected = stats.ttest_1samp([2.0, 5.0, 2.0], 0).confidence_interval(0.95)
    assert (row["gap_low"], row["gap_high"]) == pytest.approx((expected.low, expected.high))
    assert row["final_low"] < row["final"] < row["final_high"]


def test_without_evaluation_there_is_no_gap() -> None:
    (row,) = final_returns(make_results({"average": {1: [1.0], 2: [2.0]}})).to_dict("records")
    assert row["num_held_out"] == 0
    assert math.isnan(row["held_out"])
    assert math.isnan(row["gap"])


def test_runs_that_are_far_from_done_are_left_out() -> None:
    runs = {1: [5.0] * 20, 2: [7.0] * 19, 3: [0.0]}
    (row,) = final_returns(make_results({"average": runs}, finished=False)).to_dict("records")
    assert row["num_runs"] == 2
    assert row["num_unfinished"] == 1
    assert row["final"] == 6.0


def test_short_runs_that_came_to_their_end_count() -> None:
    runs = {1: [5.0] * 20, 2: [7.0]}
    (row,) = final_returns(make_results({"average": runs})).to_dict("records")
    assert row["num_runs"] == 2


def test_the_gap_of_few_or_equal_runs() -> None:
    finals = {1: [10.0], 2: [20.0], 3: [30.0]}
    equal = make_results({"average": finals}, held_out={"average": {1: 8.0, 2: 18.0, 3: 28.0}})
    single = make_results({"average": finals}, held_out={"average": {1: 8.0}})
    (row,) = final_returns(equal).to_dict("records")
    assert (row["gap_low"], row["gap_high"]) == (2.0, 2.0)
    (row,) = final_returns(single).to_dict("records")
    assert row["gap"] == 2.0
    assert math.isnan(row["gap_low"])


def test_sensitivity_has_a_line_per_strategy() -> None:
    results = make_results(
        {
            "average": {1: [0.0, 5.0], 2: [0.0, 5.0]},
            ("reward_weighted", 0.5): {1: [0.0, 6.0], 2: [0.0, 8.0]},
            ("reward_weighted", 1.0): {1: [0.0, 9.0], 2: [0.0, 9.0]},
            ("loss_weighted", 0.5): {1: [0.0, 1.0]},
        }
    )
    table = sensitivity(results, threshold=5.0, hold=1)
    lines = dict(iter(table.groupby("line")))
    assert list(lines) == ["average", "loss_weighted", "reward_weighted"]
    assert lines["average"]["min_weight"].isna().all()
    assert lines["reward_weighted"]["min_weight"].tolist() == [0.5, 1.0]
    assert lines["reward_weighted"]["final"].tolist() == [7.0, 9.0]
    assert lines["reward_weighted"]["num_reached"].tolist() == [2, 2]


def test_a_single_minimum_weight_is_no_sweep() -> None:
    results = make_results({"average": {1: [1.0]}, ("reward_weighted", 0.5): {1: [1.0]}})
    assert sensitivity(results).empty
