"""Each arm against the baseline: by how much, how surely, and in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rllib_weighted.report.measures import (
    HOLD,
    Threshold,
    convergence_runs,
    encoded,
    is_final,
    mean_interval,
)
from rllib_weighted.report.results import (
    Results,
    baseline_of,
    choose_baseline,
    format_number,
    runs_of,
)
from rllib_weighted.report.statistics import (
    CONFIDENCE,
    NOT_KNOWN,
    Interval,
    common_horizon,
    holm,
    jackknife_interval,
    permutation_p,
    restricted_mean,
    win_interval,
)


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


# What the comparisons say, in plain sentences


_IS_TIME = {measure.name: measure.is_time for measure in MEASURES}
_CLOCKS = {
    "env steps to threshold": ("env steps", "env steps"),
    "wall time to threshold": ("wall time", "s of wall time"),
}  # What it is called, and its unit.
_NOUNS = {
    "final return": "the final return",
    "held-out return": "the return on held-out seeds",
    "training minus held-out": "the gap between training and held-out seeds",
}


class Sentence(NamedTuple):
    """What one comparison says.

    Attributes:
        env: The environment.
        arm: The arm that is compared.
        measure: What it is compared by.
        claim: Whether a difference is claimed.
        text: The sentence.
    """

    env: str
    arm: str
    measure: str
    claim: bool
    text: str


def sentences(
    comparisons: pd.DataFrame, thresholds: Mapping[str, Threshold], confidence: float
) -> list[Sentence]:
    """Returns a sentence on each comparison.

    Args:
        comparisons: From `comparisons`.
        thresholds: From `thresholds`.
        confidence: Coverage of the intervals.
    """
    counts = comparisons.groupby("measure")["p"].count()
    found = []
    for _, row in comparisons.iterrows():
        limit = thresholds[row["env"]].value
        text = _sentence(row, limit, confidence)
        text += _correction(row, int(counts[row["measure"]]), confidence)
        if row["differs_in"]:
            text += f" The two also differ in {row['differs_in']}."
        found.append(Sentence(row["env"], row["arm"], row["measure"], bool(row["claim"]), text))
    return found


def _sentence(row: pd.Series, threshold: float, confidence: float) -> str:
    is_time = _IS_TIME[row["measure"]]
    names = f"{row['arm']} and {row['baseline']}"
    if is_time and math.isnan(row["effect"]):
        return (
            f"{names} cannot be compared: no run of either held {format_number(threshold)} within "
            f"{format_number(row['horizon'])} {_CLOCKS[row['measure']][1]}, up to which both are "
            "known."
        )
    evidence = _evidence(row, confidence)
    what = _what(row, threshold)
    if not row["claim"]:
        text = f"No difference in {what} between {names} can be claimed from {_basis(row)}"
        numbers = ", ".join(part for part in (_effect(row), evidence) if part)
        return f"{text}: {numbers}.{_too_few(row, confidence)}"
    if is_time:
        clock, _ = _CLOCKS[row["measure"]]
        pace = "sooner" if row["effect"] > 0 else "later"
        return (
            f"{row['arm']} held {format_number(threshold)} {abs(row['effect']):.1f} % {pace} than "
            f"{row['baseline']}, in {clock}, on {_basis(row)}: {evidence}."
        )
    side = "above" if row["effect"] > 0 else "below"
    return (
        f"{_NOUNS[row['measure']].capitalize()} of {row['arm']} is "
        f"{format_number(abs(row['effect']))} {side} that of {row['baseline']}, on {_basis(row)}: "
        f"{evidence}."
    )


def _what(row: pd.Series, threshold: float) -> str:
    if _IS_TIME[row["measure"]]:
        return f"{_CLOCKS[row['measure']][0]} to {format_number(threshold)}"
    return _NOUNS[row["measure"]]


def _effect(row: pd.Series) -> str:
    if _IS_TIME[row["measure"]]:
        return _pace(row["effect"])
    return f"difference {format_number(row['effect'])}"


def _evidence(row: pd.Series, confidence: float) -> str:
    """Returns interval, probability and p value, as far as they are known."""
    parts = []
    if math.isfinite(row["low"]):
        ends = [row["low"], row["high"]]
        texts = map(_pace if _IS_TIME[row["measure"]] else format_number, ends)
        parts.append(f"{100 * confidence:g} % interval {' to '.join(texts)}")
    if math.isfinite(row["probability"]):
        verb = "of a larger gap" if row["measure"] == MEASURES[-1].name else "of improvement"
        low, high = row["probability_low"], row["probability_high"]
        parts.append(f"probability {verb} {row['probability']:.2f} ({low:.2f} to {high:.2f})")
    if math.isfinite(row["p"]):
        parts.append(format_p(row["p"]))
    return ", ".join(parts)


def _pace(percent: float) -> str:
    return f"{abs(percent):.1f} % {'slower' if percent < 0 else 'faster'}"


def format_p(p: float) -> str:
    """Returns a p value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _basis(row: pd.Series) -> str:
    if row["num_pairs"]:
        return f"{row['num_pairs']} paired seeds"
    if row["num_runs"] == row["num_baseline"] == 1:
        return "1 seed"
    return f"{row['num_runs']} and {row['num_baseline']} runs without common seeds"


def _too_few(row: pd.Series, confidence: float) -> str:
    if can_claim(row["num_runs"], row["num_baseline"], row["num_pairs"], confidence):
        return ""
    if row["num_pairs"]:
        return (
            f" From fewer than {fewest_pairs(confidence)} pairs none could be, however large it is."
        )
    return " From so few runs none could be, however large it is."


def _correction(row: pd.Series, num_comparisons: int, confidence: float) -> str:
    if not row["claim"] or num_comparisons < 2:
        return ""
    verdict = "it stands" if row["p_holm"] <= 1 - confidence else "it no longer stands"
    return f" Corrected for {num_comparisons} comparisons {format_p(row['p_holm'])}: {verdict}."
