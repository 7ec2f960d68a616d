"""Which runs are repetitions of each other: the arms that are compared."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from rllib_weighted.report.errors import unknown
from rllib_weighted.report.settings import Settings

DEFAULT_BASELINE = "average"
LONGEST_VALUE = 40
ABSENT = "–"


def assign_arms(settings: Sequence[Settings]) -> tuple[list[str], pd.DataFrame]:
    """Groups runs into arms: in one environment, those that differ in nothing but their seed.

    Args:
        settings: The settings of each run.

    Returns:
        The label of each run's arm, unique within its environment, and a row per arm:

        - env, arm, strategy
        - min_weight: the minimum weight (1/N if it was not set); NaN if there is none, or a
          schedule
        - num_workers: workers that are merged; 0 if unknown
        - varied: what tells it from the other arms besides strategy and minimum weight, as a dict
        - settings: all of its settings, as a dict of texts
    """
    by_env: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(settings):
        by_env[item.env].append(index)
    labels = [""] * len(settings)
    rows: list[dict[str, Any]] = []
    for env, indices in by_env.items():
        varied = _varied([settings[index] for index in indices])
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index in indices:
            groups[_key(settings[index], varied)].append(index)
        members = [settings[group[0]] for group in groups.values()]
        names = _labels(members, varied)
        for group, item, name in zip(groups.values(), members, names, strict=True):
            for index in group:
                labels[index] = name
            rows.append({"env": env, "arm": name, **_arm(item, varied)})
    arms = pd.DataFrame(rows).sort_values(
        ["env", "strategy", "min_weight", "arm"], na_position="first", ignore_index=True
    )
    return labels, arms


def _varied(settings: Sequence[Settings]) -> list[str]:
    """Returns the settings that have more than one value among the runs that have them at all."""
    values: dict[str, set[str]] = defaultdict(set)
    for item in settings:
        for name, value in item.other.items():
            values[name].add(value)
    return sorted(name for name, found in values.items() if len(found) > 1)


def _key(item: Settings, varied: Sequence[str]) -> tuple[Any, ...]:
    min_weight = None if math.isnan(item.min_weight) else item.min_weight
    others = tuple(item.other.get(name) for name in varied)
    return item.strategy, item.options, min_weight, item.schedule, others


def _arm(item: Settings, varied: Sequence[str]) -> dict[str, Any]:
    own = {name: item.other[name] for name in varied if name in item.other}
    own |= {"merge_options": item.options} if item.options else {}
    own |= {"min_weight schedule": item.schedule} if item.schedule else {}
    return {
        "strategy": item.strategy,
        "min_weight": item.min_weight,
        "num_workers": item.num_workers,
        "varied": own,
        "settings": item.other,
    }


def _labels(members: Sequence[Settings], varied: Sequence[str]) -> list[str]:
    """Returns a label per arm that names what tells it from those of the same strategy."""
    same: dict[str, list[Settings]] = defaultdict(list)
    for item in members:
        same[item.strategy].append(item)
    names = [_label(item, same[item.strategy], varied) for item in members]
    taken: dict[str, int] = defaultdict(int)
    for index, name in enumerate(names):
        taken[name] += 1
        if taken[name] > 1:  # Long values were cut.
            names[index] = f"{name} ({taken[name]})"
    return names


def _label(item: Settings, same: Sequence[Settings], varied: Sequence[str]) -> str:
    parts = []
    if len({(str(other.min_weight), other.schedule) for other in same}) > 1:
        parts.append(f"m={_cut(item.schedule) or format_number(item.min_weight)}")
    if len({other.options for other in same}) > 1:
        parts.append(_cut(item.options) or "default options")
    for name in varied:
        if len({other.other.get(name) for other in same}) > 1:
            parts.append(f"{name}={_cut(item.other.get(name, ABSENT))}")
    return ", ".join([item.strategy, *parts])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def format_number(value: float, digits: int = 3) -> str:
    """Returns a number with that many significant digits and separated thousands."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def choose_baseline(arms: pd.DataFrame, baseline: str | None) -> str | None:
    """Returns the name of the baseline: a strategy, or the label of one arm.

    Args:
        arms: As `assign_arms` returns them.
        baseline: The one asked for; None for `DEFAULT_BASELINE`.

    Returns:
        The baseline; None if none was asked for and the default one is not there.

    Raises:
        ReportError: There is no such strategy or arm.
    """
    names = [*arms["strategy"].unique(), *arms["arm"].unique()]
    if baseline is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in names else None
    if baseline not in names:
        raise unknown("baseline", baseline, names)
    return baseline


def baseline_of(arm: Any, arms: pd.DataFrame, baseline: str) -> tuple[str | None, list[str]]:
    """Finds the arm that another one is to be compared with.

    Of several arms of the baseline, it is the one with the same other settings (those that both
    have); a single one is taken as it is.

    Args:
        arm: A row of `arms`.
        arms: As `assign_arms` returns them.
        baseline: Name of a strategy, or label of an arm.

    Returns:
        The label of the baseline's arm, or None, and the settings in which the two differ.
    """
    same_env = arms[arms["env"] == arm["env"]]
    candidates = same_env[same_env["arm"] == baseline]
    if candidates.empty:
        candidates = same_env[same_env["strategy"] == baseline]
    if arm["arm"] in set(candidates["arm"]):
        return None, []
    differences = {
        row["arm"]: [
            name
            for name in sorted(row["settings"].keys() & arm["settings"].keys())
            if row["settings"][name] != arm["settings"][name]
        ]
        for _, row in candidates.iterrows()
    }
    equal = [name for name, different in differences.items() if not different]
    if len(equal) == 1:
        return equal[0], []
    if len(differences) == 1:
        ((name, different),) = differences.items()
        return name, different
    return None, []
