"""All tasks whose workers differ in their seed only, together: what does a merge gain on them?

No part registers this. It answers what ten pairs on one task are too few for, after the fact, with
all comparisons that have all their pairs; arms and baseline are those of the parts.

The mean over the tasks is that of random effects (DerSimonian and Laird, Controlled Clinical Trials
7, 1986), with the interval of Hartung and Knapp (Statistics in Medicine 20, 2001), which is as wide
as the tasks differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from studies import analysis
from studies.design import Experiment, Part

BASELINE = "average"
_FEWEST = 3  # Tasks below which a spread between tasks means nothing.


def speeds(parts: Iterable[tuple[Part, pd.DataFrame]]) -> pd.DataFrame:
    """Returns the mean speed of each merge against the average over all such tasks.

    Args:
        parts: Parts with their runs, as `store.read` returns them.

    Returns:
        A row per arm with three tasks or more, those with the most first: arm, num_tasks (one
        task in two parts counts twice, with different seeds), num_pairs, effect (speed, a
        geometric mean), low, high (95 %), between (standard deviation of the logarithm between
        tasks).
    """
    names = ["arm", "num_tasks", "num_pairs", "effect", "low", "high", "between"]
    within = [_within(part, runs) for part, runs in parts]
    each = pd.concat(within, ignore_index=True) if within else pd.DataFrame(columns=names)
    rows = []
    for arm, found in each.groupby("arm", sort=False):
        if len(found) < _FEWEST:
            continue
        variances = found["deviation"] ** 2 / found["num_pairs"]
        mean, half, between = random_effects(np.log(found["effect"]), variances)
        rows.append(
            {
                **{"arm": arm, "num_tasks": len(found), "num_pairs": found["num_pairs"].sum()},
                **{"effect": math.exp(mean), "low": math.exp(mean - half)},
                **{"high": math.exp(mean + half), "between": between},
            }
        )
    table = pd.DataFrame(rows, columns=names)
    return table.sort_values("num_pairs", ascending=False, kind="stable", ignore_index=True)


def _within(part: Part, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the speeds of a part's merges against the average, task by task."""
    alike = tuple(_against_average(e) for e in part.experiments if not e.task.contexts)
    compared = analysis.contrasts(replace(part, experiments=alike), runs).query(
        "measure == 'speed' and deviation > 0 and num_pairs == num_planned"
    )
    return compared.astype({"effect": np.float64, "deviation": np.float64})


def _against_average(experiment: Experiment) -> Experiment:
    names = {arm.name for arm in experiment.arms}
    merges = (a.name for a in experiment.arms if a.algorithm == "WeightedPPO" and not a.learner)
    contrasts = tuple((name, BASELINE) for name in merges if name != BASELINE)
    return replace(experiment, contrasts=contrasts if BASELINE in names else ())


def random_effects(effects: Sequence[float], variances: Sequence[float]) -> tuple[float, ...]:
    """Returns the mean of effects that differ for good, and were each measured with an error.

    Args:
        effects: [K], K >= 2.
        variances: [K], of the errors, > 0.

    Returns:
        The mean, half the width of its 95 % interval, and the standard deviation between effects.
    """
    y, v = np.asarray(effects, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    fixed = 1 / v
    centre = np.average(y, weights=fixed)
    excess = np.sum(fixed * (y - centre) ** 2) - (y.size - 1)
    between = max(0.0, float(excess / (fixed.sum() - np.sum(fixed**2) / fixed.sum())))
    weights = 1 / (v + between)
    mean = float(np.average(y, weights=weights))
    # Where the effects agree better than their errors explain, the interval is not narrower than
    # the errors.
    scale = max(1.0, float(np.sum(weights * (y - mean) ** 2) / (y.size - 1)))
    half = float(stats.t.ppf(0.975, y.size - 1)) * math.sqrt(scale / weights.sum())
    return mean, half, math.sqrt(between)
