"""Censored times by hand, and against SciPy's Kaplan-Meier estimate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rllib_weighted.report.statistics import (
    common_horizon,
    encode,
    median_time,
    reached_curve,
    restricted_mean,
)


def test_without_censoring_it_is_the_mean_of_what_is_within_the_horizon() -> None:
    times = np.array([1.0, 4.0, 10.0])
    assert restricted_mean(times, 10.0) == pytest.approx(5.0)
    assert restricted_mean(times, 6.0) == pytest.approx((1 + 4 + 6) / 3)


def test_censored_by_hand() -> None:
    # Times 1, 2+ and 3 (+: censored). S = 1 up to 1, then 2/3; at 3 the last one: 0.
    # Area up to 3: 1 * 1 + 2 * 2/3 = 7/3.
    times = encode([1, 2, 3], [True, False, True])
    assert times.tolist() == [1, -2, 3]
    assert restricted_mean(times, 3.0) == pytest.approx(7 / 3)


def test_of_equal_times_the_event_comes_first() -> None:
    # At 2 an event and a censoring: the censored run was still at risk, S falls to 1/2.
    assert restricted_mean(np.array([-2.0, 2.0]), 4.0) == pytest.approx(2 + 2 * 0.5)


def test_negative_control_leaving_censored_runs_out_makes_it_fast() -> None:
    times = np.array([1.0, 2.0, -10.0, -10.0])
    assert restricted_mean(times, 10.0) == pytest.approx((1 + 2 + 10 + 10) / 4)
    assert restricted_mean(times[times > 0], 10.0) == pytest.approx(1.5)


@pytest.mark.parametrize("seed", range(20))
def test_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events, limits = rng.integers(1, 12, (2, 9)).astype(float)  # with ties
    times = encode(np.minimum(events, limits), events <= limits)
    horizon = min(common_horizon(times), 8.0)
    curve = stats.ecdf(stats.CensoredData(uncensored=times[times > 0], right=-times[times < 0])).sf
    grid = np.arange(0, horizon, 0.001) + 0.0005  # the area by a sum of thin stripes
    area = curve.evaluate(grid).sum() * 0.001
    assert restricted_mean(times, horizon) == pytest.approx(area, abs=0.01)


def test_many_samples_at_once() -> None:
    rng = np.random.default_rng(0)
    times = rng.choice([-1.0, 1.0], (4, 5, 6)) * rng.uniform(1, 9, (4, 5, 6))
    found = restricted_mean(times, 8.0)
    assert found.shape == (4, 5)
    for index in np.ndindex(4, 5):
        assert found[index] == pytest.approx(restricted_mean(times[index], 8.0))
    assert restricted_mean(np.moveaxis(times, -1, 0), 8.0, axis=0) == pytest.approx(found)


def test_the_order_of_runs_does_not_matter() -> None:
    times = np.array([5.0, -3.0, 2.0, -5.0, 4.0])
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert restricted_mean(times[order], 5.0) == pytest.approx(restricted_mean(times, 5.0))


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([[1.0, 3.0], [2.0, 7.0]], 7.0),  # everybody reached it: everything is known
        ([[1.0, -3.0], [2.0, 7.0]], 3.0),  # nothing is known of the first arm after 3
        ([[1.0, -3.0], [2.0, -2.5]], 2.5),
        ([[-1.0, 3.0], [2.0, 7.0]], 7.0),  # the longest run of the first arm reached it
        ([[3.0, -3.0], [2.0, 7.0]], 3.0),
    ],
)
def test_horizon(arms: list[list[float]], expected: float) -> None:
    assert common_horizon(*(np.array(arm) for arm in arms)) == expected


def test_median() -> None:
    assert median_time(np.array([3.0, 1.0, 2.0])) == 2.0
    assert median_time(np.array([1.0, -9.0, 4.0, -9.0])) == 4.0  # two of four
    assert math.isnan(median_time(np.array([1.0, -9.0, -9.0])))


def test_curve_of_nobody() -> None:
    curve = reached_curve(np.array([-3.0, -4.0]))
    assert curve.probabilities.max() == 0
