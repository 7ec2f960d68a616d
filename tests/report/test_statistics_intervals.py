"""Intervals by hand, against slow oracles, and whether they cover what they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from rllib_weighted.report.statistics import (
    bootstrap_interval,
    holm,
    iqm,
    jackknife_interval,
    permutation_p,
    widened,
    win_interval,
)


def mean(*arrays: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of one array, or difference of the means of two."""
    means = [np.mean(array, axis=axis) for array in arrays]
    return means[0] if len(means) == 1 else means[0] - means[1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 9], 4.0),  # below four values: the mean
        ([1, 2, 4, 100], 3.0),  # (2 + 4) / 2
        ([5, 1, 2, 3, 100], 10 / 3),  # 5 // 4 = 1 off each end: (2 + 3 + 5) / 3
        ([0, 0, 1, 2, 3, 4, 50, 60], 2.5),  # two off each end: (1 + 2 + 3 + 4) / 4
    ],
)
def test_iqm_by_hand(values: list[float], expected: float) -> None:
    assert iqm(np.array(values, dtype=float)) == pytest.approx(expected)


def test_widened_by_hand() -> None:
    # n = 5: t quantile 2.776 times sqrt(5 / 4) = 3.104 normal deviations: tail 0.000955.
    assert widened(5) == pytest.approx(1 - 2 * stats.norm.cdf(-2.7764451 * math.sqrt(1.25)), 1e-6)
    assert 0.95 < widened(1000) < 0.9505 < widened(20) < widened(5) < widened(2) <= 1


def test_bootstrap_agrees_with_all_resamples() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0])
    every = np.array([iqm(np.array(draw)) for draw in itertools.product(values, repeat=4)])
    level = widened(4, 0.5)
    expected = np.quantile(every, [(1 - level) / 2, (1 + level) / 2])
    found = bootstrap_interval(iqm, values, confidence=0.5, num_resamples=20_000)
    assert found == pytest.approx(expected, abs=0.3)


def test_bootstrap_resamples_whole_runs_and_each_point_alike() -> None:
    rng = np.random.default_rng(3)
    curves = rng.normal(size=(2, 6))  # two points of six runs
    lows, highs = bootstrap_interval(iqm, curves)
    for point in range(2):
        assert bootstrap_interval(iqm, curves[point]) == (lows[point], highs[point])


def test_bootstrap_is_the_same_each_time_and_changes_with_the_seed() -> None:
    values = np.random.default_rng(0).normal(size=8)
    assert bootstrap_interval(iqm, values) == bootstrap_interval(iqm, values)
    assert bootstrap_interval(iqm, values, seed=1) != bootstrap_interval(iqm, values)


def test_a_single_value_has_no_interval() -> None:
    assert np.isnan(bootstrap_interval(iqm, np.array([1.0]))).all()
    assert np.isnan(bootstrap_interval(iqm, np.ones((3, 1)))).all()
    assert np.isnan(jackknife_interval(mean, [[np.array([1.0])]])).all()
    assert np.isnan(jackknife_interval(mean, [[np.ones(3)], [np.array([1.0])]])).all()


def test_many_values_take_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    original = stats.bootstrap

    def spy(*args, n_resamples, **kwargs):
        counts.append(n_resamples)
        return original(*args, n_resamples=n_resamples, **kwargs)

    monkeypatch.setattr(stats, "bootstrap", spy)
    for size in (5, 50, 100, 5000):
        bootstrap_interval(iqm, np.arange(size, dtype=float))
    assert counts == [2000, 2000, 1000, 400]


def test_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=7)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert jackknife_interval(mean, [[values]]) == pytest.approx((expected.low, expected.high))


def test_jackknife_of_two_samples_is_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=7), rng.normal(1, 3, size=4)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = jackknife_interval(mean, [[first], [second]])
    assert found == pytest.approx((expected.low, expected.high))


def test_jackknife_without_any_spread_is_a_point() -> None:
    assert jackknife_interval(mean, [[np.full(4, 2.0)]]) == (2.0, 2.0)


def test_permutation_by_hand() -> None:
    # All five pairs favour one side: 2 of the 2^5 sign patterns are as extreme.
    first = np.arange(5.0)
    assert permutation_p(mean, first + 1, first, paired=True) == 2 / 2**5
    # 3 against 3, all apart: 2 of the 20 ways to choose three of six are as extreme.
    assert permutation_p(mean, np.arange(3.0), np.arange(3.0) + 9, paired=False) == 2 / 20


def test_permutation_of_equal_values_shows_nothing() -> None:
    assert permutation_p(mean, np.ones(8), np.ones(8), paired=True) == 1
    assert math.isnan(permutation_p(mean, np.ones(1), np.ones(1), paired=True))


def test_random_permutations_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(0.6, 1, size=20)
    p = permutation_p(mean, first, np.zeros(20), paired=True)  # 2^20 are too many: random
    signs = rng.choice([-1.0, 1.0], size=(100_000, 20))
    expected = np.mean(np.abs((signs * first).mean(axis=1)) >= abs(first.mean()) - 1e-12)
    assert p == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("wins", "expected"),
    [
        # Clopper-Pearson at 0 or n of n: the other end is (alpha / 2)^(1 / n) from there.
        ([1.0] * 6, (1.0, 0.025 ** (1 / 6), 1.0)),
        ([0.0] * 3, (0.0, 0.0, 1 - 0.025 ** (1 / 3))),
        # One tie in two: the count 1.5 is 1 for the lower end, 2 for the upper one.
        ([1.0, 0.5], (0.75, 1 - math.sqrt(0.975), 1.0)),
    ],
)
def test_win_interval_by_hand(wins: list[float], expected: tuple[float, ...]) -> None:
    assert win_interval(np.array(wins)) == pytest.approx(expected)


def test_no_pairs_no_probability() -> None:
    assert np.isnan(win_interval(np.array([]))).all()


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1 = 0.03, 0.06, 0.04; never below one before: 0.06.
    found = holm([0.04, math.nan, 0.01, 0.03])
    assert found == pytest.approx([0.06, math.nan, 0.03, 0.06], nan_ok=True)
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).size == 0


def coverage(num_values: int, *, level: float | None = None) -> float:
    """How often the band covers the IQM of 400 draws from a log-normal distribution."""
    rng = np.random.default_rng(num_values)
    truth = iqm(rng.lognormal(0, 0.5, 2_000_000))
    draws = rng.lognormal(0, 0.5, (400, num_values))
    if level is None:
        low, high = bootstrap_interval(iqm, draws)
    else:
        result = stats.bootstrap(
            [draws],
            iqm,
            axis=-1,
            vectorized=True,
            method="percentile",
            confidence_level=level,
            n_resamples=1000,
            rng=rng,
        )
        low, high = result.confidence_interval
    return float(np.mean((low <= truth) & (truth <= high)))


# 400 draws: a coverage of 0.95 is estimated with a standard error of 0.011.
@pytest.mark.slow
@pytest.mark.parametrize("num_values", [5, 10, 30])
def test_the_bands_of_five_runs_and_more_cover_about_what_they_say(num_values: int) -> None:
    assert 0.90 <= coverage(num_values) <= 0.995


@pytest.mark.slow
def test_plain_percentile_bands_of_few_runs_would_not() -> None:
    assert coverage(5, level=0.95) < 0.90


@pytest.mark.slow
def test_bands_of_three_runs_cover_less_as_the_report_says() -> None:
    assert coverage(3) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("num_values", [3, 5, 10])
def test_the_jackknife_covers_the_log_ratio_of_paired_times(num_values: int) -> None:
    rng = np.random.default_rng(num_values)

    def log_ratio(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.log(first.mean(axis=axis)) - np.log(second.mean(axis=axis))

    hits = 0
    for _ in range(600):
        shared = rng.normal(size=num_values)
        times = np.exp(0.3 * (shared + rng.normal(size=(2, num_values))))
        low, high = jackknife_interval(log_ratio, [[*times]])
        hits += low <= 0 <= high
    assert 0.92 <= hits / 600 <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("num_pairs", "probability"), [(3, 0.5), (6, 0.7), (12, 0.9)])
def test_the_win_interval_never_covers_less_than_it_says(
    num_pairs: int, probability: float
) -> None:
    rng = np.random.default_rng(num_pairs)
    hits = 0
    for _ in range(400):
        ties = rng.random(num_pairs) < 0.2
        wins = np.where(ties, 0.5, rng.random(num_pairs) < probability)
        _, low, high = win_interval(wins)
        hits += low <= 0.8 * probability + 0.1 <= high
    assert hits / 400 >= 0.94
