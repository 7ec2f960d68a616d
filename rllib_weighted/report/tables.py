"""Everything that a report says, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rllib_weighted.report.arms import baseline_of, choose_baseline
from rllib_weighted.report.comparisons import comparisons
from rllib_weighted.report.convergence import (
    HOLD,
    Threshold,
    convergence,
    convergence_runs,
    thresholds,
)
from rllib_weighted.report.curves import drops, learning_curves, weight_curves
from rllib_weighted.report.finals import final_returns, sensitivity
from rllib_weighted.report.intervals import CONFIDENCE, SEED
from rllib_weighted.report.results import Results
from rllib_weighted.report.wording import Sentence, sentences


@dataclass(frozen=True)
class Tables:
    """The statistics of a report; each table is documented at the function of its name.

    Attributes:
        metric: What was compared.
        baseline: The baseline's name; None if there is none.
        hold: Rounds that a threshold has to be held.
        confidence: Coverage of the intervals.
        thresholds: The threshold of each environment.
        problems: What was left out.
        sentences: What the comparisons say.
    """

    metric: str
    baseline: str | None
    hold: int
    confidence: float
    thresholds: dict[str, Threshold]
    problems: list[str]
    sentences: list[Sentence]
    runs: pd.DataFrame
    arms: pd.DataFrame
    learning_curves: pd.DataFrame
    convergence_runs: pd.DataFrame
    convergence: pd.DataFrame
    final_returns: pd.DataFrame
    comparisons: pd.DataFrame
    sensitivity: pd.DataFrame
    weight_curves: pd.DataFrame
    shares: pd.DataFrame
    drops: pd.DataFrame
    origins: pd.DataFrame

    def baseline_arms(self, env: str) -> list[str]:
        """Returns the arms of an environment that are the baseline's."""
        arms = self.arms[self.arms["env"] == env]
        is_baseline = (arms["strategy"] == self.baseline) | (arms["arm"] == self.baseline)
        return list(arms.loc[is_baseline, "arm"])


def compute(
    results: Results,
    *,
    baseline: str | None = None,
    threshold: float | Mapping[str, float] | None = None,
    hold: int = HOLD,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Tables:
    """Computes all statistics of a report.

    Args:
        results: From `load_results`.
        baseline: A strategy or the label of an arm; None takes "average", if it is there.
        threshold: As in `thresholds`.
        hold: Rounds; see `first_held`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstraps.

    Raises:
        ReportError: A bad baseline, threshold or `hold`.
    """
    name = choose_baseline(results.arms, baseline)
    question: dict[str, Any] = {"baseline": baseline, "threshold": threshold, "hold": hold}
    sure: dict[str, Any] = {"confidence": confidence, "seed": seed}
    limits = thresholds(results, threshold, baseline=baseline)
    compared = comparisons(results, **question, confidence=confidence)
    return Tables(
        metric=results.metric,
        baseline=name,
        hold=hold,
        confidence=confidence,
        thresholds=limits,
        problems=results.problems + _unmatched(results, name),
        sentences=sentences(compared, limits, confidence),
        runs=results.runs,
        arms=results.arms,
        learning_curves=learning_curves(results, **sure),
        convergence_runs=convergence_runs(results, **question),
        convergence=convergence(results, **question, **sure),
        final_returns=final_returns(results, **sure),
        comparisons=compared,
        sensitivity=sensitivity(results, **question, **sure),
        weight_curves=weight_curves(results),
        shares=results.shares,
        drops=drops(results),
        origins=results.origins,
    )


def _unmatched(results: Results, baseline: str | None) -> list[str]:
    """Returns a sentence on each arm that has nothing to be compared with."""
    if baseline is None:
        names = ", ".join(results.arms["strategy"].unique())
        return [f"there is no baseline among {names}: choose one with --baseline"]
    found = []
    for _, arm in results.arms.iterrows():
        is_own = baseline in (arm["strategy"], arm["arm"])
        if not is_own and baseline_of(arm, results.arms, baseline)[0] is None:
            found.append(
                f"{arm['env']}: {arm['arm']} is not compared, because no single arm of {baseline} "
                "has the same other settings"
            )
    return found
