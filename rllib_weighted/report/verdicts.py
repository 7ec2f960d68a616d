"""What the comparisons come to: which arm leads, how surely, and which arms came out the same."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from rllib_weighted.report import statistics
from rllib_weighted.report.conclusions import FINAL, SPEED, Measure, basis, evidence, format_p
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.measures import Threshold, row_ranges
from rllib_weighted.report.results import Results
from rllib_weighted.report.trials import counted

WORTH_SEEING = 0.2
"""The difference that a reader wants to see: part of the time saved, or of the return gained."""

_SCALES = frozenset({"average", "sum"})


def verdicts(
    results: Results,
    compared: pd.DataFrame,
    finals: pd.DataFrame,
    thresholds: Mapping[str, Threshold],
    confidence: float,
) -> dict[str, list[str]]:
    """Returns for each environment its verdict, and a sentence on each two arms that are the same.

    Args:
        results: From `load_results`.
        compared: From `comparisons`.
        finals: From `final_returns`.
        thresholds: From `thresholds`.
        confidence: Coverage of the intervals.
    """
    return {
        env: [verdict(env, compared, finals, thresholds, confidence), *identical_arms(results, env)]
        for env in results.envs
    }


def verdict(
    env: str,
    compared: pd.DataFrame,
    finals: pd.DataFrame,
    thresholds: Mapping[str, Threshold],
    confidence: float,
) -> str:
    """Returns in a few sentences which arm of an environment leads, by how much, and how surely.

    Arms are judged by the environment steps to the threshold or, where no comparison by them is
    possible, by their final returns. Where no arm is shown to be better than the baseline, it is
    said how many seeds it would take to see a difference of `WORTH_SEEING`.

    Args:
        env: The environment.
        compared: From `comparisons`.
        finals: From `final_returns`.
        thresholds: From `thresholds`.
        confidence: Coverage of the intervals.
    """
    finals = finals[finals["env"] == env].dropna(subset="final").set_index("arm")["final"]
    here = compared[(compared["env"] == env) & compared["effect"].notna()]
    speed = here[here["measure"] == SPEED.name]
    measure, rows = (FINAL, here[here["measure"] == FINAL.name]) if speed.empty else (SPEED, speed)
    if rows.empty and len(finals) < 2:
        return "There is nothing to compare: one arm at most has a final return."
    if rows.empty:
        best = f"{finals.idxmax()} has the highest final return, {format_number(finals.max())}"
        return f"{best}, but no arm is compared with a baseline."
    shown = rows[rows["claim"] & (rows["effect"] > 0)]
    row = (rows if shown.empty else shown).sort_values("effect").iloc[-1]
    limit = format_number(thresholds[env].value)
    facts = ", ".join(filter(None, [f"on {basis(row)}", evidence(row, measure, confidence)]))
    outcome = f"{_difference(row, measure, limit)} {row['baseline']} ({facts})"
    if len(shown):
        leads = "leads" if row["p_holm"] <= 1 - confidence else "seems to lead"
        return f"{row['arm']} {leads}: it {outcome}.{_corrected(row, compared, confidence)}"
    if row["claim"]:
        return f"{row['baseline']} leads: even the best other arm, {row['arm']}, {outcome}."
    undecided = f"No arm is shown to be better than {row['baseline']}. The best, {row['arm']},"
    return f"{undecided} {outcome}. {_seeds_to_see(row, measure, finals, confidence)}"


def _difference(row: pd.Series, measure: Measure, limit: str) -> str:
    effect = row["effect"]
    if measure.unit:
        return f"was {abs(effect):.1f} % {'faster' if effect >= 0 else 'slower'} to {limit} than"
    return f"ended {format_number(abs(effect))} {'above' if effect >= 0 else 'below'}"


def _corrected(row: pd.Series, compared: pd.DataFrame, confidence: float) -> str:
    """Returns what becomes of a claim when the number of comparisons is counted in."""
    count = compared.loc[compared["measure"] == row["measure"], "p"].count()
    if count < 2:
        return ""
    doubt = "" if row["p_holm"] <= 1 - confidence else ", so it may be chance"
    return f" Corrected for {count} comparisons {format_p(row['p_holm'])}{doubt}."


def _seeds_to_see(row: pd.Series, measure: Measure, finals: pd.Series, confidence: float) -> str:
    """Returns how many seeds per arm would show a difference of `WORTH_SEEING`."""
    num_seeds = int(row["num_pairs"] or min(row["num_runs"], row["num_baseline"]))
    ends, effect = row[["low", "high"]].to_numpy(dtype=float), WORTH_SEEING
    if measure.unit:  # Tested are logarithms of times.
        ends, effect = np.log1p(np.clip(-ends / 100, -0.9999, None)), -math.log1p(-WORTH_SEEING)
    else:
        effect *= abs(finals.get(row["baseline"], math.nan))
    spread = float(np.ptp(ends)) / 2
    what = f"a difference of {100 * WORTH_SEEING:g} %"
    needed = statistics.seeds_needed(spread, num_seeds, effect, confidence)
    if needed is None:
        return f"How many seeds would show {what} cannot be told from {basis(row)}."
    if needed <= num_seeds:
        return f"{what.capitalize()} would probably have been seen."
    return f"To see {what} would take about {needed:,} seeds per arm."


def identical_arms(results: Results, env: str) -> Iterator[str]:
    """Yields a sentence on each two arms whose runs are the same, value for value, on all seeds.

    Trainings that differ in anything that matters soon differ in their last digits: equal ones say
    that a setting did nothing.

    Args:
        results: From `load_results`.
        env: The environment.
    """
    values = results.progress["value"].to_numpy()
    contents: dict[str, dict[int, int]] = {}
    having: dict[tuple[int, int], list[str]] = defaultdict(list)
    for arm, runs in results.by_arm(env):
        ranges = row_ranges(results.progress, runs["run"].to_numpy())
        contents[arm] = {
            seed: hash(values[start:end].tobytes())
            for seed, (start, end) in zip(runs["seed"], ranges, strict=True)
            if not pd.isna(seed) and np.unique(values[start:end]).size > 1
        }
        for content in contents[arm].items():
            having[content].append(arm)
    pairs = dict.fromkeys(pair for arms in having.values() for pair in combinations(arms, 2))
    for first, second in pairs:
        common = contents[first].keys() & contents[second].keys()
        if all(contents[first][seed] == contents[second][seed] for seed in common):
            why = _why_identical(results, env, [first, second])
            seeds = counted(len(common), "common seed")
            yield f"{first} and {second} came out identical on {seeds}, probably because {why}."


def _why_identical(results: Results, env: str, arms: list[str]) -> str:
    runs = results.counting(env)
    runs = runs[runs["arm"].isin(arms)]
    if set(runs["strategy"]) == _SCALES:
        return (
            "their weights differ by a factor only, which gradient clipping (`grad_clip`) and Adam "
            "take out of a step again"
        )
    shares = results.weights[results.weights["run"].isin(runs["run"])]
    if len(shares) and np.allclose(shares["share_min"], shares["share_max"], equal_nan=True):
        return "all workers had the same share throughout, as under `average`"
    return "what they differ in is not in use"
