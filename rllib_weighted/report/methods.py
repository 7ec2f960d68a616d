"""The definitions behind a report's numbers, in words."""

from __future__ import annotations

from rllib_weighted.report.comparisons import fewest_pairs
from rllib_weighted.report.finals import LEAST_LENGTH
from rllib_weighted.report.intervals import FEWEST_RESAMPLES, NUM_RESAMPLES
from rllib_weighted.report.reading import FINAL_FRACTION
from rllib_weighted.report.tables import Tables


def methods(tables: Tables) -> list[tuple[str, str]]:
    """Returns terms and their definitions."""
    level = f"{100 * tables.confidence:g} %"
    return [
        (
            "Arm",
            "Runs in one environment that differ in nothing but their seed. Other minimum weights, "
            "options, hardware or hyperparameters are other arms and never pooled; a label names "
            "only what varies. Strategies without a minimum weight are one arm whatever it was set "
            "to. Of several runs with the same seed in an arm, the longest counts: a repeated seed "
            "is no new evidence.",
        ),
        (
            "Learning curve",
            "Interquartile mean over the runs of an arm (without the n // 4 lowest and highest, so "
            "the mean of fewer than four), at each of 100 points. A run's value is that of its "
            "last round up to there, never carried beyond its end.",
        ),
        (
            f"{level} band and intervals of an arm",
            f"Bootstrap that resamples the runs of each arm for itself, {NUM_RESAMPLES:,} times "
            f"(with many runs less, at least {FEWEST_RESAMPLES}); expanded percentile intervals. "
            "Of fewer than 5 runs they are little more than the range of the runs, and cover the "
            "truth less often than they say.",
        ),
        (
            "Threshold held",
            f"In the first of {tables.hold} rounds in a row whose metric is at least the "
            "threshold. At the end of a run that came to its own end before the others fewer are "
            "enough, because a stop criterion may have ended it for just that.",
        ),
        (
            "Runs that never held it",
            "Count as censored: all that is known is that they would have taken longer than they "
            "ran. The mean time is the area under the Kaplan-Meier curve up to a horizon up to "
            "which all arms that are compared are known.",
        ),
        (
            "Percent faster",
            "100 (1 - mean time of the arm / mean time of the baseline), both restricted to the "
            f"horizon of the two. {level} interval: jackknife t interval of the log ratio over the "
            "paired seeds.",
        ),
        (
            "Final return",
            f"Mean of the metric over the last {FINAL_FRACTION:.0%} of a run's environment steps; "
            "on held-out seeds that of the evaluations then, or of the last one. Runs that have "
            f"not come to their end and are shorter than {LEAST_LENGTH:.0%} of their arm's longest "
            "are left out. Differences are means over paired seeds, with t intervals.",
        ),
        (
            "Probability of improvement",
            "Part of the paired seeds on which the arm did better than the baseline, ties counted "
            "half; Clopper-Pearson interval.",
        ),
        (
            "Claims",
            f"A difference is claimed only if the {level} interval excludes none and a permutation "
            "test (which swaps the two arms within pairs) has p <= "
            f"{1 - tables.confidence:.2g}. From fewer than {fewest_pairs(tables.confidence)} pairs "
            "that cannot be. Where several arms are compared, Holm's correction for their number "
            "is given: without it, some comparisons of equal arms claim a difference by chance.",
        ),
    ]
