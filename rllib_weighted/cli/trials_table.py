"""The live table of a sweep: a row per trial, as many as the terminal has room for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from rllib_weighted.cli.progress import (
    NOTHING,
    ROUND,
    STEPS,
    TrialProgress,
    format_brief_duration,
    format_number,
    may_end_sooner,
)

MERGE_SETTINGS = ("merge_strategy", "min_weight")

_ORDER = ("RUNNING", "ERROR", "TERMINATED", "PAUSED", "PENDING")
_STATUS_NAMES = {"TERMINATED": "done", "ERROR": "failed", "PENDING": "waiting"}
_HEADERS = {
    "merge_strategy": "strategy",
    "min_weight": "min\nweight",
    "best": "best\nso far",
    "time left": "time\nleft",
}
_LEAST_NEEDED = ("trial", "best", "steps", "round")
_GAP = 2  # Blanks between columns.


def trials_table(trials: Sequence[TrialProgress], *, width: int, max_rows: int) -> Table:
    """Returns a compact table: running trials first, then finished ones, the best first.

    Trials that wait are only counted.

    Args:
        trials: All trials.
        width: Columns of the terminal; what does not fit is left out, the least needed first.
        max_rows: How many trials to show; the rest is counted in the caption.
    """
    ordered = sorted(trials, key=_rank)
    num_started = sum(trial.status != "PENDING" for trial in trials)
    num_shown = min(max_rows, max(1, num_started))
    settings = telling_settings(trials)
    rows = [_row(trial, settings) for trial in ordered[:num_shown]]
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        header_style="dim",
        caption_justify="left",
    )
    for name in _fitting(rows, width):
        left = name in ("trial", *settings)
        table.add_column(
            _HEADERS.get(name, name), justify="left" if left else "right", vertical="bottom"
        )
    for row in rows:
        table.add_row(*(Text(row[name], no_wrap=True) for name in _fitting(rows, width)))
    rest = ordered[num_shown:]
    if rest:
        table.caption = f"… and {len(rest)} more: {count_statuses(rest)}"
    return table


def count_statuses(trials: Iterable[TrialProgress]) -> str:
    """Returns how many trials are in which state: `2 running, 5 done, 29 waiting`."""
    counts = Counter(trial.status for trial in trials)
    known = [*_ORDER, *(status for status in counts if status not in _ORDER)]
    return ", ".join(f"{counts[status]} {_status(status)}" for status in known if counts[status])


def telling_settings(trials: Sequence[TrialProgress]) -> list[str]:
    """Returns the settings that tell: those of the merge, and others that differ among trials."""
    names = dict.fromkeys(name for trial in trials for name in trial.settings)
    values = {name: {trial.settings.get(name) for trial in trials} for name in names}
    return [name for name in names if name in MERGE_SETTINGS or len(values[name]) > 1]


def _rank(trial: TrialProgress) -> tuple[int, float]:
    place = _ORDER.index(trial.status) if trial.status in _ORDER else len(_ORDER)
    best = -math.inf if trial.best_return is None else trial.best_return
    return place, -best if trial.status == "TERMINATED" else 0.0


def _fitting(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """Returns the columns that fit, of which what is in them is shown whole."""
    widths = {}
    for name in rows[0]:
        texts = [*_HEADERS.get(name, name).splitlines(), *(row[name] for row in rows)]
        widths[name] = max(map(len, texts)) + _GAP
    for name in _LEAST_NEEDED:
        if sum(widths.values()) - _GAP > width:
            widths.pop(name)
    return list(widths)


def _row(trial: TrialProgress, settings: Sequence[str]) -> dict[str, str]:
    return {
        "trial": trial.name,
        **{name: trial.settings.get(name, NOTHING) for name in settings},
        "round": format_number(trial.value(ROUND)),
        "steps": format_number(trial.value(STEPS)),
        "return": format_number(trial.mean_return),
        "best": format_number(trial.best_return),
        "time left": _time_left(trial),
    }


def _time_left(trial: TrialProgress) -> str:
    if trial.status != "RUNNING":
        return _status(trial.status)
    if not trial.last:
        return "starts"
    seconds = trial.seconds_left()
    return ("≤ " if seconds and may_end_sooner(trial) else "") + format_brief_duration(seconds)


def _status(status: str) -> str:
    return _STATUS_NAMES.get(status, status.lower())
