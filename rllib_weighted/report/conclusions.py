"""Each arm against the baseline: by how much, how surely, and conclusions in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from rllib_weighted.report import statistics
from rllib_weighted.report.arms import baseline_of, choose_baseline
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.measures import Question, Threshold, convergence_runs, encoded, is_final
from rllib_weighted.report.results import Results
from rllib_weighted.report.statistics import CONFIDENCE


class Measure(NamedTuple):
    """What two arms are compared by.

    Attributes:
        name: Its name in the table.
        column: The column of the runs that it is computed from.
        noun: Its name in a sentence.
        unit: The unit in a sentence of a time until the threshold, of which lower is better and
            the effect is how many percent faster; "" if the effect is a difference.
    """

    name: str
    column: str
    noun: str
    unit: str = ""


SPEED = Measure("env steps to threshold", "env_steps", "env steps", "env steps")
FINAL = Measure("final return", "final", "the final return")
MEASURES = (
    SPEED,
    Measure("wall time to threshold", "time_s", "wall time", "s of wall time"),
    FINAL,
    Measure("held-out return", "held_out", "the return on held-out seeds"),
    Measure("training minus held-out", "gap", "the gap between training and held-out seeds"),
)

COLUMNS = [
    *("env", "arm", "baseline", "measure", "differs_in", "num_runs", "num_baseline", "num_pairs"),
    *("effect", "low", "high", "horizon", "probability", "probability_low", "probability_high"),
    *("p", "p_holm", "claim"),
]


def comparisons(
    results: Results, *, confidence: float = CONFIDENCE, **question: Unpack[Question]
) -> pd.DataFrame:
    """Compares each arm with the baseline in the same environment.

    Runs are paired by their seeds where at least two seeds are in both arms; others are then left
    out. Without pairs, the arms are compared as independent samples.

    Args:
        results: From `load_results`.
        confidence: Coverage of the intervals.
        question: See `measures.Question`.

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
    name = choose_baseline(results.arms, question.get("baseline"))
    if name is None:
        return pd.DataFrame(columns=COLUMNS)
    times = convergence_runs(results, **question)
    rows = [
        row
        for env in results.envs
        for row in _in_environment(results, env, times[times["env"] == env], name, confidence)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_holm"] = table.groupby("measure")["p"].transform(statistics.holm)
    excludes_zero = (table["low"] > 0) | (table["high"] < 0)
    table["claim"] = excludes_zero & (table["p"] <= 1 - confidence)
    return table


def _in_environment(
    results: Results, env: str, times: pd.DataFrame, baseline: str, confidence: float
) -> Iterator[dict[str, Any]]:
    """Yields the comparisons of an environment's arms, without what needs all of them."""
    finals = {}
    for label, runs in results.by_arm(env):
        final = runs[is_final(runs)]
        finals[label] = final.assign(gap=final["final"] - final["held_out"])
    for _, arm in results.arms[results.arms["env"] == env].iterrows():
        other, differs_in = baseline_of(arm, results.arms, baseline)
        if other is None:
            continue
        facts = {"env": env, "arm": arm["arm"], "baseline": other}
        for measure in MEASURES:
            if measure.unit:
                first, second = (times[times["arm"] == label] for label in (arm["arm"], other))
            else:
                first, second = finals[arm["arm"]], finals[other]
            found = _compare(measure, first, second, confidence)
            if found is not None:
                named = {"measure": measure.name, "differs_in": ", ".join(differs_in)}
                yield {**facts, **named, **found}


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
    num_pairs = int(seeds.size) if paired else 0
    sizes = {"num_runs": len(arm), "num_baseline": len(baseline), "num_pairs": num_pairs}
    compare = _compare_times if measure.unit else _compare_values
    return {**sizes, **compare(arm, baseline, measure.column, paired, confidence)}


def _compare_times(
    arm: pd.DataFrame, baseline: pd.DataFrame, column: str, paired: bool, confidence: float
) -> dict[str, float]:
    """Compares times until the threshold by the percentage that the arm is faster."""
    first, second = encoded(arm, column), encoded(baseline, column)
    horizon = statistics.common_horizon(first, second)

    def log_ratio(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
        means = [statistics.restricted_mean(part, horizon, axis) for part in (first, second)]
        return np.log(means[0]) - np.log(means[1])

    found = _test(log_ratio, first, second, _earlier, paired, confidence)
    if not any(((part > 0) & (part <= horizon)).any() for part in (first, second)):
        return {**dict.fromkeys(found, math.nan), "horizon": horizon}
    effect, low, high = (_percent_faster(found[name]) for name in ("effect", "high", "low"))
    return {**found, "effect": effect, "low": low, "high": high, "horizon": horizon}


def _compare_values(
    arm: pd.DataFrame, baseline: pd.DataFrame, column: str, paired: bool, confidence: float
) -> dict[str, float]:
    """Compares values by the difference of their means."""

    def difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
        return np.mean(first, axis=axis) - np.mean(second, axis=axis)

    def higher(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.heaviside(first - second, 0.5)

    first, second = (part[column].to_numpy(dtype=np.float64) for part in (arm, baseline))
    return _test(difference, first, second, higher, paired, confidence)


def _test(
    statistic: Callable[..., Any],
    arm: np.ndarray,
    baseline: np.ndarray,
    wins: Callable[[np.ndarray, np.ndarray], np.ndarray],
    paired: bool,
    confidence: float,
) -> dict[str, float]:
    """Returns the statistic of two arms with its interval and p value, and how often one wins.

    The jackknife interval of a difference of means is the t interval: over the differences within
    pairs, or Welch's.
    """
    samples = [[arm, baseline]] if paired else [[arm], [baseline]]
    low, high = statistics.jackknife_interval(statistic, samples, confidence)
    p = statistics.permutation_p(statistic, arm, baseline, paired=paired)
    found = {"effect": float(statistic(arm, baseline)), "low": low, "high": high, "p": p}
    won = statistics.win_interval(wins(arm, baseline) if paired else np.empty(0), confidence)
    names = ("probability", "probability_low", "probability_high")
    return found | dict(zip(names, won, strict=True))


def _percent_faster(log_ratio: float) -> float:
    return 0.0 - 100 * math.expm1(log_ratio)  # 0.0 -: never -0.0


def _earlier(arm: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Returns 1 where the arm reached the threshold first, 0 where the baseline did, else 1/2.

    A run that is censored before the other one's time leaves open which was first.
    """
    first = (arm > 0) & ((arm < np.abs(baseline)) | ((baseline < 0) & (arm <= -baseline)))
    second = (baseline > 0) & ((baseline < np.abs(arm)) | ((arm < 0) & (baseline <= -arm)))
    return np.select([first, second], [1.0, 0.0], 0.5)


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


class Sentence(NamedTuple):
    """The conclusion from one comparison.

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
    """Returns the conclusion from each comparison.

    Args:
        comparisons: From `comparisons`.
        thresholds: From `thresholds`.
        confidence: Coverage of the intervals.
    """
    counts = comparisons.groupby("measure")["p"].count()
    measures = {measure.name: measure for measure in MEASURES}
    found = []
    for _, row in comparisons.iterrows():
        measure, limit = measures[row["measure"]], format_number(thresholds[row["env"]].value)
        if measure.unit and math.isnan(row["effect"]):
            text = (
                f"{row['arm']} and {row['baseline']} cannot be compared: no run of either held "
                f"{limit} within {format_number(row['horizon'])} {measure.unit}, up to which both "
                "are known."
            )
        elif row["claim"]:
            text = _claim(row, measure, limit, confidence)
            if (count := counts[measure.name]) > 1:
                verdict = "it stands" if row["p_holm"] <= 1 - confidence else "it no longer stands"
                corrected = format_p(row["p_holm"])
                text += f" Corrected for {count} comparisons {corrected}: {verdict}."
        else:
            text = _no_claim(row, measure, limit, confidence)
        if row["differs_in"]:
            text += f" The two also differ in {row['differs_in']}."
        found.append(Sentence(row["env"], row["arm"], measure.name, bool(row["claim"]), text))
    return found


def _claim(row: pd.Series, measure: Measure, limit: str, confidence: float) -> str:
    arm, baseline = row["arm"], row["baseline"]
    facts = f"on {basis(row)}: {evidence(row, measure, confidence)}."
    if measure.unit:
        pace = f"{abs(row['effect']):.1f} % {'sooner' if row['effect'] > 0 else 'later'}"
        return f"{arm} held {limit} {pace} than {baseline}, in {measure.noun}, {facts}"
    side = "above" if row["effect"] > 0 else "below"
    difference = f"{format_number(abs(row['effect']))} {side} that of {baseline}"
    return f"{measure.noun.capitalize()} of {arm} is {difference}, {facts}"


def _no_claim(row: pd.Series, measure: Measure, limit: str, confidence: float) -> str:
    what = f"{measure.noun} to {limit}" if measure.unit else measure.noun
    names = f"{row['arm']} and {row['baseline']}"
    effect = _pace(row["effect"]) if measure.unit else f"difference {format_number(row['effect'])}"
    numbers = ", ".join(filter(None, [effect, evidence(row, measure, confidence)]))
    text = f"No difference in {what} between {names} can be claimed from {basis(row)}: {numbers}."
    if can_claim(row["num_runs"], row["num_baseline"], row["num_pairs"], confidence):
        return text
    few = f"fewer than {fewest_pairs(confidence)} pairs" if row["num_pairs"] else "so few runs"
    return f"{text} From {few} none could be, however large it is."


def evidence(row: pd.Series, measure: Measure, confidence: float) -> str:
    """Returns interval, probability and p value, as far as they are known."""
    parts = []
    if math.isfinite(row["low"]):
        ends = map(_pace if measure.unit else format_number, (row["low"], row["high"]))
        parts.append(f"{100 * confidence:g} % interval {' to '.join(ends)}")
    if math.isfinite(row["probability"]):
        what = "a larger gap" if measure.column == "gap" else "improvement"
        low, high = row["probability_low"], row["probability_high"]
        parts.append(f"probability of {what} {row['probability']:.2f} ({low:.2f} to {high:.2f})")
    if math.isfinite(row["p"]):
        parts.append(format_p(row["p"]))
    return ", ".join(parts)


def _pace(percent: float) -> str:
    return f"{abs(percent):.1f} % {'slower' if percent < 0 else 'faster'}"


def format_p(p: float) -> str:
    """Returns a p value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def basis(row: pd.Series) -> str:
    """Returns how many runs a comparison is from."""
    if row["num_pairs"]:
        return f"{row['num_pairs']} paired seeds"
    if row["num_runs"] == row["num_baseline"] == 1:
        return "1 seed"
    return f"{row['num_runs']} and {row['num_baseline']} runs without common seeds"
