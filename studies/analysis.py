"""From a part's runs to its tables. Estimates, intervals and tests are those of `rllib report`.

Runs of one seed are pairs. A run that never reached the threshold counts with the horizon, the end
of the shorter arm: its true time is longer. The speed of an arm is the geometric mean over the
pairs of baseline's steps / arm's steps.

p values are those of paired t tests, as the intervals are: a permutation test of ten pairs cannot
go below 2 / 1024, too much for the number of contrasts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rllib_weighted.report import statistics
from studies.design import Experiment, Part

EFFECTS = (1.10, 1.20)
"""Speeds whose detection the power is given for."""

CLAIM = 1 / (1 - 0.2014)
"""The paper's 20.14 % sooner, as a speed."""


@dataclass(frozen=True)
class Measure:
    """What arms are compared by.

    Attributes:
        name: Its name in the table.
        is_speed: Whether it is a ratio of times; else a difference of values.
        values: (runs, horizon) -> a value per run; higher is better.
    """

    name: str
    is_speed: bool
    values: Callable[[pd.DataFrame, float], np.ndarray]


def _log_speed(runs: pd.DataFrame, horizon: float) -> np.ndarray:
    return -np.log(np.minimum(np.abs(times(runs)), horizon))


def _column(name: str) -> Callable[[pd.DataFrame, float], np.ndarray]:
    return lambda runs, horizon: runs[name].to_numpy(dtype=np.float64)


def _held_out(runs: pd.DataFrame, horizon: float) -> np.ndarray:
    return np.array([float(np.mean(row)) for row in runs["held_out"]])


def _worst_held_out(runs: pd.DataFrame, horizon: float) -> np.ndarray:
    """Returns the lowest mean return of a held-out context; NaN where there is only one."""
    return np.array([np.min(row) if len(row) > 1 else math.nan for row in runs["held_out"]])


def _worst(runs: pd.DataFrame, horizon: float) -> np.ndarray:
    """Returns the worst worker's score, mean over the run; NaN where workers do not differ."""
    return np.array([np.nanmean(row) if len(row) else math.nan for row in runs["worst"]])


MEASURES = (
    Measure("speed", True, _log_speed),
    Measure("mean score", False, _column("mean_score")),
    Measure("worst worker", False, _worst),
    Measure("final score", False, _column("final_score")),
    Measure("held out", False, _held_out),
    Measure("held out, worst", False, _worst_held_out),
)
"""The first one is primary: Holm's correction is made over a part's contrasts for each measure."""


def times(runs: pd.DataFrame) -> np.ndarray:
    """Returns steps to the threshold, encoded as by `statistics.encode`: negated if not reached."""
    steps = runs["steps_to_threshold"].astype(np.float64)
    return statistics.encode(steps.fillna(runs["num_steps"]).to_numpy(), steps.notna().to_numpy())


def contrasts(part: Part, runs: pd.DataFrame) -> pd.DataFrame:
    """Compares arms as the part has it registered.

    Args:
        part: The part.
        runs: Its runs, as `store.read` returns them.

    Returns:
        A row per (contrast, measure) with at least two pairs: experiment, arm, baseline, measure,
        num_pairs, num_planned, num_censored (runs of either arm), effect (speed, or difference arm
        minus baseline), low, high (95 % t interval over the pairs), deviation (of the pairs; of
        the logarithm for a speed), p (paired t test), p_holm (corrected for all registered
        contrasts, those without runs or cut later included: it does not grow when runs are made),
        power_10, power_20 (of a paired t test at 5 %, to see a speed of 1.10 and 1.20 with such a
        deviation; NaN if not a speed).
    """
    rows = [
        row
        for experiment in part.experiments
        for arm, baseline in experiment.contrasts
        for row in _contrast(experiment, runs, arm, baseline)
    ]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    registered = sum(len(experiment.contrasts) for experiment in part.experiments)
    registered += part.num_cut_contrasts

    def corrected(p: pd.Series) -> np.ndarray:
        missing = np.ones(registered - len(p))
        return statistics.holm(np.concatenate([p, missing]))[: len(p)]

    table["p_holm"] = table.groupby("measure")["p"].transform(corrected)
    return table


_COLUMNS = [
    *("experiment", "arm", "baseline", "measure", "num_pairs"),
    *("num_planned", "num_censored"),
    *("effect", "low", "high", "deviation", "p", "p_holm", "power_10", "power_20"),
]


def _contrast(
    experiment: Experiment, runs: pd.DataFrame, arm: str, baseline: str
) -> list[dict[str, Any]]:
    runs = runs[runs["experiment"] == experiment.name]
    one, other = (runs[runs["arm"] == name].set_index("seed") for name in (arm, baseline))
    seeds = one.index.intersection(other.index).sort_values()
    if len(seeds) < 2:
        return []
    one, other = one.loc[seeds], other.loc[seeds]
    horizon = statistics.common_horizon(times(one), times(other))
    num_censored = int((times(one) < 0).sum() + (times(other) < 0).sum())
    facts = {"experiment": experiment.name, "arm": arm, "baseline": baseline}
    facts |= {"num_pairs": len(seeds), "num_planned": len(experiment.seeds)}
    facts |= {"num_censored": num_censored}
    rows = []
    for measure in MEASURES:
        differences = measure.values(one, horizon) - measure.values(other, horizon)
        if np.isfinite(differences).all():
            rows.append(
                {**facts, "measure": measure.name, **_paired(differences, measure.is_speed)}
            )
    return rows


def _paired(differences: np.ndarray, is_speed: bool) -> dict[str, float]:
    """Returns estimate, interval, p value and power from the differences within pairs."""
    effect, deviation = float(differences.mean()), float(differences.std(ddof=1))
    low, high, p = effect, effect, float(effect == 0)
    if deviation > 0:
        test = stats.ttest_1samp(differences, 0.0)
        (low, high), p = test.confidence_interval(), float(test.pvalue)
    found = {"effect": effect, "low": low, "high": high, "deviation": deviation, "p": p}
    if is_speed:
        found |= {name: math.exp(found[name]) for name in ("effect", "low", "high")}
    powers = [power(s, deviation, differences.size) if is_speed else math.nan for s in EFFECTS]
    return {**found, "power_10": powers[0], "power_20": powers[1]}


def power(speed: float, deviation: float, num_pairs: int, alpha: float = 0.05) -> float:
    """Returns how probably a two-sided paired t test sees a speed.

    Args:
        speed: The true one.
        deviation: Standard deviation of the logarithm of the ratio within pairs.
        num_pairs: >= 2.
        alpha: Level of the test.
    """
    if deviation == 0:
        return 1.0
    shift = abs(math.log(speed)) * math.sqrt(num_pairs) / deviation
    limit = float(stats.t.ppf(1 - alpha / 2, num_pairs - 1))
    t = stats.nct(num_pairs - 1, shift)
    return float(t.sf(limit) + t.cdf(-limit))


def arms(part: Part, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns what became of each arm.

    Returns:
        A row per arm that has runs: experiment, arm, num_runs, num_planned, num_reached, steps
        (mean to the threshold, restricted to the horizon), steps_low, steps_high (95 %), final,
        held_out, held_out_worst (interquartile means over the runs; the latter NaN where there is
        a single context).
    """
    rows = []
    for experiment in part.experiments:
        here = runs[runs["experiment"] == experiment.name]
        groups = {arm.name: here[here["arm"] == arm.name] for arm in experiment.arms}
        groups = {name: found for name, found in groups.items() if len(found)}
        horizon = statistics.common_horizon(*map(times, groups.values())) if groups else math.nan
        for name, found in groups.items():

            def restricted(encoded: Any, axis: int = -1, horizon: float = horizon) -> Any:
                return statistics.restricted_mean(encoded, horizon, axis)

            encoded = times(found)
            low, high = statistics.bootstrap_interval(restricted, encoded)
            means = [float(np.mean(row)) for row in found["held_out"]]
            lowest = _worst_held_out(found, horizon)
            rows.append(
                {
                    **{"experiment": experiment.name, "arm": name, "num_runs": len(found)},
                    "num_planned": len(experiment.seeds),
                    "num_reached": int((encoded > 0).sum()),
                    **{"steps": float(restricted(encoded)), "steps_low": low, "steps_high": high},
                    "final": float(statistics.iqm(found["final_score"].to_numpy())),
                    "held_out": float(statistics.iqm(np.array(means))),
                    "held_out_worst": float(statistics.iqm(lowest)),
                }
            )
    return pd.DataFrame(rows)


def verdict(row: Any) -> str:
    """Returns what a row of `contrasts` says.

    Returns:
        "better" or "worse" where interval and corrected p (at most 0.05) say so, else "open";
        "not complete" while there are fewer pairs than planned.
    """
    neutral = 1.0 if row.measure == "speed" else 0.0
    if row.num_pairs < row.num_planned:
        return "not complete"
    if row.p_holm <= 0.05 and row.low > neutral:
        return "better"
    if row.p_holm <= 0.05 and row.high < neutral:
        return "worse"
    return "open"


def winners(compared: pd.DataFrame) -> pd.DataFrame:
    """Returns how each arm does against the better of several baselines.

    Args:
        compared: From `contrasts`.

    Returns:
        A row per arm with at least two baselines: experiment, arm, baseline (the better one,
        against which the arm's speed is lowest), effect, low, high, p_holm (of that speed), wins
        (it is faster than every baseline, as `verdict` says), held_out
        (None without held-out returns; False where it is worse than a baseline by an interval
        below 0).
    """
    rows = []
    for (experiment, arm), found in compared.groupby(["experiment", "arm"], sort=False):
        speeds = found[found["measure"] == "speed"].sort_values("effect")
        if len(speeds) < 2:
            continue
        worst = speeds.iloc[0]
        returns = found[found["measure"] == "held out"]
        facts = worst[["baseline", "effect", "low", "high", "p_holm"]].to_dict()
        rows.append(
            {
                **{"experiment": experiment, "arm": arm, **facts},
                "wins": all(verdict(row) == "better" for row in speeds.itertuples()),
                "held_out": bool((returns["high"] >= 0).all()) if len(returns) else None,
            }
        )
    names = ["experiment", "arm", "baseline", "effect", "low", "high", "p_holm", "wins", "held_out"]
    return pd.DataFrame(rows, columns=names)


def predictions(part: Part, runs: pd.DataFrame) -> pd.DataFrame:
    """Compares the speeds that the average's runs predict with those that were measured.

    Returns:
        A row per contrast of a strategy with options that the diagnostics know, with an
        average whose runs have diagnostics: experiment, arm, baseline, predicted, measured.
    """
    rows = []
    speeds = contrasts(part, runs).query("measure == 'speed'")
    for row in speeds.itertuples():
        experiment = part.experiment(row.experiment)
        is_base = (runs["experiment"] == row.experiment) & (runs["arm"] == row.baseline)
        found = [json.loads(text) for text in runs.loc[is_base, "diagnostics"].dropna()]
        training = experiment.arm(row.arm).training
        name = f"speed/{_as_predicted(training)}"
        values = [one[name] for one in found if name in one]
        if values and not set(training) - {"merge_strategy", "merge_options"}:
            predicted = float(np.exp(np.mean(np.log(values))))
            facts = {"experiment": row.experiment, "arm": row.arm, "baseline": row.baseline}
            rows.append({**facts, "predicted": predicted, "measured": row.effect})
    return pd.DataFrame(rows, columns=["experiment", "arm", "baseline", "predicted", "measured"])


def _as_predicted(training: Mapping[str, Any]) -> str | None:
    """Returns by which name diagnostics predict the speed of such weights; None: they do not."""
    strategy, options = training.get("merge_strategy"), dict(training.get("merge_options", {}))
    if strategy == "advantage_scaled" and options == {"exponent": -1.0}:
        return "advantage_scaled_inverse"
    defaults = {"normalize": True, "exponent": 1.0}  # These leave their direction as it is.
    return strategy if all(defaults.get(k) == v for k, v in options.items()) else None


def curves(experiment: Experiment, runs: pd.DataFrame, num_points: int = 60) -> pd.DataFrame:
    """Returns the learning curve of each arm: interquartile mean over its runs, with a band.

    Returns:
        A row per (arm, point): arm, env_steps, middle, low, high (bootstrap, 95 %).
    """
    here = runs[runs["experiment"] == experiment.name]
    if here.empty:
        return pd.DataFrame(columns=["arm", "env_steps", "middle", "low", "high"])
    first = max(steps[0] for steps in here["env_steps"])
    grid = np.linspace(first, here["num_steps"].min(), num_points)
    parts = []
    for arm in experiment.arms:
        found = here[here["arm"] == arm.name]
        values = np.array(
            [
                np.interp(grid, steps, score)
                for steps, score in zip(found["env_steps"], found["score"], strict=True)
            ]
        )
        if not values.size:
            continue
        points = np.ascontiguousarray(values.T)
        low, high = statistics.bootstrap_interval(statistics.iqm, points)
        middle = statistics.iqm(points)
        parts.append(
            pd.DataFrame(
                {"arm": arm.name, "env_steps": grid, "middle": middle, "low": low, "high": high}
            )
        )
    return pd.concat(parts, ignore_index=True)
