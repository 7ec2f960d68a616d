"""Writes a report: one HTML page that needs nothing else, and its figures and tables as files."""

from __future__ import annotations

import base64
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rllib_weighted.report import measures, statistics
from rllib_weighted.report import tables as views
from rllib_weighted.report.comparisons import fewest_pairs
from rllib_weighted.report.figures import MOST_ARMS_DRAWN, Drawing, draw_environments
from rllib_weighted.report.levels import draw_levels, levels_view
from rllib_weighted.report.measures import HOLD, Limits
from rllib_weighted.report.results import FINAL_FRACTION, Results, format_number
from rllib_weighted.report.statistics import CONFIDENCE, SEED
from rllib_weighted.report.tables import Tables, compute, of_env
from rllib_weighted.report.trials import ReportError, counted

GENERATOR = "rllib report"
MOST_SENTENCES = 100
MOST_ROWS = 300

_PAGE = "report.html"
_FIGURES = "figures"
_TABLES = "tables"
_SECTIONS = (
    "curves",
    "reached",
    "faster",
    "finals",
    "sensitivity",
    "effective",
    "shares",
    "levels",
)


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: The page's file.
        tables: What it says.
    """

    page: Path
    tables: Tables


def write_report(
    results: Results,
    out: str | os.PathLike[str],
    *,
    baseline: str | None = None,
    threshold: Limits = None,
    hold: int = HOLD,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Report:
    """Writes `report.html`, `figures/` (PNG and SVG) and `tables/` (CSV and Parquet) to a folder.

    The page holds everything that it shows; the other files are the same for other uses. An
    earlier report in the folder is replaced.

    Args:
        results: From `load_results`.
        out: A local folder; created if it is not there.
        baseline: A strategy or the label of an arm; None takes "average", if it is there.
        threshold: One for all environments, or one by environment's name; see `thresholds`.
        hold: Rounds that the threshold has to be sustained; see `first_sustained`.
        confidence: Coverage of the intervals.
        seed: Seeds the bootstraps: the same results give the same report.

    Raises:
        ReportError: A bad baseline, threshold or `hold`; or `out` is a file, or a folder with
            anything but an earlier report.
        OSError: `out` cannot be written to.
    """
    folder = Path(out).expanduser()
    check_folder(folder)
    tables = compute(
        results,
        baseline=baseline,
        threshold=threshold,
        hold=hold,
        confidence=confidence,
        seed=seed,
    )
    drawings = _with_distinct_names([*draw_environments(tables), *draw_levels(tables)])
    _clear(folder)
    for drawing in drawings:
        (folder / _FIGURES / f"{drawing.name}.png").write_bytes(drawing.png)
        (folder / _FIGURES / f"{drawing.name}.svg").write_bytes(drawing.svg)
    for name, table in vars(tables).items():
        if isinstance(table, pd.DataFrame) and not (name == "levels" and table.empty):
            flat = _flat(table)
            flat.to_csv(folder / _TABLES / f"{name}.csv", index=False)
            flat.to_parquet(folder / _TABLES / f"{name}.parquet", index=False)
    page = folder / _PAGE
    page.write_text(render(tables, drawings), encoding="utf-8")
    return Report(page, tables)


def check_folder(folder: Path) -> None:
    """Raises ReportError unless a report may be written to a folder."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ReportError(f"{folder} is a file: give a folder to write the report to with --out")
    page = folder / _PAGE
    head = page.read_text("utf-8", "replace")[:1000] if page.is_file() else ""
    is_ours = f'content="{GENERATOR}"' in head
    if not is_ours and any(folder.iterdir()):
        raise ReportError(
            f"{folder} holds something else than a report: choose another folder with --out"
        )


def _clear(folder: Path) -> None:
    """Makes the folders, without what an earlier report left in them."""
    for name, suffixes in ((_FIGURES, (".png", ".svg")), (_TABLES, (".csv", ".parquet"))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (folder / name).iterdir():
            if file.suffix in suffixes:
                file.unlink()


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose cells fit into a file: dicts become JSON."""
    texts = {
        name: table[name].map(lambda value: json.dumps(value, sort_keys=True))
        for name in ("varied", "settings")
        if name in table
    }
    return table.assign(**texts)


def _with_distinct_names(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Returns figures whose files do not overwrite each other: long or odd labels are cut alike."""
    taken: Counter[str] = Counter()
    found = []
    for drawing in drawings:
        taken[drawing.name] += 1
        count = taken[drawing.name]
        found.append(drawing if count == 1 else replace(drawing, name=f"{drawing.name}_{count}"))
    return found


def render(tables: Tables, drawings: Sequence[Drawing]) -> str:
    """Returns the page.

    All texts from configs, environments and paths are escaped; the page forbids itself scripts
    and any network access.

    Args:
        tables: The statistics.
        drawings: The figures.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    envs = list(tables.thresholds)
    counting = int(tables.runs["counts"].sum())
    return environment.get_template("report.html.jinja").render(
        vars(tables),
        generator=GENERATOR,
        title=f"Report on {envs[0] if len(envs) == 1 else f'{len(envs)} environments'}",
        created=time.strftime("%Y-%m-%d %H:%M %Z"),
        num_runs=f"{counted(counting, 'run')} in {counted(len(tables.arms), 'arm')}",
        environments=[
            {"number": number, **_environment(env, tables, [d for d in drawings if d.env == env])}
            for number, env in enumerate(envs, start=1)
        ],
        versions=views.versions_view(),
        all_runs=views.runs_view(tables),
        most_rows=MOST_ROWS,
        level=tables.level,
        measures=measures,
        statistics=statistics,
        final_fraction=FINAL_FRACTION,
        fewest_pairs=fewest_pairs(tables.confidence),
    )


def _environment(env: str, tables: Tables, drawings: Sequence[Drawing]) -> dict[str, Any]:
    """Returns what the template shows of an environment."""
    said = [sentence for sentence in tables.sentences if sentence.env == env]
    said.sort(key=lambda sentence: not sentence.claim)

    def about(*names: str) -> list[Any]:
        return [sentence for sentence in said if sentence.measure in names][:MOST_SENTENCES]

    limit = tables.thresholds[env]
    value = f"{format_number(limit.value)}, " if limit.exists else ""
    return {
        "env": env,
        "threshold": f"{value}{limit.origin}{_nobody_reached(tables, env)}",
        "headline": views.headline(tables, env),
        "not_drawn": max(0, len(of_env(tables.arms, env)) - MOST_ARMS_DRAWN),
        "speed": about("env steps to threshold"),
        "wall_time": about("wall time to threshold"),
        "returns": about("final return", "held-out return", "training minus held-out"),
        "convergence": views.convergence_view(tables, env),
        "finals": views.finals_view(tables, env),
        "drops": views.drops_view(tables, env),
        "levels": levels_view(tables, env),
        "provenance": views.provenance(tables, env),
        "drawings": {
            name: [drawing for drawing in drawings if drawing.section == name] for name in _SECTIONS
        },
        "num_shares": of_env(tables.shares, env)["arm"].nunique(),
    }


def _nobody_reached(tables: Tables, env: str) -> str:
    """Returns that nobody reached the threshold, if so."""
    runs = of_env(tables.convergence_runs, env)
    if runs.empty or runs["reached"].any():
        return ""
    best = format_number(of_env(tables.final_returns, env)["final"].max())
    return f". No run ever held it (the best arm's final return is {best})"
