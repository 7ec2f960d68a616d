"""Writes a report: the page, its figures and its tables."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rllib_weighted.report.convergence import HOLD
from rllib_weighted.report.errors import ReportError
from rllib_weighted.report.figures import (
    Scene,
    draw_curves,
    draw_effective,
    draw_reached,
    draw_shares,
)
from rllib_weighted.report.figures_rows import draw_faster, draw_finals, draw_sensitivity
from rllib_weighted.report.intervals import CONFIDENCE, SEED
from rllib_weighted.report.page import GENERATOR, MOST_ARMS_DRAWN, render
from rllib_weighted.report.results import Results
from rllib_weighted.report.style import Drawing, looks
from rllib_weighted.report.tables import Tables, compute

PAGE = "report.html"
FIGURES = "figures"
TABLES = "tables"
_NAMES = (
    "runs",
    "arms",
    "learning_curves",
    "convergence_runs",
    "convergence",
    "final_returns",
    "comparisons",
    "sensitivity",
    "weight_curves",
    "shares",
    "drops",
    "origins",
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
    threshold: float | Mapping[str, float] | None = None,
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
        hold: Rounds that the threshold has to be held; see `first_held`.
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
    drawings = _with_names_of_their_own(_drawings(tables))
    _clear(folder)
    for drawing in drawings:
        (folder / FIGURES / f"{drawing.name}.png").write_bytes(drawing.png)
        (folder / FIGURES / f"{drawing.name}.svg").write_bytes(drawing.svg)
    for name in _NAMES:
        table = _flat(getattr(tables, name))
        table.to_csv(folder / TABLES / f"{name}.csv", index=False)
        table.to_parquet(folder / TABLES / f"{name}.parquet", index=False)
    page = folder / PAGE
    page.write_text(render(tables, drawings), encoding="utf-8")
    return Report(page, tables)


def check_folder(folder: Path) -> None:
    """Raises ReportError unless a report may be written to a folder."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ReportError(f"{folder} is a file: give a folder to write the report to with --out")
    page = folder / PAGE
    head = page.read_text("utf-8", "replace")[:1000] if page.is_file() else ""
    is_ours = f'content="{GENERATOR}"' in head
    if not is_ours and any(folder.iterdir()):
        raise ReportError(
            f"{folder} holds something else than a report: choose another folder with --out"
        )


def _clear(folder: Path) -> None:
    """Makes the folders, without what an earlier report left in them."""
    for name, suffixes in ((FIGURES, (".png", ".svg")), (TABLES, (".csv", ".parquet"))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (folder / name).iterdir():
            if file.suffix in suffixes:
                file.unlink()


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose cells fit into a file: dicts become JSON."""
    if "settings" not in table:
        return table
    texts = {
        name: table[name].map(lambda value: json.dumps(value, sort_keys=True))
        for name in ("varied", "settings")
    }
    return table.assign(**texts)


def _with_names_of_their_own(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Returns figures whose files do not overwrite each other: long or odd labels are cut alike."""
    taken: dict[str, int] = defaultdict(int)
    found = []
    for drawing in drawings:
        taken[drawing.name] += 1
        count = taken[drawing.name]
        found.append(drawing if count == 1 else replace(drawing, name=f"{drawing.name}_{count}"))
    return found


def _drawings(tables: Tables) -> Iterator[Drawing]:
    for number, env in enumerate(tables.thresholds, start=1):
        baseline = tables.baseline_arms(env)
        arms = list(tables.arms.loc[tables.arms["env"] == env, "arm"])
        drawn = [*baseline, *(arm for arm in arms if arm not in baseline)][:MOST_ARMS_DRAWN]
        order = [arm for arm in arms if arm in drawn]
        scene = Scene(number, env, tables, looks(order, baseline), baseline)
        for draw in (
            draw_curves,
            draw_reached,
            draw_faster,
            draw_finals,
            draw_sensitivity,
            draw_effective,
            draw_shares,
        ):
            yield from draw(scene)
