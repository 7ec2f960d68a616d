"""In what two runs or experiments differ: settings, versions and results; the verb `compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console

from rllib_weighted.cli import InputError
from rllib_weighted.cli.display import show
from rllib_weighted.core.redaction import redact
from rllib_weighted.records.origin import read_origin
from rllib_weighted.report.formats import ABSENT, format_number, shorten
from rllib_weighted.report.results import Results, load_results
from rllib_weighted.report.trials import ReportError, Settings, counted, find_trials, read_settings

_LONGEST_VALUE = 60
_MAX_VALUES = 6  # Of one setting, in an experiment with many trials.

Rows = list[tuple[str, str, str]]


@dataclass(frozen=True)
class _Side:
    """What is known of one of the two.

    Args:
        settings: Those of each trial.
        origins: What its trials were recorded with, each different one once.
        results: Its results; None if it has none yet.
    """

    settings: Sequence[Settings]
    origins: Sequence[Mapping[str, str]]
    results: Results | None


def compare_runs(a: str, b: str, *, console: Console | None = None) -> None:
    """Prints in what two runs or experiments differ.

    Args:
        a: The folder of a trial or an experiment: a local path or a URI.
        b: Another one.
        console: Where to print; None takes the standard output.

    Raises:
        InputError: There is no trial in one of them.
    """
    console = console or Console(highlight=False)
    sides = _read(a), _read(b)
    lines = [
        f"{name}  {location}  ({counted(len(side.settings), 'trial')})"
        for name, location, side in zip("AB", (a, b), sides, strict=True)
    ]
    for title, rows in (
        ("settings", setting_rows(*(side.settings for side in sides))),
        ("versions and machine", _differences(*(side.origins for side in sides))),
        ("results", _result_rows(*(side.results for side in sides))),
    ):
        lines += ["", *(_table(title, rows) if rows else [f"{title}: no difference"])]
    for line in lines:
        show(console, redact(line))


def _read(location: str) -> _Side:
    try:
        trials, _ = find_trials(location)
    except ReportError as error:
        raise InputError(str(error)) from None
    settings = [read_settings(trial)[0] for trial in trials]
    origins: list[Mapping[str, str]] = []
    for trial in trials:
        found = read_origin(trial.history) if trial.history is not None else {}
        if found and found not in origins:
            origins.append(found)
    try:
        results = load_results(location)
    except ReportError:  # None of the trials has a result yet.
        results = None
    return _Side(settings, origins, results)


def setting_rows(a: Sequence[Settings], b: Sequence[Settings]) -> Rows:
    """Returns the settings whose values are not the same in both: name, those of A, those of B.

    Args:
        a: The settings of the trials of A.
        b: The settings of the trials of B.
    """
    return _differences(*([_named(item) for item in side] for side in (a, b)))


def _named(item: Settings) -> dict[str, str]:
    """Returns all settings of a trial by the names that a config has for them."""
    weight = item.schedule or ("" if math.isnan(item.min_weight) else f"{item.min_weight:.6g}")
    known = {
        "env": item.env,
        "merge_arm": item.name,
        "merge_strategy": item.strategy,
        "merge_options": item.options,
        "min_weight": weight,
        "num_workers": str(item.num_workers or ""),
        "seed": "" if item.seed is None else str(item.seed),
        "evaluation_interval": str(item.evaluation_interval or ""),
    }
    others = {name.removeprefix("_"): text for name, text in item.other.items()}
    return {**{name: text for name, text in known.items() if text}, **others}


def _differences(a: Sequence[Mapping[str, str]], b: Sequence[Mapping[str, str]]) -> Rows:
    """Returns name, values in A and values in B, of what has not the same values in both."""
    names = dict.fromkeys(name for items in (a, b) for item in items for name in item)
    rows = []
    for name in names:
        of_a, of_b = (
            dict.fromkeys(item.get(name, ABSENT) for item in items) or {ABSENT: None}
            for items in (a, b)
        )
        if of_a.keys() != of_b.keys():
            rows.append((name, _listed(list(of_a)), _listed(list(of_b))))
    return rows


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - _MAX_VALUES} more" if len(values) > _MAX_VALUES else ""
    return "; ".join(shorten(value, _LONGEST_VALUE) for value in values[:_MAX_VALUES]) + more


def _result_rows(a: Results | None, b: Results | None) -> Rows:
    """Returns the results of A and B: arm by arm, or as they are where each has a single arm."""
    found_a, found_b = _by_arm(a), _by_arm(b)
    if max(len(found_a), len(found_b)) == 1:
        found_a, found_b = (
            dict(zip([""], found.values(), strict=False)) for found in (found_a, found_b)
        )
    rows = []
    for arm in dict.fromkeys([*found_a, *found_b]):
        own_a, own_b = found_a.get(arm, {}), found_b.get(arm, {})
        for name in own_a or own_b:
            row = own_a.get(name, ABSENT), own_b.get(name, ABSENT)
            if row != (ABSENT, ABSENT):
                rows.append((f"{arm}: {name}" if arm else name, *row))
    return rows


def _by_arm(results: Results | None) -> dict[str, dict[str, str]]:
    """Returns the results of each arm, by its environment and label."""
    if results is None:
        return {}
    found = {}
    for env in results.envs:
        for arm, runs in results.by_arm(env):
            label = arm if len(results.envs) == 1 else f"{env}, {arm}"
            found[label] = {
                "final return": _mean(runs["final"]),
                "held-out return": _mean(runs["held_out"]),
                "rounds": _mean(runs["num_rounds"]),
                "env steps": _mean(runs["env_steps"]),
                "minutes": _mean(runs["time_s"] / 60),
                "runs": f"{len(runs)}, {int(runs['finished'].sum())} finished",
            }
    return found


def _mean(values: pd.Series) -> str:
    """Returns a mean, and the least and the largest value where there are several."""
    known = values.dropna()
    if known.empty:
        return ABSENT
    text = format_number(float(known.mean()), 4)
    low, high = (format_number(float(value), 4) for value in (known.min(), known.max()))
    return text if low == high else f"{text} ({low} … {high})"


def _table(title: str, rows: Rows) -> list[str]:
    """Returns rows as lines with equal columns; long ones go on, uncut, on the terminal's next."""
    cells = [(title, "A", "B"), *rows]
    first, second = (max(len(row[index]) for row in cells) for index in (0, 1))
    return [f"{name:<{first}}  {a:<{second}}  {b}".rstrip() for name, a, b in cells]
