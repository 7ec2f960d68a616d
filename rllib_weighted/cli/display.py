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
        return Group(head, trials_table(trials, max_rows=max(3, self.console.height - 8)))


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


def trials_table(trials: Sequence[TrialProgress], *, max_rows: int) -> Table:
    """Returns a compact table with a row per trial, running ones first.

    Args:
        trials: All trials.
        max_rows: How many to show; the rest is counted in a last row.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("trial", overflow="ellipsis", no_wrap=True, ratio=1)
    for name in ("status", "round", "steps", "steps/s", "return", "best", "weights", "time left"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(trials, key=lambda trial: _STATUS_ORDER.index(trial.status))
    for trial in ordered[:max_rows]:
        table.add_row(
            trial.label,
            _status_name(trial.status),
            format_number(trial.value(ROUND)),
            format_number(trial.value(STEPS)),
            format_number(trial.speed(STEPS)),
            format_number(trial.value(RETURN)),
            format_number(trial.best_return),
            format_weights(trial).split(",")[0],
            format_time_left(trial) if trial.status == "RUNNING" else "",
        )
    if len(ordered) > max_rows:
        table.add_row(f"… and {len(ordered) - max_rows} more")
    return table


def _status_name(status: str) -> str:
    return _STATUS_NAMES.get(status, status.lower())
