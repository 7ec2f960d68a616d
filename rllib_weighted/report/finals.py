"""Final returns in training and on held-out seeds, and how both depend on the minimum weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rllib_weighted.report.convergence import HOLD, convergence
from rllib_weighted.report.intervals import (
    CONFIDENCE,
    NOT_KNOWN,
    SEED,
    Interval,
    bootstrap_interval,
    iqm,
)
from rllib_weighted.report.results import Results, runs_of

LEAST_LENGTH = 0.9
"""Part of its arm's longest run that a run which did not come to its own end must have."""


def is_final(runs: pd.DataFrame) -> pd.Series:
    """Whether each of an arm's runs has come so far that its last return is a final one.

    It has if it came to its own end, or is at least `LEAST_LENGTH` as long as the arm's longest.
    """
    return runs["finished"] | (runs["env_steps"] >= LEAST_LENGTH * runs["env_steps"].max())


def final_returns(
    results: Results, *, confidence: float = CONFIDENCE, seed: int = SEED
) -> pd.DataFrame:
    """Returns each arm's final return in training and on held-out seeds, and their difference.

    A run's final return is the mean of the metric over the last tenth of its environment steps;
    its held-out return is that of the evaluations in the same rounds (or the last one before), in
    environments whose seeds no worker ever saw. Runs that are still far from done (see
    `is_final`) are left out.

    Args:
        results: From `load_results`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstrap.

    Returns:
        A row per arm: env, arm, num_runs, num_unfinished (left out); final, final_low, final_high
        (interquartile mean over runs, bootstrap interval); num_held_out (runs with an
        evaluation), held_out, held_out_low, held_out_high (the same); gap, gap_low, gap_high
        (training minus held-out: mean over the runs that have both, t interval). NaN where there
        are no data.
    """
    rows = []
    for env in results.arms["env"].unique():
        for arm, every in runs_of(results, env):
            runs = every[is_final(every)]
            row: dict[str, Any] = {
                "env": env,
                "arm": arm,
                "num_runs": len(runs),
                "num_unfinished": len(every) - len(runs),
            }
            for name in ("final", "held_out"):
                values = runs[name].to_numpy()
                values = values[np.isfinite(values)]
                low, high = bootstrap_interval(iqm, [values], confidence=confidence, seed=seed)
                middle = float(iqm(values)) if values.size else math.nan
                row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
            gaps = (runs["final"] - runs["held_out"]).dropna().to_numpy()
            low, high = mean_interval(gaps, confidence)
            mean = float(gaps.mean()) if gaps.size else math.nan
            row |= {"num_held_out": gaps.size, "gap": mean, "gap_low": low, "gap_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Returns the t interval of a mean; NaN with less than two values."""
    if values.size < 2:
        return NOT_KNOWN
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def sensitivity(
    results: Results,
    *,
    threshold: float | Mapping[str, float] | None = None,
    hold: int = HOLD,
    baseline: str | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> pd.DataFrame:
    """Returns final return and convergence as they depend on the minimum weight.

    Args:
        results: From `load_results`.
        threshold: As in `thresholds`.
        hold: As in `first_held`.
        baseline: As in `convergence`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstraps.

    Returns:
        A row per arm whose minimum weight is a number, or that has none: env, line (the strategy
        and whatever else tells lines apart), arm, min_weight (NaN: a level line), and the columns
        of `final_returns` and `convergence`. Only of environments in which a line has at least
        two minimum weights.
    """
    table = results.arms.copy()
    is_schedule = table["varied"].map(lambda varied: "min_weight schedule" in varied)
    table = table[~is_schedule]
    table["line"] = [_line(arm) for _, arm in table.iterrows()]
    weights = table.groupby(["env", "line"])["min_weight"].nunique()
    swept = {env for (env, _), count in weights.items() if count > 1}
    table = table.loc[table["env"].isin(swept), ["env", "line", "arm", "min_weight"]]
    finals = final_returns(results, confidence=confidence, seed=seed)
    times = convergence(
        results,
        threshold=threshold,
        hold=hold,
        baseline=baseline,
        confidence=confidence,
        seed=seed,
    )
    table = table.merge(finals, on=["env", "arm"], how="left")
    table = table.merge(times.drop(columns="num_runs"), on=["env", "arm"], how="left")
    return table.sort_values(["env", "line", "min_weight"], ignore_index=True)


def _line(arm: pd.Series) -> str:
    """Returns an arm's label without its minimum weight."""
    parts = str(arm["arm"]).split(", ")
    return ", ".join(part for part in parts if not part.startswith("m="))
