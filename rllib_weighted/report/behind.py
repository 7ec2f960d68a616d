"""Turns what is behind the numbers into tables: settings, seeds, machines, versions, runs."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from rllib_weighted.report.arms import ABSENT, format_number
from rllib_weighted.report.tables import Tables
from rllib_weighted.report.views import View, of_env

MOST_SEEDS = 12
_DISTRIBUTIONS = ("rllib-weighted", "ray", "torch", "gymnasium", "numpy", "scipy", "matplotlib")


def sections(tables: Tables, env: str) -> Sequence[View]:
    """Returns the tables behind an environment's figures."""
    views = [arms_view(tables, env), origins_view(tables, env), settings_view(tables, env)]
    return [view for view in views if view is not None]


def arms_view(tables: Tables, env: str) -> View:
    """Returns which runs are behind each arm: settings, seeds, machines, dates."""
    rows = []
    for _, arm in of_env(tables.arms, env).iterrows():
        runs = tables.runs[
            tables.runs["counts"] & (tables.runs["env"] == env) & (tables.runs["arm"] == arm["arm"])
        ]
        varied = ", ".join(f"{name}={value}" for name, value in arm["varied"].items())
        rows.append(
            [
                arm["arm"],
                arm["strategy"],
                format_number(arm["min_weight"]),
                varied or ABSENT,
                _some(runs["seed"].dropna().sort_values().astype(str)) or "none",
                _some(runs["host"]) or "unknown",
                _span(runs["date"]),
                f"{runs['time_s'].median():,.0f}",
                str(arm["num_workers"] or ABSENT),
            ]
        )
    header = [
        "arm",
        "strategy",
        "minimum weight (1)",
        "settings that vary",
        "seeds",
        "machine",
        "last results",
        "wall time, median (s)",
        "workers",
    ]
    return View("Arms", header, rows, num_texts=7)


def origins_view(tables: Tables, env: str) -> View | None:
    """Returns with which versions and on which system the runs were recorded."""
    table = of_env(tables.origins, env)
    if table.empty:
        return None
    what = [name for name in table.columns if name not in ("env", "arm", "run")]
    groups = table.fillna("").groupby(what, sort=False)["arm"]
    rows = [[", ".join(arms), *map(str, values)] for values, arms in groups]
    note = "As the merge history of one run of each arm says: the one of the lowest seed."
    return View("Recorded with", ["arms", *what], rows, note, num_texts=len(what) + 1)


def _some(values: Iterable[str]) -> str:
    every = list(dict.fromkeys(value for value in values if value))
    more = f" and {len(every) - MOST_SEEDS} more" if len(every) > MOST_SEEDS else ""
    return ", ".join(every[:MOST_SEEDS]) + more


def _span(dates: pd.Series) -> str:
    known = sorted({date[:10] for date in dates if date})
    return ABSENT if not known else known[0] if len(known) == 1 else f"{known[0]} – {known[-1]}"


def settings_view(tables: Tables, env: str) -> View:
    """Returns the settings that all arms of an environment share."""
    dicts = list(of_env(tables.arms, env)["settings"])
    shared = {
        name: value
        for name, value in (dicts[0] if dicts else {}).items()
        if all(other.get(name) == value for other in dicts)
    }
    rows = [[name, shorten(value)] for name, value in sorted(shared.items())]
    return View("Settings that all arms share", ["setting", "value"], rows, num_texts=2)


def shorten(text: str, longest: int = 200) -> str:
    """Returns text that is cut with an ellipsis where it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def runs_view(tables: Tables) -> View:
    """Returns the single runs."""
    formats: dict[str, Callable[[Any], str]] = {
        "env": str,
        "arm": str,
        "seed": lambda value: ABSENT if pd.isna(value) else str(value),
        "num_rounds": str,
        "env_steps": "{:,}".format,
        "time_s": "{:,.1f}".format,
        "final": format_number,
        "held_out": format_number,
        "finished": lambda value: "yes" if value else "no",
        "counts": lambda value: "yes" if value else "no: repeats a seed",
        "source": str,
        "path": str,
    }
    rows = [
        [form(row[name]) for name, form in formats.items()] for _, row in tables.runs.iterrows()
    ]
    header = [
        "environment",
        "arm",
        "seed",
        "rounds",
        "steps",
        "wall time (s)",
        "final return (reward)",
        "held-out (reward)",
        "came to its end",
        "counts",
        "read from",
        "folder",
    ]
    return View("Runs", header, rows, num_texts=2)


def versions_view() -> View:
    """Returns the versions that are installed where the report is made.

    They are read from the installation's metadata: nothing is imported.
    """
    rows = []
    for name in _DISTRIBUTIONS:
        try:
            rows.append([name, importlib.metadata.version(name)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([name, "not installed"])
    rows.append(["Python", platform.python_version()])
    rows.append(["machine", platform.platform()])
    return View("Made with", ["what", "version"], rows, num_texts=2)
