"""Learning curves, and what the weights did over time, per arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rllib_weighted.report.intervals import CONFIDENCE, SEED, bootstrap_interval, iqm
from rllib_weighted.report.results import Results, runs_of

NUM_POINTS = 100


def learning_curves(
    results: Results,
    *,
    num_points: int = NUM_POINTS,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> pd.DataFrame:
    """Returns the learning curve of each arm: the interquartile mean over its runs, with a band.

    A run's value after x steps is that of its last round up to x; nothing is carried beyond a
    run's end. The band resamples the runs of each arm for itself (stratified bootstrap, see
    `bootstrap_interval`).

    Args:
        results: From `load_results`.
        num_points: Points of the common grid, from the first to the last step in an environment.
        confidence: Coverage of the band at each point, for itself.
        seed: Seeds the bootstrap.

    Returns:
        A row per (arm, point): env, arm, env_steps, iqm (of the metric), low, high, num_runs
        (that had come so far), total_runs. The band is NaN where not all runs of the arm have
        come that far (those that have may be a selection), and with a single run.
    """
    parts = []
    for env in results.arms["env"].unique():
        grid = _grid(results, env, num_points)
        for arm, runs in runs_of(results, env):
            values = values_at(results.progress, runs["run"].to_numpy(), grid)
            parts.append(_curve(env, arm, grid, values, confidence, seed))
    return pd.concat(parts, ignore_index=True)


def _grid(results: Results, env: str, num_points: int) -> np.ndarray:
    runs = results.runs.loc[results.runs["counts"] & (results.runs["env"] == env), "run"]
    rows = row_ranges(results.progress, runs.to_numpy())
    steps = results.progress["env_steps"].to_numpy()
    first = min(int(steps[start]) for start, _ in rows)
    last = max(int(steps[end - 1]) for _, end in rows)
    return np.unique(np.linspace(first, last, num_points).round().astype(np.int64))


def row_ranges(progress: pd.DataFrame, runs: np.ndarray) -> list[tuple[int, int]]:
    """Returns where the rows of each run begin and end in the table of progress."""
    numbers = progress["run"].to_numpy()
    starts = np.searchsorted(numbers, runs, side="left")
    ends = np.searchsorted(numbers, runs, side="right")
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def values_at(progress: pd.DataFrame, runs: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Returns the metric of each run at each point of a grid of environment steps, `[runs, grid]`.

    It is that of the last round up to the point; NaN before the first and after the last.
    """
    steps, values = progress["env_steps"].to_numpy(), progress["value"].to_numpy()
    found = np.full((runs.size, grid.size), np.nan)
    for row, (start, end) in enumerate(row_ranges(progress, runs)):
        index = np.searchsorted(steps[start:end], grid, side="right") - 1
        inside = (index >= 0) & (grid <= steps[end - 1])
        found[row, inside] = values[start:end][index[inside]]
    return found


def _curve(
    env: str, arm: str, grid: np.ndarray, values: np.ndarray, confidence: float, seed: int
) -> pd.DataFrame:
    total = values.shape[0]
    known = np.isfinite(values)
    num_runs = known.sum(axis=0)
    middle, low, high = (np.full(grid.size, np.nan) for _ in range(3))
    complete = num_runs == total
    if complete.any():
        columns = np.ascontiguousarray(values[:, complete].T)
        middle[complete] = iqm(columns)
        low[complete], high[complete] = bootstrap_interval(
            iqm, [columns], confidence=confidence, seed=seed
        )
    for point in np.flatnonzero(~complete & (num_runs > 0)):
        middle[point] = iqm(values[known[:, point], point])
    rows = num_runs > 0
    columns_: dict[str, Any] = {
        "env": env,
        "arm": arm,
        "env_steps": grid[rows],
        "iqm": middle[rows],
        "low": low[rows],
        "high": high[rows],
        "num_runs": num_runs[rows],
        "total_runs": total,
    }
    return pd.DataFrame(columns_)


def weight_curves(results: Results) -> pd.DataFrame:
    """Returns what the weights did over time: means over the runs of each arm.

    Returns:
        A row per (arm, range of rounds): env, arm, round (last of the range), effective_workers,
        share_min, share_max (means over runs), effective_low, effective_high (lowest and highest
        run), num_dropped, num_worker_rounds (sums over runs), num_runs. Empty if no run has a
        merge history.
    """
    if results.weights.empty:
        return pd.DataFrame()
    facts = results.runs.set_index("run")[["env", "arm"]]
    table = results.weights.join(facts, on="run")
    table["bin"] = table.groupby("run", sort=False).cumcount()
    grouped = table.groupby(["env", "arm", "bin"], sort=True)
    curves = grouped.agg(
        round=("round", "max"),
        effective_workers=("effective_workers", "mean"),
        effective_low=("effective_workers", "min"),
        effective_high=("effective_workers", "max"),
        share_min=("share_min", "mean"),
        share_max=("share_max", "mean"),
        num_dropped=("num_dropped", "sum"),
        num_worker_rounds=("num_worker_rounds", "sum"),
        num_runs=("run", "nunique"),
    )
    return curves.reset_index().drop(columns="bin")


def drops(results: Results) -> pd.DataFrame:
    """Returns how often workers were dropped from the merge.

    Returns:
        A row per arm with a merge history: env, arm, num_runs, num_dropped (worker-rounds), and
        dropped_fraction of all worker-rounds.
    """
    curves = weight_curves(results)
    if curves.empty:
        return pd.DataFrame(columns=["env", "arm", "num_runs", "num_dropped", "dropped_fraction"])
    grouped = curves.groupby(["env", "arm"], sort=False)
    table = grouped.agg(
        num_runs=("num_runs", "max"),
        num_dropped=("num_dropped", "sum"),
        all=("num_worker_rounds", "sum"),
    ).reset_index()
    table["dropped_fraction"] = table["num_dropped"] / table.pop("all")
    return table
