"""Groups trials into arms, and says what an arm is called and which one is compared with which.

The live view of a sweep and the report call arms by the same names: those of `group_arms`.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from rllib_weighted.report.formats import ABSENT, format_number, shorten
from rllib_weighted.report.trials import Settings, unknown
from rllib_weighted.text import printable

DEFAULT_BASELINE = "average"


@dataclass(frozen=True)
class Arm:
    """Runs in one environment that differ in nothing but their seed.

    Attributes:
        label: What it is called; unique within its environment.
        line: The same without its name and minimum weight.
        settings: Those of its first run, with the one name that all of its runs have.
        runs: The runs, by their index.
        varied: The settings that have more than one value in its environment.
    """

    label: str
    line: str
    settings: Settings
    runs: Sequence[int]
    varied: Sequence[str]


def group_arms(settings: Sequence[Settings]) -> list[Arm]:
    """Groups runs into arms, by environment and in the order of their first runs.

    Args:
        settings: The settings of each run.
    """
    found: list[Arm] = []
    for env in dict.fromkeys(item.env for item in settings):
        here = {index: item for index, item in enumerate(settings) if item.env == env}
        varied = _varied(list(here.values()))
        runs: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index, item in here.items():
            runs[_key(item, varied)].append(index)
        members = [_named([here[index] for index in own]) for own in runs.values()]
        labels, lines = _labels(members, varied)
        for item, label, line, own in zip(members, labels, lines, runs.values(), strict=True):
            found.append(Arm(label, line, item, own, varied))
    return found


def assign_arms(settings: Sequence[Settings]) -> tuple[list[str], pd.DataFrame]:
    """Groups runs into arms: in one environment, those that differ in nothing but their seed.

    Args:
        settings: The settings of each run.

    Returns:
        The label of each run's arm, unique within its environment, and a row per arm:

        - env, arm, strategy; line: the arm without its name and minimum weight
        - min_weight: the minimum weight (1/N if it was not set); NaN if there is none, or a
          schedule
        - num_workers: workers that are merged; 0 if unknown
        - varied: what tells it from the other arms besides strategy and minimum weight, as a dict
        - settings: all of its settings, as a dict of texts
    """
    labels = [""] * len(settings)
    rows: list[dict[str, Any]] = []
    for arm in group_arms(settings):
        for index in arm.runs:
            labels[index] = arm.label
        names = {"env": arm.settings.env, "arm": arm.label, "line": arm.line}
        rows.append({**names, **_arm_row(arm.settings, arm.varied)})
    table = pd.DataFrame(rows).sort_values(
        ["env", "strategy", "min_weight", "arm"], na_position="first", ignore_index=True
    )
    return labels, table


def name_arms(settings: Sequence[Settings], names: Mapping[str, str]) -> list[Settings]:
    """Returns the settings of runs with the names that their arms shall have.

    A name stands in an arm's label in the place of its strategy. Where arms of the same name differ
    in more, their labels say so: naming never pools runs.

    Args:
        settings: The settings of each run.
        names: For each name the runs that get it: an arm's label without names, a strategy, or
            settings with their values, ``merge_strategy=average,lr=0.01``.

    Raises:
        ReportError: No run is what a name is for.
    """
    named = list(settings)
    if not names:
        return named
    labels, arms = assign_arms([replace(item, name="") for item in settings])
    for name, which in names.items():
        chosen = [
            index
            for index, (item, label) in enumerate(zip(settings, labels, strict=True))
            if printable(which) in (label, item.name, item.strategy) or _fits(item, which)
        ]
        if not chosen:
            raise unknown("arm", which, [*arms["arm"], *arms["strategy"]])
        for index in chosen:
            named[index] = replace(named[index], name=printable(name))
    return named


def _fits(item: Settings, which: str) -> bool:
    """Whether a run has all of the settings in ``name=value,...``."""
    own: dict[str, Any] = {"env": item.env, "merge_strategy": item.strategy, **item.other}
    own |= {"min_weight": item.schedule or item.min_weight, "merge_options": item.options}
    own |= {"num_workers": item.num_workers}
    for part in which.split(","):
        name, _, value = part.strip().partition("=")
        with contextlib.suppress(ValueError, KeyError):
            if own[name] == printable(value) or float(own[name]) == float(value):
                continue
        return False
    return True


def _named(runs: Sequence[Settings]) -> Settings:
    """Returns the settings of an arm, with the one name that all of its runs have."""
    found = {item.name for item in runs}
    return replace(runs[0], name=found.pop() if len(found) == 1 else "")


def _varied(settings: Sequence[Settings]) -> list[str]:
    """Returns the settings that have more than one value among the runs that have them at all."""
    values: dict[str, set[str]] = defaultdict(set)
    for item in settings:
        for name, value in item.other.items():
            values[name].add(value)
    return sorted(name for name, found in values.items() if len(found) > 1)


def _key(item: Settings, varied: Sequence[str]) -> tuple[Any, ...]:
    """Returns what the runs of an arm agree in."""
    others = tuple(item.other.get(name) for name in varied)
    return item.strategy, item.options, str(item.min_weight), item.schedule, others


def _arm_row(item: Settings, varied: Sequence[str]) -> dict[str, Any]:
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


def _labels(members: Sequence[Settings], varied: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns what arms are called, and the same without their names and minimum weights.

    A label is an arm's name or strategy, and what tells it from those of the same.

    Args:
        members: The settings of each arm of one environment.
        varied: The settings by which they can be told apart.
    """
    named = _Distinctions(members, varied, "name")
    of_strategy = _Distinctions(members, varied, "strategy")
    taken: Counter[str] = Counter()
    labels = []
    for item in members:
        label = (named if item.name else of_strategy).label(item)
        taken[label] += 1  # Long values are cut, and may be cut alike.
        labels.append(label if taken[label] == 1 else f"{label} ({taken[label]})")
    return labels, [", ".join([item.strategy, *of_strategy.parts(item)]) for item in members]


class _Distinctions:
    """What tells arms of one environment apart from others of the same name or strategy.

    Args:
        members: The settings of each arm.
        varied: The settings by which they can be told apart.
        kind: `"name"` or `"strategy"`: among the arms that share it, they are told apart.
    """

    def __init__(self, members: Sequence[Settings], varied: Sequence[str], kind: str) -> None:
        self._kind = kind
        same: dict[str, list[Settings]] = defaultdict(list)
        for item in members:
            same[getattr(item, kind)].append(item)
        self._weights = {
            group: len({(str(item.min_weight), item.schedule) for item in items}) > 1
            for group, items in same.items()
        }
        self._options = {
            group: _differing([_options(item) for item in items]) for group, items in same.items()
        }
        self._settings = {
            group: _differing([{name: item.other.get(name) for name in varied} for item in items])
            for group, items in same.items()
        }

    def label(self, item: Settings) -> str:
        """Returns the name or strategy of an arm, and all in which it differs from the others."""
        parts = [getattr(item, self._kind)]
        if self._weights[parts[0]]:
            parts.append(f"m={shorten(item.schedule, 40) or format_number(item.min_weight)}")
        return ", ".join([*parts, *self.parts(item)])

    def parts(self, item: Settings) -> list[str]:
        """Returns the options and settings in which an arm differs from the others."""
        group = getattr(item, self._kind)
        options, names = _options(item), self._options[group]
        parts = [f"{name}={shorten(options[name], 40)}" for name in names if name in options]
        if names and not parts:
            parts.append("default options")
        for name in self._settings[group]:
            parts.append(f"{name}={shorten(item.other.get(name, ABSENT), 40)}")
        return parts


def _differing(items: Sequence[Mapping[str, str | None]]) -> list[str]:
    """Returns the names, sorted, that do not have the same value in all of the items."""
    names = sorted({name for item in items for name in item})
    return [name for name in names if len({item.get(name) for item in items}) > 1]


def _options(item: Settings) -> dict[str, str]:
    """Returns a strategy's options by name, as texts."""
    if not item.options:
        return {}
    try:
        options = json.loads(item.options)
    except ValueError:
        options = None
    if not isinstance(options, dict):  # As a strategy of a user's prints itself.
        return {"options": item.options}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
    }


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
    if printable(baseline) not in names:
        raise unknown("baseline", baseline, names)
    return printable(baseline)


def is_baseline(table: pd.DataFrame, baseline: str | None) -> pd.Series:
    """Whether each row of a table of runs or arms belongs to the baseline."""
    return (table["strategy"] == baseline) | (table["arm"] == baseline)


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
    own = arm["settings"]
    differences = {
        label: sorted(name for name in own.keys() & other.keys() if own[name] != other[name])
        for label, other in zip(candidates["arm"], candidates["settings"], strict=True)
    }
    equal = [label for label, different in differences.items() if not different]
    if len(equal) == 1:
        return equal[0], []
    return next(iter(differences.items())) if len(differences) == 1 else (None, [])
