"""Times until something happens, when some runs ended before it did.

A run that never reached the threshold tells that its time is longer than the run was: it is
*censored*. Left out, or counted as if it had taken just that long, it would make slow arms fast.

Times are held in one array: positive where the run reached the threshold, negative (minus the
length of the run) where it is censored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def encode(times: Any, reached: Any) -> np.ndarray:
    """Returns positive times as one array, those without an event negated."""
    return np.where(reached, times, -np.asarray(times, dtype=np.float64))


def common_horizon(*arms: np.ndarray) -> float:
    """Returns up to when the mean times of several arms can be compared.

    After the longest run of an arm nothing is known of it, unless that run reached the threshold:
    then every run had.

    Args:
        arms: Encoded times of each arm, `[n]`.
    """
    longest = max(float(np.abs(times).max()) for times in arms)
    known = [
        float(np.abs(times).max())
        for times in arms
        if (times[np.abs(times) == np.abs(times).max()] < 0).any()
    ]
    return min([longest, *known])


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
    half = reached.probabilities >= 0.5
    return float(reached.quantiles[half][0]) if half.any() else float("nan")


def reached_curve(times: np.ndarray) -> Any:
    """Returns the Kaplan-Meier estimate of the fraction of runs that have reached the threshold.

    Args:
        times: Encoded times, `[n]`.

    Returns:
        SciPy's distribution function: `quantiles` are times, `probabilities` fractions.
    """
    events, censored = times[times > 0], -times[times < 0]
    return stats.ecdf(stats.CensoredData(uncensored=events, right=censored)).cdf
