"""Point estimates over few runs, and intervals that say how little is known from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
FEWEST_RESAMPLES = 400
POWER = 0.8
MOST_SEEDS = 10_000
SEED = 0
NOT_KNOWN = (math.nan, math.nan)

_TRIMMED = 0.25
_CELLS = 4_000_000  # values that one batch of a bootstrap holds at once

Statistic = Callable[..., Any]
Interval = tuple[float, float]


def iqm(values: Any, axis: int = -1) -> Any:
    """Returns the interquartile mean: that of the values without the n // 4 lowest and highest.

    Below four values it is the mean. (Agarwal et al., 2021, arXiv 2108.13264.)
    """
    return stats.trim_mean(values, _TRIMMED, axis=axis)


def widened(num_values: int, confidence: float = CONFIDENCE) -> float:
    """Returns the level at which a bootstrap percentile interval covers `confidence`.

    Percentile intervals of few values are too narrow, by about the factor between normal and
    t quantiles and by sqrt((n - 1) / n); the level makes up for both (Hesterberg, 2015, "What
    teachers should know about the bootstrap", section 3.2, "expanded percentile").

    Args:
        num_values: n >= 2, what was resampled.
        confidence: The coverage that is wanted.
    """
    quantile = stats.t.ppf((1 + confidence) / 2, num_values - 1)
    tail = stats.norm.cdf(-math.sqrt(num_values / (num_values - 1)) * quantile)
    return float(1 - 2 * tail)


def bootstrap_interval(
    statistic: Statistic,
    data: np.ndarray,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    *,
    num_resamples: int | None = None,
) -> tuple[Any, Any]:
    """Returns the bootstrap interval of a statistic over the last axis of the data.

    Runs are resampled, each with all that belongs to it. The interval is the percentile one at
    the level `widened` says. With n values there are `NUM_RESAMPLES` resamples, less above 50
    values in proportion, but at least `FEWEST_RESAMPLES`.

    Args:
        statistic: Takes an array like `data` and `axis`, and reduces that axis.
        data: An array `[..., n]`, resampled along the last axis.
        confidence: Coverage.
        seed: Seeds the resampling: the same data give the same interval.
        num_resamples: Another number of resamples.

    Returns:
        Lower and upper ends, of the shape of the statistic; NaN where n < 2.
    """
    *shape, num_values = data.shape
    if num_values < 2:
        return np.full(shape, np.nan)[()], np.full(shape, np.nan)[()]
    if num_resamples is None:
        num_resamples = max(FEWEST_RESAMPLES, min(NUM_RESAMPLES, 50 * NUM_RESAMPLES // num_values))
    result = stats.bootstrap(
        (data,),
        statistic,
        vectorized=True,
        axis=-1,
        n_resamples=num_resamples,
        batch=max(1, _CELLS // data.size),
        confidence_level=widened(num_values, confidence),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def stratified_interval(
    samples: Sequence[np.ndarray], confidence: float = CONFIDENCE, seed: int = SEED
) -> Interval:
    """Returns the bootstrap interval of the mean of several samples' interquartile means.

    Each sample is resampled for itself; see `bootstrap_interval`.

    Args:
        samples: The samples, `[n]` each.
        confidence: Coverage.
        seed: Seeds the resampling.

    Returns:
        Lower and upper end; NaN if a sample has less than two values.
    """
    fewest = min(sample.size for sample in samples)
    if fewest < 2:
        return NOT_KNOWN

    def mean(*resampled: np.ndarray, axis: int = -1) -> Any:
        return np.mean([iqm(part, axis=axis) for part in resampled], axis=0)

    interval = stats.bootstrap(
        tuple(samples),
        mean,
        vectorized=True,
        axis=-1,
        n_resamples=NUM_RESAMPLES,
        confidence_level=widened(fewest, confidence),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def seeds_needed(
    spread: float, num_seeds: int, effect: float, confidence: float = CONFIDENCE
) -> int | None:
    """Returns how many seeds it takes to see an effect in `POWER` of all experiments.

    Args:
        spread: Half the length of a t interval of the effect at that `confidence`.
        num_seeds: Seeds (or pairs) that this interval is from.
        effect: The effect to be seen, in the same unit.
        confidence: At which it is to be told from 0.

    Returns:
        The number; None if the spread or the effect says nothing, or if it is above `MOST_SEEDS`.
    """
    if num_seeds < 2 or not (math.isfinite(spread) and effect > 0):
        return None
    level = (1 + confidence) / 2
    deviation = spread / stats.t.ppf(level, num_seeds - 1) * math.sqrt(num_seeds)
    numbers = np.arange(2, MOST_SEEDS + 1)
    quantiles = stats.t.ppf(level, numbers - 1) + stats.t.ppf(POWER, numbers - 1)
    enough = numbers[quantiles * deviation / np.sqrt(numbers) <= effect]
    return int(enough[0]) if enough.size else None


def jackknife_interval(
    statistic: Statistic, samples: Sequence[Sequence[np.ndarray]], confidence: float = CONFIDENCE
) -> Interval:
    """Returns the jackknife t interval of a statistic of one or two independent samples.

    The standard error is that of leaving one value of a sample out at a time; the degrees of
    freedom are n - 1, of two samples Welch's.

    Args:
        statistic: Takes the arrays of all samples in order, and reduces the last axis.
        samples: For each sample its arrays `[n]`, whose entries belong together.
        confidence: Coverage.

    Returns:
        Lower and upper end; NaN if a sample has less than two values.
    """
    variances, freedoms = [], []
    for number, sample in enumerate(samples):
        num_values = sample[0].size
        if num_values < 2:
            return NOT_KNOWN
        indices = np.arange(num_values)
        others = np.array([np.delete(indices, left_out) for left_out in indices])
        resampled = [*samples[:number], [array[others] for array in sample], *samples[number + 1 :]]
        values = statistic(*(array for sample in resampled for array in sample))
        variances.append(float((num_values - 1) ** 2 / num_values * np.var(values, ddof=1)))
        freedoms.append(num_values - 1)
    estimate = float(statistic(*(array for sample in samples for array in sample)))
    variance = sum(variances)
    if not variance > 0:
        return (estimate, estimate) if variance == 0 else NOT_KNOWN
    parts = sum(part**2 / freedom for part, freedom in zip(variances, freedoms, strict=True))
    reach = float(stats.t.ppf((1 + confidence) / 2, variance**2 / parts)) * math.sqrt(variance)
    return estimate - reach, estimate + reach


def permutation_p(
    statistic: Statistic, first: np.ndarray, second: np.ndarray, *, paired: bool
) -> float:
    """Returns the two-sided p value of a permutation test that two arms are exchangeable.

    Paired values are swapped within their pairs. All permutations are gone through where they
    are few; else 9,999 random ones, 1,999 with more than 50 values.

    Args:
        statistic: Takes both arrays and `axis`; 0 without a difference.
        first: Values of one arm.
        second: Values of the other one; in the order of the pairs if `paired`.
        paired: Whether the values are pairs.
    """
    if min(first.size, second.size) < 2:
        return math.nan
    num_resamples = 9999 if first.size + second.size <= 100 else 1999
    result = stats.permutation_test(
        (first, second),
        statistic,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, _CELLS // (first.size + second.size)),
        rng=np.random.default_rng(SEED),
    )
    return float(result.pvalue)


def win_interval(wins: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Returns the probability of winning and its exact (Clopper-Pearson) interval.

    Args:
        wins: 1 for a win, 0 for a defeat, 1/2 for a tie, `[n]`.
        confidence: Coverage.

    Returns:
        Mean of `wins`, lower and upper end. With an odd number of ties the count is rounded down
        for the lower end and up for the upper one, so the interval is never too narrow.
    """
    if wins.size == 0:
        return math.nan, *NOT_KNOWN
    total = float(wins.sum())
    low = stats.binomtest(math.floor(total), wins.size).proportion_ci(confidence).low
    high = stats.binomtest(math.ceil(total), wins.size).proportion_ci(confidence).high
    return total / wins.size, float(low), float(high)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns p values corrected for their number (Holm, 1979); NaN stays and does not count."""
    values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(values.size, np.nan)
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN comes last.
    scaled = values[order] * np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def encode(times: Any, reached: Any) -> np.ndarray:
    """Returns times until an event as one array: positive if it happened, else negated (censored).

    One array per arm is what a bootstrap or a permutation can resample.

    Args:
        times: Times until the event or, if it did not happen, until the end of the run; > 0.
        reached: Whether it happened.
    """
    return np.where(reached, times, -np.asarray(times, dtype=np.float64))


def common_horizon(*arms: np.ndarray) -> float:
    """Returns up to when the mean times of several arms can be compared.

    After the longest run of an arm nothing is known of it, unless that run reached the threshold:
    then every run had.

    Args:
        arms: Encoded times of each arm, `[n]`.
    """
    ends = [float(np.abs(times).max()) for times in arms]
    censored = [end for end, times in zip(ends, arms, strict=True) if -end in times]
    return min([max(ends), *censored])


def restricted_mean(times: np.ndarray, horizon: float, axis: int = -1) -> Any:
    """Returns the mean time until the event, counting at most `horizon` of each run.

    It is the area under the Kaplan-Meier curve up to the horizon (Irwin, 1949; Royston and
    Parmar, 2013). If no run is censored before the horizon, that is the mean of the smaller of
    time and horizon. Beyond the longest run, the curve stays where it is.

    Args:
        times: Encoded times, `[..., n]`.
        horizon: As `common_horizon` returns it.
        axis: The axis of the runs.

    Returns:
        The mean over that axis, in the unit of the times.
    """
    times = np.moveaxis(np.asarray(times, dtype=np.float64), axis, -1)
    lengths = np.abs(times)
    # Of equal times the events come first: a run that is censored then was still at risk.
    order = np.lexsort((times < 0, lengths), axis=-1)
    lengths = np.take_along_axis(lengths, order, axis=-1)
    is_event = np.take_along_axis(times, order, axis=-1) > 0
    at_risk = np.arange(times.shape[-1], 0, -1)
    after = np.cumprod(1 - is_event / at_risk, axis=-1)
    before = np.concatenate([np.ones_like(after[..., :1]), after], axis=-1)
    ends = np.concatenate(
        [np.minimum(lengths, horizon), np.full_like(lengths[..., :1], horizon)], axis=-1
    )
    widths = np.diff(ends, axis=-1, prepend=0.0)
    return (before * widths).sum(axis=-1)


def median_time(times: np.ndarray) -> float:
    """Returns when the Kaplan-Meier curve first has half of the runs or more; NaN if it never has.

    Args:
        times: Encoded times, `[n]`.
    """
    reached = reached_curve(times)
    half = reached.quantiles[reached.probabilities >= 0.5]
    return float(half[0]) if half.size else math.nan


def reached_curve(times: np.ndarray) -> Any:
    """Returns the Kaplan-Meier estimate of the fraction of runs that have reached the threshold.

    Args:
        times: Encoded times, `[n]`.

    Returns:
        SciPy's distribution function: `quantiles` are times, `probabilities` fractions.
    """
    events, censored = times[times > 0], -times[times < 0]
    return stats.ecdf(stats.CensoredData(uncensored=events, right=censored)).cdf
