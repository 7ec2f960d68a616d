"""Each arm against the baseline: by how much, how surely, and in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rllib_weighted.report.arms import baseline_of, choose_baseline
from rllib_weighted.report.convergence import HOLD, convergence_runs, encoded
from rllib_weighted.report.finals import is_final, mean_interval
from rllib_weighted.report.intervals import (
    CONFIDENCE,
    NOT_KNOWN,
    Interval,
    holm,
    jackknife_interval,
    permutation_p,
    win_interval,
)
from rllib_weighted.report.results import Results, runs_of
from rllib_weighted.report.survival import common_horizon, restricted_mean


class Measure(NamedTuple):
    """What two arms are compared by.

    Attributes:
        name: Its name in the table.
        column: The column of the runs that it is computed from.
        is_time: Whether it is a time until the threshold, lower is better, and the effect is how
            many percent faster; else the effect is a difference.
    """

    name: str
    column: str
    is_time: bool


MEASURES = (
    Measure("env steps to threshold", "env_steps", True),
    Measure("wall time to threshold", "time_s", True),
    Measure("final return", "final", False),
    Measure("held-out return", "held_out", False),
    Measure("training minus held-out", "gap", False),
)

COLUMNS = [
    *("env", "arm", "baseline", "measure", "differs_in", "num_runs", "num_baseline", "num_pairs"),
    *("effect", "low", "high", "horizon", "probability", "probability_low", "probability_high"),
    *("p", "p_holm", "claim"),
]


def comparisons(
    results: Results,
    *,
    baseline: str | None = None,
    threshold: float | Mapping[str, float] | None = None,
    hold: int = HOLD,
    confidence: float = CONFIDENCE,
) -> pd.DataFrame:
    """Compares each arm with the baseline in the same environment.

    Runs are paired by their seeds where at least two seeds are in both arms; others are then left
    out. Without pairs, the arms are compared as independent samples.

    Args:
        results: From `load_results`.
        baseline: A strategy or the label of an arm; None takes "average", if it is there.
        threshold: As in `thresholds`.
        hold: As in `first_held`.
        confidence: Coverage of the intervals.

    Returns:
        A row per (arm, measure), with the columns

        - env, arm, baseline, measure; differs_in: other settings in which the two differ
        - num_runs, num_baseline: runs that are compared; num_pairs: pairs of them, 0 if unpaired
        - effect, low, high: of times, percent faster than the baseline, 100 (1 - ratio of the
          restricted means); else the difference of the means, arm minus baseline
        - effect, low, high, p are NaN if no run of either arm reached the threshold before the
          horizon
        - horizon: up to which times are restricted, in the measure's unit
        - probability, probability_low, probability_high: that the arm does better on a seed (ties
          count half; of the gap, that it is larger); NaN if unpaired
        - p: of the permutation test; p_holm: corrected for the number of comparisons by the same
          measure
        - claim: whether a difference can be claimed: the interval excludes 0, and p is at most
          1 - confidence

        Empty without a baseline.

    Raises:
        ReportError: A bad baseline, threshold or `hold`.
    """
    name = choose_baseline(results.arms, baseline)
    if name is None:
        return pd.DataFrame(columns=COLUMNS)
    times = convergence_runs(results, threshold=threshold, hold=hold, baseline=baseline)
    rows = [
        row
        for env in results.arms["env"].unique()
        for row in _in_environment(results, env, times[times["env"] == env], name, confidence)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_holm"] = table.groupby("measure")["p"].transform(lambda p: holm(p.to_numpy()))
    excludes_zero = (table["low"] > 0) | (table["high"] < 0)
    table["claim"] = excludes_zero & (table["p"] <= 1 - confidence)
    return table


def _in_environment(
    results: Results, env: str, times: pd.DataFrame, baseline: str, confidence: float
) -> Iterator[dict[str, Any]]:
    """Yields the comparisons of an environment's arms, without what needs all of them."""
    finals = {arm: _final_rows(runs) for arm, runs in runs_of(results, env)}
    for _, arm in results.arms[results.arms["env"] == env].iterrows():
        other, differs_in = baseline_of(arm, results.arms, baseline)
        if other is None:
            continue
        for measure in MEASURES:
            if measure.is_time:
                first, second = (times[times["arm"] == label] for label in (arm["arm"], other))
            else:
                first, second = finals[arm["arm"]], finals[other]
            found = _compare(measure, first, second, confidence)
            if found is not None:
                yield {
                    "env": env,
                    "arm": arm["arm"],
                    "baseline": other,
                    "measure": measure.name,
                    "differs_in": ", ".join(differs_in),
                    **found,
                }


def _final_rows(runs: pd.DataFrame) -> pd.DataFrame:
    final = runs[is_final(runs)]
    return final.assign(gap=final["final"] - final["held_out"])


def _compare(
    measure: Measure, arm: pd.DataFrame, baseline: pd.DataFrame, confidence: float
) -> dict[str, Any] | None:
    """Returns the comparison of two arms by one measure; None without data."""
    arm, baseline = (
        part[np.isfinite(part[measure.column].astype(float))] for part in (arm, baseline)
    )
    if arm.empty or baseline.empty:
        return None
    seeds = np.intersect1d(arm["seed"].dropna(), baseline["seed"].dropna())
    paired = seeds.size >= 2
    if paired:
        arm, baseline = (part.set_index("seed").loc[seeds] for part in (arm, baseline))
    compare = _compare_times if measure.is_time else _compare_values
    values = tuple(
        encoded(part, measure.column)
        if measure.is_time
        else part[measure.column].to_numpy(dtype=np.float64)
        for part in (arm, baseline)
    )
    found = compare(*values, paired=paired, confidence=confidence)
    sizes = {"num_runs": len(arm), "num_baseline": len(baseline)}
    return {**sizes, "num_pairs": int(seeds.size) if paired else 0, **found}


def _compare_times(
    arm: np.ndarray, baseline: np.ndarray, *, paired: bool, confidence: float
) -> dict[str, Any]:
    horizon = common_horizon(arm, baseline)
    if not any(((part > 0) & (part <= horizon)).any() for part in (arm, baseline)):
        unknown = dict.fromkeys(("effect", "low", "high", "p"), math.nan)
        return {**unknown, "horizon": horizon, **_probability(None, confidence)}

    def log_ratio(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
        means = (restricted_mean(part, horizon, axis) for part in (first, second))
        return np.log(next(means)) - np.log(next(means))

    low, high = _interval(log_ratio, arm, baseline, paired=paired, confidence=confidence)
    return {
        "effect": _percent_faster(float(log_ratio(arm, baseline))),
        "low": _percent_faster(high),
        "high": _percent_faster(low),
        "horizon": horizon,
        "p": permutation_p(log_ratio, arm, baseline, paired=paired),
        **_probability(_earlier(arm, baseline) if paired else None, confidence),
    }


def _percent_faster(log_ratio: float) -> float:
    return 0.0 - 100 * math.expm1(log_ratio)  # 0.0 -: never -0.0


def _earlier(arm: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Returns 1 where the arm reached the threshold first, 0 where the baseline did, else 1/2.

    A run that is censored before the other one's time leaves open which was first.
    """
    first = (arm > 0) & ((arm < np.abs(baseline)) | ((baseline < 0) & (arm <= -baseline)))
    second = (baseline > 0) & ((baseline < np.abs(arm)) | ((arm < 0) & (baseline <= -arm)))
    return np.where(first, 1.0, np.where(second, 0.0, 0.5))


def _compare_values(
    arm: np.ndarray, baseline: np.ndarray, *, paired: bool, confidence: float
) -> dict[str, Any]:
    def difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
        return np.mean(first, axis=axis) - np.mean(second, axis=axis)

    wins = None
    if paired:
        low, high = mean_interval(arm - baseline, confidence)
        wins = np.where(arm == baseline, 0.5, (arm > baseline).astype(float))
    else:
        low, high = _interval(difference, arm, baseline, paired=False, confidence=confidence)
    return {
        "effect": float(difference(arm, baseline)),
        "low": low,
        "high": high,
        "horizon": math.nan,
        "p": permutation_p(difference, arm, baseline, paired=paired),
        **_probability(wins, confidence),
    }


def _interval(
    statistic: Callable[..., Any],
    arm: np.ndarray,
    baseline: np.ndarray,
    *,
    paired: bool,
    confidence: float,
) -> Interval:
    samples = [[arm, baseline]] if paired else [[arm], [baseline]]
    return jackknife_interval(statistic, samples, confidence=confidence)


def _probability(wins: np.ndarray | None, confidence: float) -> dict[str, float]:
    names = ("probability", "probability_low", "probability_high")
    found = (math.nan, *NOT_KNOWN) if wins is None else win_interval(wins, confidence)
    return dict(zip(names, found, strict=True))


def fewest_pairs(confidence: float = CONFIDENCE) -> int:
    """Returns how many pairs a claim needs at least.

    Of n pairs that all favour the same arm, the permutation test's p is 2 / 2^n.
    """
    return math.ceil(math.log2(2 / (1 - confidence)))


def can_claim(
    num_runs: int, num_baseline: int, num_pairs: int, confidence: float = CONFIDENCE
) -> bool:
    """Whether so few runs could show a difference at all, however large it is."""
    if num_pairs:
        return num_pairs >= fewest_pairs(confidence)
    return 2 / math.comb(num_runs + num_baseline, num_runs) <= 1 - confidence
