"""What the comparisons say, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from rllib_weighted.report.arms import format_number
from rllib_weighted.report.comparisons import MEASURES, can_claim, fewest_pairs
from rllib_weighted.report.convergence import Threshold

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
