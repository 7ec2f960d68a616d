"""Shows training progress: live on a terminal, one plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rllib_weighted.cli.progress import (
    NOTHING,
    RETURN,
    ROUND,
    STEPS,
    TrialProgress,
    format_duration,
    format_number,
    format_return,
    format_time_left,
    format_weights,
    plain_line,
)

PLAIN_INTERVAL = 10.0  # Seconds between plain lines of one trial.
_STATUS_ORDER = ("RUNNING", "PAUSED", "ERROR", "PENDING", "TERMINATED")
_LEAST_NEEDED = ("steps/s", "weights", "best", "steps", "status")
_GAP = 2  # Blanks between columns.
_STATUS_NAMES = {"TERMINATED": "done", "ERROR": "failed"}


class Display:
    """Shows the progress of trials and messages.

    Args:
        console: Where to write.
        live: Whether to redraw in place; None does so on a terminal.
        title: What is trained.
    """

    def __init__(self, console: Console, *, title: str, live: bool | None = None) -> None:
        self.console = console
        self.title = title
        self._live: Live | None = None
        self._use_live = console.is_terminal if live is None else live
        self._trials: list[TrialProgress] = []
        self._last_line: dict[int, float] = {}
        self._warned = False
        self._started = time.monotonic()

    def __enter__(self) -> Display:
        self._started = time.monotonic()
        if self._use_live:
            self._live = Live(
                console=self.console, get_renderable=self.renderable, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, message: str) -> None:
        """Shows a message above the progress."""
        self.console.print(Text(message), soft_wrap=True)

    def refresh(self, trials: Sequence[TrialProgress]) -> None:
        """Takes the trials to show."""
        self._trials = list(trials)

    def round_ended(self, trial: TrialProgress) -> None:
        """Writes a plain line for a trial if its last one is long enough ago."""
        self._warn_of_unreported(trial)
        now = time.monotonic()
        last = self._last_line.get(id(trial), -PLAIN_INTERVAL)
        if not self._use_live and now - last >= PLAIN_INTERVAL:
            self._last_line[id(trial)] = now
            prefix = f"{trial.label} | " if len(self._trials) > 1 else ""
            self.note(prefix + plain_line(trial))

    def _warn_of_unreported(self, trial: TrialProgress) -> None:
        missing = [] if self._warned else trial.unreported()
        if missing:
            self._warned = True
            names = ", ".join(repr(name) for name in missing)
            ends = "" if len(missing) < len(trial.stop) else " Training goes on until Ctrl-C."
            self.note(f"Warning: `stop` names {names}, which this algorithm does not report.{ends}")

    def renderable(self) -> RenderableType:
        """Returns what the terminal shows now."""
        elapsed = format_duration(time.monotonic() - self._started)
        trials = self._trials
        if len(trials) <= 1:
            head = Text(f"{self.title}  {elapsed}", style="bold")
            return Group(head, _single(trials[0] if trials else None))
        counts = " ".join(
            f"{count} {_status_name(status)}"
            for status in _STATUS_ORDER
            if (count := sum(trial.status == status for trial in trials))
        )
        head = Text(f"{self.title}  {elapsed}  ({len(trials)} trials: {counts})", style="bold")
        # The margin keeps what the terminal echoes (^C) from wrapping into the next line.
        table = trials_table(
            trials, width=self.console.width - 4, max_rows=max(3, self.console.height - 8)
        )
        return Group(head, table)


def _single(trial: TrialProgress | None) -> RenderableType:
    if trial is None or not trial.last:
        return Text("  starting: building environments and workers …", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    steps, speed = format_number(trial.value(STEPS)), format_number(trial.speed(STEPS))
    best = f"  (best {format_number(trial.best_return)})" if trial.best_return is not None else ""
    table.add_row("  round", format_number(trial.value(ROUND)))
    table.add_row("  steps", f"{steps}  ({speed} per second)")
    table.add_row("  return", format_return(trial) + best)
    weights = format_weights(trial)
    if weights:
        table.add_row("  weights", weights)
    table.add_row("  time left", format_time_left(trial))
    return table


def trials_table(trials: Sequence[TrialProgress], *, width: int, max_rows: int) -> Table:
    """Returns a compact table with a row per trial, running ones first.

    Args:
        trials: All trials.
        width: Columns of the terminal; what does not fit is left out, the least needed first.
        max_rows: How many trials to show; the rest is counted in the caption.
    """
    ordered = sorted(trials, key=lambda trial: _STATUS_ORDER.index(trial.status))
    varied = list(dict.fromkeys(key for trial in trials for key in trial.varied))
    rows = [_row(trial, varied) for trial in ordered[:max_rows]]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) + _GAP for name in rows[0]}
    for name in _LEAST_NEEDED:
        if sum(widths.values()) > width:
            widths.pop(name)
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        header_style="dim",
        caption_justify="left",
    )
    for name in widths:
        left = name in ("trial", *varied)
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name]) for name in widths))
    if len(ordered) > max_rows:
        table.caption = f"… and {len(ordered) - max_rows} more"
    return table


def _row(trial: TrialProgress, varied: Sequence[str]) -> dict[str, str]:
    return {
        **({key: trial.varied.get(key, "") for key in varied} or {"trial": trial.label}),
        "status": _status_name(trial.status),
        "round": format_number(trial.value(ROUND)),
        "steps": format_number(trial.value(STEPS)),
        "steps/s": format_number(trial.speed(STEPS)),
        "return": format_number(trial.value(RETURN)),
        "best": format_number(trial.best_return),
        "weights": format_weights(trial).split(",")[0] or NOTHING,
        "time left": format_time_left(trial) if trial.status == "RUNNING" else "",
    }


def _status_name(status: str) -> str:
    return _STATUS_NAMES.get(status, status.lower())
