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
from typing import Any, Unpack

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rllib_weighted.report import measures, statistics
from rllib_weighted.report import tables as views
from rllib_weighted.report.conclusions import fewest_pairs
from rllib_weighted.report.diagnostics import (
    diagnostics_sentences,
    diagnostics_view,
    draw_diagnostics,
)
from rllib_weighted.report.figures import (
    MOST_ARMS_DRAWN,
    MOST_HEAT_MAPS,
    Drawing,
    draw_environments,
)
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.levels import draw_levels, levels_view
from rllib_weighted.report.measures import Options
from rllib_weighted.report.results import FINAL_FRACTION, Results
from rllib_weighted.report.tables import Tables, compute, of_env
from rllib_weighted.report.trials import ReportError, counted
from rllib_weighted.report.verdicts import WORTH_SEEING
from rllib_weighted.text import html_paragraphs, short_path

GENERATOR = "rllib report"
MOST_SENTENCES = 100
MOST_ROWS = 300

_PAGE = "report.html"
_FIGURES = "figures"
_TABLES = "tables"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_WHERE_USED = ("levels", "diagnostics")
_ROUND_BY_ROUND = ("progress", "weights")  # What tables are computed from, and as large as it.


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: The page's file.
        tables: What it says.
    """

    page: Path
    tables: Tables

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.tables._repr_html_() + html_paragraphs([f"Written to {short_path(self.page)}"])


def write_report(
    results: Results,
    out: str | os.PathLike[str],
    **options: Unpack[Options],
) -> Report:
    """Writes `report.html`, `figures/` (PNG and SVG) and `tables/` (CSV and Parquet) to a folder.

    The page holds everything that it shows; the other files are the same for other uses. An
    earlier report in the folder is replaced.

    Args:
        results: From `load_results`.
        out: A local folder; created if it is not there.
        options: See `measures.Options`.

    Raises:
        ReportError: A bad baseline, threshold or `hold`; or `out` is a file, or a folder with
            anything but an earlier report.
        OSError: `out` cannot be written to.
    """
    folder = Path(out).expanduser()
    check_folder(folder)
    tables = compute(results, **options)
    drawings = _with_distinct_names(
        [*draw_environments(tables), *draw_diagnostics(tables), *draw_levels(tables)]
    )
    _clear(folder)
    for drawing in drawings:
        (folder / _FIGURES / f"{drawing.name}.png").write_bytes(drawing.png)
        (folder / _FIGURES / f"{drawing.name}.svg").write_bytes(drawing.svg)
    for name, table in vars(tables).items():
        is_shown = name not in _ROUND_BY_ROUND and not (name in _WHERE_USED and table.empty)
        if isinstance(table, pd.DataFrame) and is_shown:
            flat = _flat(table)
            _without_formulas(flat).to_csv(folder / _TABLES / f"{name}.csv", index=False)
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


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table in which no text is a formula to a spreadsheet: such texts begin with "'"."""

    def quoted(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

    texts = table.columns.difference(table.select_dtypes(["number", "bool"]).columns)
    return table.assign(**{name: table[name].map(quoted) for name in texts}).rename(columns=quoted)


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
    environment.globals.update(counted=counted, of_env=of_env, threshold_text=threshold_text)
    return environment.get_template("report.html.jinja").render(
        vars(tables),
        tables=tables,
        views=views,
        levels_view=levels_view,
        diagnostics_view=diagnostics_view,
        diagnostics_sentences=diagnostics_sentences,
        drawings=drawings,
        generator=GENERATOR,
        created=time.strftime("%Y-%m-%d %H:%M %Z"),
        most_arms_drawn=MOST_ARMS_DRAWN,
        most_heat_maps=MOST_HEAT_MAPS,
        most_rows=MOST_ROWS,
        most_sentences=MOST_SENTENCES,
        worth_seeing=WORTH_SEEING,
        measures=measures,
        statistics=statistics,
        final_fraction=FINAL_FRACTION,
        fewest_pairs=fewest_pairs(tables.confidence),
    )


def threshold_text(tables: Tables, env: str) -> str:
    """Returns an environment's threshold, where it comes from, and whether nobody reached it."""
    limit, runs = tables.thresholds[env], of_env(tables.convergence_runs, env)
    text = f"{format_number(limit.value)}, {limit.origin}" if limit.exists else limit.origin
    if runs.empty or runs["reached"].any():
        return text
    best = format_number(of_env(tables.final_returns, env)["final"].max())
    return f"{text}. No run ever held it (the best arm's final return is {best})"
