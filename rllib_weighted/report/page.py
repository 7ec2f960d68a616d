"""Puts a report together as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rllib_weighted.report.arms import format_number
from rllib_weighted.report.behind import runs_view, sections, versions_view
from rllib_weighted.report.errors import counted
from rllib_weighted.report.methods import methods
from rllib_weighted.report.style import Drawing
from rllib_weighted.report.tables import Tables
from rllib_weighted.report.views import (
    convergence_view,
    drops_view,
    finals_view,
    headline,
)
from rllib_weighted.report.wording import Sentence

GENERATOR = "rllib report"
MOST_ARMS_DRAWN = 36
MOST_SENTENCES = 100
MOST_ROWS = 300
_TEMPLATE = "report.html.jinja"
_SECTIONS = ("curves", "reached", "faster", "finals", "sensitivity", "effective", "shares")


def render(tables: Tables, drawings: Sequence[Drawing]) -> str:
    """Returns the page.

    All texts from configs, environments and paths are escaped; the page forbids itself scripts
    and any network access.

    Args:
        tables: The statistics.
        drawings: The figures.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    envs = list(tables.thresholds)
    counting = int(tables.runs["counts"].sum())
    return environment.get_template(_TEMPLATE).render(
        most_rows=MOST_ROWS,
        title=f"Report on {envs[0] if len(envs) == 1 else f'{len(envs)} environments'}",
        generator=GENERATOR,
        created=time.strftime("%Y-%m-%d %H:%M %Z"),
        num_runs=f"{counted(counting, 'run')} in {counted(len(tables.arms), 'arm')}",
        metric=tables.metric,
        baseline=tables.baseline,
        problems=tables.problems,
        environments=[
            _environment(number, env, tables, [d for d in drawings if d.env == env])
            for number, env in enumerate(envs, start=1)
        ],
        methods=methods(tables),
        versions=versions_view(),
        runs=runs_view(tables),
    )


def _environment(
    number: int, env: str, tables: Tables, drawings: Sequence[Drawing]
) -> dict[str, Any]:
    by_section: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        by_section[drawing.section].append(drawing)
    every = [sentence for sentence in tables.sentences if sentence.env == env]
    said = sorted(every, key=lambda sentence: not sentence.claim)
    num_arms = int((tables.arms["env"] == env).sum())
    limit = tables.thresholds[env]
    value = f"{format_number(limit.value)}, " if limit.exists else ""
    shares = tables.shares
    return {
        "number": number,
        "env": env,
        "threshold": f"{value}{limit.origin}{_reached(tables, env)}",
        "headline": headline(tables, env),
        "not_drawn": max(0, num_arms - MOST_ARMS_DRAWN),
        "speed": _about(said, "env steps to threshold"),
        "wall_time": _about(said, "wall time to threshold"),
        "returns": _about(said, "final return", "held-out return", "training minus held-out"),
        "convergence": convergence_view(tables, env),
        "finals": finals_view(tables, env),
        "drops": drops_view(tables, env),
        "behind": sections(tables, env),
        "drawings": {name: by_section[name] for name in _SECTIONS},
        "num_shares": int(shares.loc[shares["env"] == env, "arm"].nunique()) if len(shares) else 0,
    }


def _about(said: Sequence[Sentence], *measures: str) -> list[Sentence]:
    return [sentence for sentence in said if sentence.measure in measures][:MOST_SENTENCES]


def _reached(tables: Tables, env: str) -> str:
    """Returns that nobody reached the threshold, if so."""
    runs = tables.convergence_runs
    here = runs[runs["env"] == env] if "env" in runs else runs
    if here.empty or here["reached"].any():
        return ""
    best = tables.final_returns.loc[tables.final_returns["env"] == env, "final"].max()
    return f". No run ever held it (the best arm's final return is {format_number(best)})"
