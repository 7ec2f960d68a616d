"""Puts a report together as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rllib_weighted.report.comparisons import Sentence, fewest_pairs
from rllib_weighted.report.figures import (
    Drawing,
    Scene,
    draw_curves,
    draw_effective,
    draw_faster,
    draw_finals,
    draw_reached,
    draw_sensitivity,
    draw_shares,
    looks,
)
from rllib_weighted.report.measures import HOLD, LEAST_LENGTH
from rllib_weighted.report.results import FINAL_FRACTION, Results, format_number
from rllib_weighted.report.statistics import CONFIDENCE, FEWEST_RESAMPLES, NUM_RESAMPLES, SEED
from rllib_weighted.report.tables import (
    Tables,
    compute,
    convergence_view,
    drops_view,
    finals_view,
    headline,
    runs_view,
    sections,
    versions_view,
)
from rllib_weighted.report.trials import ReportError, counted

# The definitions behind a report's numbers, in words


def methods(tables: Tables) -> list[tuple[str, str]]:
    """Returns terms and their definitions."""
    level = f"{100 * tables.confidence:g} %"
    return [
        (
            "Arm",
            "Runs in one environment that differ in nothing but their seed. Other minimum weights, "
            "options, hardware or hyperparameters are other arms and never pooled; a label names "
            "only what varies. Strategies without a minimum weight are one arm whatever it was set "
            "to. Of several runs with the same seed in an arm, the longest counts: a repeated seed "
            "is no new evidence.",
        ),
        (
            "Learning curve",
            "Interquartile mean over the runs of an arm (without the n // 4 lowest and highest, so "
            "the mean of fewer than four), at each of 100 points. A run's value is that of its "
            "last round up to there, never carried beyond its end.",
        ),
        (
            f"{level} band and intervals of an arm",
            f"Bootstrap that resamples the runs of each arm for itself, {NUM_RESAMPLES:,} times "
            f"(with many runs less, at least {FEWEST_RESAMPLES}); expanded percentile intervals. "
            "Of fewer than 5 runs they are little more than the range of the runs, and cover the "
            "truth less often than they say.",
        ),
        (
            "Threshold held",
            f"In the first of {tables.hold} rounds in a row whose metric is at least the "
            "threshold. At the end of a run that came to its own end before the others fewer are "
            "enough, because a stop criterion may have ended it for just that.",
        ),
        (
            "Runs that never held it",
            "Count as censored: all that is known is that they would have taken longer than they "
            "ran. The mean time is the area under the Kaplan-Meier curve up to a horizon up to "
            "which all arms that are compared are known.",
        ),
        (
            "Percent faster",
            "100 (1 - mean time of the arm / mean time of the baseline), both restricted to the "
            f"horizon of the two. {level} interval: jackknife t interval of the log ratio over the "
            "paired seeds.",
        ),
        (
            "Final return",
            f"Mean of the metric over the last {FINAL_FRACTION:.0%} of a run's environment steps; "
            "on held-out seeds that of the evaluations then, or of the last one. Runs that have "
            f"not come to their end and are shorter than {LEAST_LENGTH:.0%} of their arm's longest "
            "are left out. Differences are means over paired seeds, with t intervals.",
        ),
        (
            "Probability of improvement",
            "Part of the paired seeds on which the arm did better than the baseline, ties counted "
            "half; Clopper-Pearson interval.",
        ),
        (
            "Claims",
            f"A difference is claimed only if the {level} interval excludes none and a permutation "
            "test (which swaps the two arms within pairs) has p <= "
            f"{1 - tables.confidence:.2g}. From fewer than {fewest_pairs(tables.confidence)} pairs "
            "that cannot be. Where several arms are compared, Holm's correction for their number "
            "is given: without it, some comparisons of equal arms claim a difference by chance.",
        ),
    ]


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


# Writes a report: the page, its figures and its tables


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
