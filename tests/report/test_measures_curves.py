from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rllib_weighted.report import drops, learning_curves, weight_curves
from rllib_weighted.report.measures import values_at
from tests.report.helpers import STEPS, make_results


def test_a_runs_value_is_that_of_its_last_round() -> None:
    progress = pd.DataFrame(
        {"run": [0, 0, 1], "env_steps": [100, 200, 150], "value": [1.0, 2.0, 9.0]}
    )
    found = values_at(progress, np.array([0, 1]), np.array([50, 100, 199, 200, 201]))
    assert np.nan_to_num(found, nan=-1).tolist() == [[-1, 1, 1, 2, -1], [-1, -1, -1, -1, -1]]
    assert values_at(progress, np.array([1]), np.array([150])).tolist() == [[9.0]]


def test_curve_by_hand() -> None:
    results = make_results({"average": {1: [1.0, 10.0], 2: [2.0, 20.0], 3: [6.0, 60.0]}})
    curve = learning_curves(results, num_points=2)
    assert curve["env_steps"].tolist() == [STEPS, 2 * STEPS]
    assert curve["iqm"].tolist() == [3.0, 30.0]  # of three: the mean
    assert curve["num_runs"].tolist() == curve["total_runs"].tolist() == [3, 3]
    assert (curve["low"] < curve["iqm"]).all()
    assert (curve["iqm"] < curve["high"]).all()


def test_the_band_ends_where_the_first_run_does() -> None:
    results = make_results({"average": {1: [1.0] * 4, 2: [3.0] * 2}})
    curve = learning_curves(results, num_points=4)
    assert curve["num_runs"].tolist() == [2, 2, 1, 1]
    assert curve["iqm"].tolist() == [2.0, 2.0, 1.0, 1.0]
    assert curve["low"].notna().tolist() == [True, True, False, False]


def test_arms_of_different_lengths_end_for_themselves() -> None:
    results = make_results({"average": {1: [1.0] * 4}, "sum": {1: [1.0] * 2}})
    ends = learning_curves(results, num_points=4).groupby("arm")["env_steps"].max()
    assert ends.to_dict() == {"average": 4 * STEPS, "sum": 2 * STEPS}


def test_a_single_run_has_no_band() -> None:
    curve = learning_curves(make_results({"average": {1: [1.0, 2.0]}}))
    assert curve["low"].isna().all()
    assert curve["iqm"].notna().all()


def test_before_the_first_episode_there_is_no_point() -> None:
    results = make_results({"average": {1: [np.nan, 2.0, 3.0]}})
    assert learning_curves(results, num_points=3)["env_steps"].tolist() == [2 * STEPS, 3 * STEPS]


def test_same_seed_same_band() -> None:
    rng = np.random.default_rng(0)
    results = make_results({"average": {seed: rng.normal(size=5).tolist() for seed in range(6)}})
    pd.testing.assert_frame_equal(learning_curves(results), learning_curves(results))
    other = learning_curves(results, seed=1)
    assert not np.allclose(other["low"], learning_curves(results)["low"])


def with_weights() -> object:
    results = make_results({"average": {1: [1.0], 2: [1.0]}, "sum": {1: [1.0]}})
    weights = pd.DataFrame(
        {
            "run": [0, 0, 1],
            "round": [5, 10, 5],
            "env_steps": [500, 1000, 500],
            "effective_workers": [2.0, 4.0, 3.0],
            "share_min": [0.1, 0.2, 0.3],
            "share_max": [0.5, 0.6, 0.9],
            "num_dropped": [1, 0, 2],
            "num_worker_rounds": [10, 10, 10],
        }
    )
    return replace(results, weights=weights)


def test_weight_curves_by_hand() -> None:
    curve = weight_curves(with_weights())  # type: ignore[arg-type]
    assert curve["round"].tolist() == [5, 10]
    assert curve["effective_workers"].tolist() == [2.5, 4.0]
    assert curve["effective_low"].tolist() == [2.0, 4.0]
    assert curve["effective_high"].tolist() == [3.0, 4.0]
    assert curve["share_max"].tolist() == pytest.approx([0.7, 0.6])
    assert curve["num_runs"].tolist() == [2, 1]
    assert curve["num_dropped"].tolist() == [3, 0]


def test_drops_by_hand() -> None:
    (row,) = drops(with_weights()).to_dict("records")  # type: ignore[arg-type]
    assert row["arm"] == "average"
    assert row["num_dropped"] == 3
    assert row["dropped_fraction"] == pytest.approx(3 / 30)


def test_without_a_merge_history() -> None:
    results = make_results({"average": {1: [1.0]}})
    assert weight_curves(results).empty
    assert drops(results).empty
