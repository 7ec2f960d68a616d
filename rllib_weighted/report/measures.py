"""What is measured per arm: learning curves, convergence, final returns, weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, Unpack

import numpy as np
import pandas as pd

from rllib_weighted.report import statistics
from rllib_weighted.report.arms import choose_baseline, is_baseline
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.results import Results
from rllib_weighted.report.statistics import CONFIDENCE, SEED
from rllib_weighted.report.trials import ReportError, unknown
from rllib_weighted.text import printable

NUM_POINTS = 100
HOLD = 5
DERIVED_FRACTION = 0.9
LEAST_LENGTH = 0.9
"""Part of its arm's longest run that a run which did not come to its own end must have."""

Limits = float | Mapping[str, float] | None
"""Thresholds as they are asked for: see `thresholds`."""


class Question(TypedDict, total=False):
    """What convergence is asked for; keywords of all measures that need a threshold.

    Attributes:
        threshold: As in `thresholds`.
        hold: Rounds that it has to be sustained, see `first_sustained`; `HOLD` if not given.
        baseline: Strategy or arm that others are compared with, and that the threshold is derived
            from where none is given; without it, or None, "average", if it is there.
    """

    threshold: Limits
    hold: int
    baseline: str | None


class Options(Question, total=False):
    """All keywords that shape a report.

    Attributes:
        confidence: Coverage of the intervals; `CONFIDENCE` if not given.
        seed: Seeds the bootstraps, so that the same results give the same report.
    """

    confidence: float
    seed: int


_CLOCKS = ("env_steps", "time_s")
_TIME_NUMBERS = ("mean", "low", "high", "median", "horizon")


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
    for env in results.envs:
        every = results.counting(env)
        starts = [start for start, _ in row_ranges(results.progress, every["run"].to_numpy())]
        first = results.progress["env_steps"].to_numpy()[starts].min()
        points = np.linspace(first, every["env_steps"].max(), num_points)
        grid = np.unique(points.round().astype(np.int64))
        for arm, runs in results.by_arm(env):
            values = values_at(results.progress, runs["run"].to_numpy(), grid)
            facts = {"env": env, "arm": arm, "env_steps": grid}
            curve = pd.DataFrame({**facts, **_curve(values, confidence, seed)})
            parts.append(curve[curve["num_runs"] > 0])
    return pd.concat(parts, ignore_index=True)


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


def _curve(values: np.ndarray, confidence: float, seed: int) -> dict[str, Any]:
    """Returns the columns of the curve over values `[runs, grid]`, a value per point."""
    known = np.isfinite(values)
    num_runs = known.sum(axis=0)
    middle, low, high = np.full((3, values.shape[1]), np.nan)
    complete = num_runs == len(values)
    if complete.any():
        points = np.ascontiguousarray(values[:, complete].T)
        middle[complete] = statistics.iqm(points)
        band = statistics.bootstrap_interval(statistics.iqm, points, confidence, seed)
        low[complete], high[complete] = band
    for point in np.flatnonzero(~complete & (num_runs > 0)):
        middle[point] = statistics.iqm(values[known[:, point], point])
    curve = {"iqm": middle, "low": low, "high": high, "num_runs": num_runs}
    return {**curve, "total_runs": len(values)}


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
    table = results.weights.join(results.runs.set_index("run")[["env", "arm"]], on="run")
    table["bin"] = table.groupby("run", sort=False).cumcount()
    curves = table.groupby(["env", "arm", "bin"], sort=True).agg(
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
    table = grouped.agg({"num_runs": "max", "num_dropped": "sum", "num_worker_rounds": "sum"})
    table["dropped_fraction"] = table["num_dropped"] / table.pop("num_worker_rounds")
    return table.reset_index()


@dataclass(frozen=True)
class Threshold:
    """The value of the metric that counts as having learned an environment.

    Attributes:
        value: The threshold; NaN if none was given and none could be derived.
        origin: Where it comes from, as a sentence.
    """

    value: float
    origin: str

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return math.isfinite(self.value)


def thresholds(
    results: Results, threshold: Limits = None, *, baseline: str | None = None
) -> dict[str, Threshold]:
    """Returns the threshold of each environment.

    Args:
        results: From `load_results`.
        threshold: One for all environments, or one for some of them by name. Where there is none,
            it is derived: `DERIVED_FRACTION` of the way from the median first value of the
            baseline's runs (of all runs, without a baseline) to the interquartile mean of their
            final returns, to three digits.
        baseline: As in `convergence`.

    Raises:
        ReportError: A threshold is not finite, or is for an environment that is not there.
    """
    envs = results.envs
    given: dict[str, float | None]
    if isinstance(threshold, Mapping):
        given = {printable(env): value for env, value in threshold.items()}
    else:
        given = dict.fromkeys(envs, threshold)
    for env, value in given.items():
        if env not in envs:
            raise unknown("environment", env, envs)
        if value is not None and not math.isfinite(value):
            raise ReportError(f"the threshold should be a finite number, found {value}")
    name = choose_baseline(results.arms, baseline)
    return {
        env: Threshold(float(value), "given")
        if (value := given.get(env)) is not None
        else _derived(results, env, name)
        for env in envs
    }


def improvement(results: Results, env: str, baseline: str | None) -> tuple[float, float, str]:
    """Returns from where to where the baseline's runs came in an environment.

    Returns:
        The median first value of the metric and the interquartile mean of the final returns, NaN
        if there are none; and whose runs they are of: without a baseline there, all.
    """
    runs, whose = results.counting(env), "all runs"
    if is_baseline(runs, baseline).any():
        runs, whose = runs[is_baseline(runs, baseline)], f"the runs of {baseline}"
    values = results.progress["value"].to_numpy()
    rows = row_ranges(results.progress, runs["run"].to_numpy())
    firsts = [part[0] for start, end in rows if (part := _finite(values[start:end])).size]
    finals = _finite(runs["final"].to_numpy())
    if not firsts or not finals.size:
        return math.nan, math.nan, whose
    return float(np.median(firsts)), float(statistics.iqm(finals)), whose


def scores(results: Results, *, baseline: str | None = None) -> pd.DataFrame:
    """Returns each run's final return on a scale that environments share.

    Args:
        results: From `load_results`.
        baseline: As in `convergence`.

    Returns:
        A row per run with a final return (see `is_final`): env, arm, run, seed, score: 0 at the
        median first value of the baseline's runs, 1 at the interquartile mean of their final
        returns. Without environments in which these did not improve.
    """
    name = choose_baseline(results.arms, baseline)
    parts = [pd.DataFrame(columns=["env", "arm", "run", "seed", "score"])]
    for env in results.envs:
        start, final, _ = improvement(results, env, name)
        if final > start:
            arms = [runs[is_final(runs)] for _, runs in results.by_arm(env)]
            runs = pd.concat(arms).dropna(subset="final")
            runs = runs.assign(score=(runs["final"] - start) / (final - start))
            parts.append(runs[parts[0].columns])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def pooled_scores(
    results: Results,
    *,
    baseline: str | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> pd.DataFrame:
    """Returns each arm's score over all environments.

    Args:
        results: From `load_results`.
        baseline: As in `convergence`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstrap, which resamples the runs of each environment for itself.

    Returns:
        A row per arm that has runs in every environment with scores: arm, num_envs, num_runs,
        score (mean over the environments of the interquartile mean over the runs), low, high.
        Empty with less than two such environments.
    """
    table = scores(results, baseline=baseline)
    num_envs = table["env"].nunique()
    rows = []
    for arm, part in table.groupby("arm", sort=False):
        samples = [runs["score"].to_numpy() for _, runs in part.groupby("env", sort=False)]
        if len(samples) == num_envs > 1:
            interval = statistics.stratified_interval(samples, confidence, seed)
            score = float(np.mean([statistics.iqm(sample) for sample in samples]))
            rows.append((arm, num_envs, len(part), score, *interval))
    return pd.DataFrame(rows, columns=["arm", "num_envs", "num_runs", "score", "low", "high"])


def _derived(results: Results, env: str, baseline: str | None) -> Threshold:
    start, final, whose = improvement(results, env, baseline)
    if math.isnan(final):
        return Threshold(math.nan, f"none: {whose} never finished an episode")
    if not final > start:
        return Threshold(
            math.nan,
            f"none: {whose} did not improve (from {format_number(start)} to "
            f"{format_number(final)}), so no threshold could be derived",
        )
    return Threshold(
        float(f"{start + DERIVED_FRACTION * (final - start):.3g}"),
        f"derived from these results: {DERIVED_FRACTION:.0%} of the way from the first value of "
        f"{whose} ({format_number(start)}, median) to their final return ({format_number(final)}, "
        "interquartile mean)",
    )


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def first_sustained(
    values: np.ndarray, threshold: float, hold: int, *, stopped_early: bool
) -> int | None:
    """Returns the index of the round from which a threshold is sustained; None if it never is.

    That is the first of `hold` rounds in a row whose value is at least the threshold. At the end
    of a run that a stop criterion may have ended for just that, fewer rounds are enough.

    Args:
        values: The metric per round; NaN is below any threshold.
        threshold: The threshold.
        hold: Rounds, >= 1.
        stopped_early: Whether the run came to its own end before its budget was used up.
    """
    below = np.flatnonzero(~(values >= threshold))
    starts = np.concatenate([[0], below + 1])
    lengths = np.concatenate([below, [values.size]]) - starts
    enough = lengths >= hold
    if stopped_early and lengths[-1] > 0:
        enough[-1] = True
    return int(starts[enough.argmax()]) if enough.any() else None


def convergence_runs(
    results: Results, *, threshold: Limits = None, hold: int = HOLD, baseline: str | None = None
) -> pd.DataFrame:
    """Returns when each run first sustained its environment's threshold.

    Args:
        results: From `load_results`.
        threshold: As in `thresholds`.
        hold: Rounds; see `first_sustained`.
        baseline: As in `convergence`.

    Returns:
        A row per run that counts, without environments that have no threshold: run, env, arm,
        strategy, seed, threshold, reached, env_steps and time_s (of the first round that sustains
        it; of the whole run if not reached: the run is censored then).

    Raises:
        ReportError: A bad threshold, or `hold` is not at least 1.
    """
    if hold < 1:
        raise ReportError(f"`hold` should be at least 1 round, found {hold}")
    limits = thresholds(results, threshold, baseline=baseline)
    has_limit = results.runs["env"].map({env: limit.exists for env, limit in limits.items()})
    runs = results.runs[results.runs["counts"] & has_limit].reset_index(drop=True)
    values, steps, times = (
        results.progress[name].to_numpy() for name in ("value", "env_steps", "time_s")
    )
    rows = []
    ranges = row_ranges(results.progress, runs["run"].to_numpy())
    for (start, end), env, early in zip(ranges, runs["env"], stopped_early(runs), strict=True):
        limit = limits[env].value
        found = first_sustained(values[start:end], limit, hold, stopped_early=early)
        at = end - 1 if found is None else start + found
        rows.append((limit, found is not None, int(steps[at]), float(times[at])))
    names = ["threshold", "reached", *_CLOCKS]
    times_table = pd.DataFrame(rows, columns=names, index=runs.index)
    return runs[["run", "env", "arm", "strategy", "seed"]].join(times_table)


def stopped_early(runs: pd.DataFrame) -> np.ndarray:
    """Whether each run came to its own end before its budget was used up.

    Nothing in a trial's folder says what ended it. Where several finished runs of an environment
    have the same number of rounds and none has more, that number is taken for the budget.
    """
    rounds = runs["num_rounds"]
    is_longest = runs["finished"] & (rounds == rounds.groupby(runs["env"]).transform("max"))
    num_longest = is_longest.groupby(runs["env"]).transform("sum")
    return (runs["finished"] & ~(is_longest & (num_longest > 1))).to_numpy()


def encoded(runs: pd.DataFrame, clock: str) -> np.ndarray:
    """Returns the times of some rows of `convergence_runs`, encoded as by `encode`."""
    return statistics.encode(runs[clock], runs["reached"])


def convergence(
    results: Results,
    *,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    **question: Unpack[Question],
) -> pd.DataFrame:
    """Returns how long each arm takes to its environment's threshold.

    The mean time is restricted to a horizon, the same for all arms of an environment, up to
    which all are known: runs that never reached the threshold count with the time that they ran,
    as censored. Arms whose longest run is less than half of the longest one's do not shorten the
    horizon; they have no mean.

    Args:
        results: From `load_results`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstrap.
        question: See `Question`.

    Returns:
        A row per arm: env, arm, threshold, num_runs, num_reached; and both in environment steps
        and in seconds (`…_env_steps`, `…_time_s`): mean (restricted), low, high, median
        (Kaplan-Meier; NaN if less than half of the runs came so far), horizon.

    Raises:
        ReportError: A bad threshold, baseline or `hold`.
    """
    runs = convergence_runs(results, **question)
    names = [f"{name}_{clock}" for clock in _CLOCKS for name in _TIME_NUMBERS]
    rows = []
    for env in runs["env"].unique():
        here = runs[runs["env"] == env]
        arms = {arm: here[here["arm"] == arm] for arm, _ in results.by_arm(env)}
        steps, seconds = (_mean_times(arms, clock, confidence, seed) for clock in _CLOCKS)
        for arm, part in arms.items():
            facts = (env, arm, part["threshold"].iat[0], len(part), int(part["reached"].sum()))
            rows.append((*facts, *steps[arm], *seconds[arm]))
    columns = ["env", "arm", "threshold", "num_runs", "num_reached", *names]
    return pd.DataFrame(rows, columns=columns)


def _mean_times(
    arms: Mapping[str, pd.DataFrame], clock: str, confidence: float, seed: int
) -> Mapping[str, tuple[float, ...]]:
    """Returns the `_TIME_NUMBERS` of each arm by one clock."""
    times = {arm: encoded(part, clock) for arm, part in arms.items()}
    known = {arm: part for arm, part in times.items() if np.isfinite(part).all()}
    longest = {arm: float(np.abs(part).max()) for arm, part in known.items()}
    enough = [
        part
        for arm, part in known.items()
        if (part > 0).all() or longest[arm] >= 0.5 * max(longest.values())
    ]
    horizon = statistics.common_horizon(*enough) if enough else math.nan
    unknown = (math.nan, math.nan, math.nan, math.nan, horizon)
    found: dict[str, tuple[float, ...]] = dict.fromkeys(arms, unknown)
    for arm, part in known.items():
        mean = low = high = math.nan
        if (part > 0).all() or longest[arm] >= horizon:
            restricted = partial(statistics.restricted_mean, horizon=horizon)
            low, high = statistics.bootstrap_interval(restricted, part, confidence, seed)
            mean = float(restricted(part))
        found[arm] = (mean, low, high, statistics.median_time(part), horizon)
    return found


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
    for env in results.envs:
        for arm, every in results.by_arm(env):
            runs = every[is_final(every)]
            row: dict[str, Any] = {"env": env, "arm": arm, "num_runs": len(runs)}
            row["num_unfinished"] = len(every) - len(runs)
            for name in ("final", "held_out"):
                values = _finite(runs[name].to_numpy())
                low, high = statistics.bootstrap_interval(statistics.iqm, values, confidence, seed)
                middle = float(statistics.iqm(values)) if values.size else math.nan
                row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
            gaps = (runs["final"] - runs["held_out"]).dropna()
            mean = partial(np.mean, axis=-1)
            low, high = statistics.jackknife_interval(mean, [[gaps.to_numpy()]], confidence)
            row |= {"num_held_out": gaps.size, "gap": gaps.mean(), "gap_low": low, "gap_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def sensitivity(
    results: Results,
    *,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    **question: Unpack[Question],
) -> pd.DataFrame:
    """Returns final return and convergence as they depend on the minimum weight.

    Args:
        results: From `load_results`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstraps.
        question: See `Question`.

    Returns:
        A row per arm whose minimum weight is a number, or that has none: env, line (the strategy
        and whatever else tells lines apart), arm, min_weight (NaN: a level line), and the columns
        of `final_returns` and `convergence`. Only of environments in which a line has at least
        two minimum weights.
    """
    finals = final_returns(results, confidence=confidence, seed=seed)
    times = convergence(results, confidence=confidence, seed=seed, **question)
    return join_sensitivity(results.arms, finals, times)


def join_sensitivity(arms: pd.DataFrame, finals: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of `sensitivity` from those of `final_returns` and `convergence`."""
    is_schedule = arms["varied"].map(lambda varied: "min_weight schedule" in varied)
    table = arms.loc[~is_schedule, ["env", "line", "arm", "min_weight"]]
    weights = table.groupby(["env", "line"])["min_weight"].nunique()
    swept = {env for (env, _), count in weights.items() if count > 1}
    table = table[table["env"].isin(swept)].merge(finals, on=["env", "arm"], how="left")
    table = table.merge(times.drop(columns="num_runs"), on=["env", "arm"], how="left")
    return table.sort_values(["env", "line", "min_weight"], ignore_index=True)
