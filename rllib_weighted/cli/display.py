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
from rllib_weighted.cli.trials_table import count_statuses, telling_settings, trials_table

PLAIN_INTERVAL = 10.0  # Seconds between plain lines of one trial.
_MARGIN = 2  # Columns that keep what the terminal echoes (^C) from wrapping into the next line.
_OTHER_LINES = 7  # Those above, in and below the table that hold no trial.


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
            prefix = f"{self._label(trial)} | " if len(self._trials) > 1 else ""
            self.note(prefix + plain_line(trial))

    def _label(self, trial: TrialProgress) -> str:
        settings = [f"{key}={trial.settings.get(key)}" for key in telling_settings(self._trials)]
        return ", ".join([f"trial {trial.name}", *settings])

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
        title = f"{self.title}  {elapsed}  ({len(trials)} trials: {count_statuses(trials)})"
        table = trials_table(
            trials,
            width=self.console.width - _MARGIN,
            max_rows=max(3, self.console.height - _OTHER_LINES),
        )
        head = Text(title, style="bold", no_wrap=True, overflow="ellipsis")
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
