"""When each run first held the threshold, and how long an arm takes on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rllib_weighted.report.arms import choose_baseline, format_number
from rllib_weighted.report.curves import row_ranges
from rllib_weighted.report.errors import ReportError, unknown
from rllib_weighted.report.intervals import CONFIDENCE, SEED, bootstrap_interval, iqm
from rllib_weighted.report.results import Results, runs_of
from rllib_weighted.report.survival import (
    common_horizon,
    encode,
    median_time,
    restricted_mean,
)

HOLD = 5
DERIVED_FRACTION = 0.9

CLOCKS = {"env_steps": "env steps", "time_s": "s"}
"""What convergence is measured in: columns, and their units."""


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
    results: Results,
    threshold: float | Mapping[str, float] | None = None,
    *,
    baseline: str | None = None,
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
    envs = list(results.arms["env"].unique())
    given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(envs, threshold)
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


def _derived(results: Results, env: str, baseline: str | None) -> Threshold:
    runs = results.runs[results.runs["counts"] & (results.runs["env"] == env)]
    is_baseline = (runs["strategy"] == baseline) | (runs["arm"] == baseline)
    whose = "all runs"
    if is_baseline.any():
        runs, whose = runs[is_baseline], f"the runs of {baseline}"
    values = results.progress["value"].to_numpy()
    rows = row_ranges(results.progress, runs["run"].to_numpy())
    firsts = [part[0] for start, end in rows if (part := _finite(values[start:end])).size]
    finals = _finite(runs["final"].to_numpy())
    if not firsts or not finals.size:
        return Threshold(math.nan, f"none: {whose} never finished an episode")
    start, final = float(np.median(firsts)), float(iqm(finals))
    if not final > start:
        return Threshold(
            math.nan,
            f"none: {whose} did not improve (from {format_number(start)} to "
            f"{format_number(final)}), so no threshold could be derived",
        )
    value = float(f"{start + DERIVED_FRACTION * (final - start):.3g}")
    return Threshold(
        value,
        f"derived from these results: {DERIVED_FRACTION:.0%} of the way from the first value of "
        f"{whose} ({format_number(start)}, median) to their final return ({format_number(final)}, "
        "interquartile mean)",
    )


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def first_held(
    values: np.ndarray, threshold: float, hold: int, *, stopped_early: bool
) -> int | None:
    """Returns the index of the round in which a threshold is first held; None if never.

    It is held in the first of `hold` rounds in a row whose value is at least the threshold. At
    the end of a run that a stop criterion may have ended for just that, fewer rounds are enough.

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
    results: Results,
    *,
    threshold: float | Mapping[str, float] | None = None,
    hold: int = HOLD,
    baseline: str | None = None,
) -> pd.DataFrame:
    """Returns when each run first held its environment's threshold.

    Args:
        results: From `load_results`.
        threshold: As in `thresholds`.
        hold: Rounds; see `first_held`.
        baseline: As in `convergence`.

    Returns:
        A row per run that counts, without environments that have no threshold: run, env, arm,
        strategy, seed, threshold, reached, env_steps and time_s (of the first round that holds
        it; of the whole run if not reached: the run is censored then).

    Raises:
        ReportError: A bad threshold, or `hold` is not at least 1.
    """
    if hold < 1:
        raise ReportError(f"`hold` should be at least 1 round, found {hold}")
    limits = thresholds(results, threshold, baseline=baseline)
    has_limit = results.runs["env"].map({env: limit.exists for env, limit in limits.items()})
    runs = results.runs[results.runs["counts"] & has_limit]
    values, steps, times = (
        results.progress[name].to_numpy() for name in ("value", "env_steps", "time_s")
    )
    rows = []
    ranges = row_ranges(results.progress, runs["run"].to_numpy())
    early = stopped_early(runs)
    for (start, end), env, is_early in zip(ranges, runs["env"], early, strict=True):
        limit = limits[env].value
        found = first_held(values[start:end], limit, hold, stopped_early=is_early)
        at = end - 1 if found is None else start + found
        rows.append((limit, found is not None, int(steps[at]), float(times[at])))
    table = runs[["run", "env", "arm", "strategy", "seed"]].reset_index(drop=True)
    names = ["threshold", "reached", "env_steps", "time_s"]
    return table.join(pd.DataFrame(rows, columns=names, index=table.index))


def stopped_early(runs: pd.DataFrame) -> np.ndarray:
    """Whether each run came to its own end before its budget was used up.

    Nothing in a trial's folder says what ended it. Where several finished runs of an environment
    have the same number of rounds and none has more, that number is taken for the budget.
    """
    rounds = runs["num_rounds"]
    most = rounds.groupby(runs["env"]).transform("max")
    is_longest = runs["finished"] & (rounds == most)
    num_longest = is_longest.groupby(runs["env"]).transform("sum")
    return (runs["finished"] & ~(is_longest & (num_longest > 1))).to_numpy()


def encoded(runs: pd.DataFrame, clock: str) -> np.ndarray:
    """Returns the times of some rows of `convergence_runs` in the form that `survival` takes."""
    return encode(runs[clock].to_numpy(dtype=np.float64), runs["reached"].to_numpy(dtype=bool))


def convergence(
    results: Results,
    *,
    threshold: float | Mapping[str, float] | None = None,
    hold: int = HOLD,
    baseline: str | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> pd.DataFrame:
    """Returns how long each arm takes to its environment's threshold.

    The mean time is restricted to a horizon, the same for all arms of an environment, up to
    which all are known: runs that never reached the threshold count with the time that they ran,
    as censored (see `survival`). Arms whose longest run is less than half of the longest one's
    do not shorten the horizon; they have no mean.

    Args:
        results: From `load_results`.
        threshold: As in `thresholds`.
        hold: Rounds; see `first_held`.
        baseline: Strategy or arm that the threshold is derived from where none is given; None
            takes "average", if it is there.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstrap.

    Returns:
        A row per arm: env, arm, threshold, num_runs, num_reached; and both in environment steps
        and in seconds (`…_env_steps`, `…_time_s`): mean (restricted), low, high, median
        (Kaplan-Meier; NaN if less than half of the runs came so far), horizon.

    Raises:
        ReportError: A bad threshold, baseline or `hold`.
    """
    choose_baseline(results.arms, baseline)
    runs = convergence_runs(results, threshold=threshold, hold=hold, baseline=baseline)
    rows = []
    for env in runs["env"].unique():
        arms = {
            arm: runs[(runs["env"] == env) & (runs["arm"] == arm)]
            for arm, _ in runs_of(results, env)
        }
        clocks = {clock: _clock(arms, clock, confidence, seed) for clock in CLOCKS}
        for arm, part in arms.items():
            row: dict[str, Any] = {
                "env": env,
                "arm": arm,
                "threshold": part["threshold"].iat[0],
                "num_runs": len(part),
                "num_reached": int(part["reached"].sum()),
            }
            for clock, numbers in clocks.items():
                row |= {f"{name}_{clock}": value for name, value in numbers[arm].items()}
            rows.append(row)
    columns = ["env", "arm", "threshold", "num_runs", "num_reached"]
    return pd.DataFrame(rows, columns=None if rows else columns)


def _clock(
    arms: Mapping[str, pd.DataFrame], clock: str, confidence: float, seed: int
) -> dict[str, dict[str, float]]:
    """Returns mean, interval, median and horizon of each arm by one clock."""
    times = {arm: encoded(part, clock) for arm, part in arms.items()}
    known = {arm: part for arm, part in times.items() if np.isfinite(part).all()}
    longest = {arm: float(np.abs(part).max()) for arm, part in known.items()}
    enough = [
        part
        for arm, part in known.items()
        if (part > 0).all() or longest[arm] >= 0.5 * max(longest.values())
    ]
    horizon = common_horizon(*enough) if enough else math.nan
    found = {}
    for arm, part in times.items():
        row = dict.fromkeys(("mean", "low", "high", "median"), math.nan) | {"horizon": horizon}
        is_known = arm in known and ((part > 0).all() or longest[arm] >= horizon)
        if is_known:
            row["mean"] = float(restricted_mean(part, horizon))
            row["low"], row["high"] = bootstrap_interval(
                lambda data, axis: restricted_mean(data, horizon, axis),
                [part],
                confidence=confidence,
                seed=seed,
            )
        if arm in known:
            row["median"] = median_time(part)
        found[arm] = row
    return found
