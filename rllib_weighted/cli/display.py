"""How a terminal, or a log, shows how far trials are: `Display`, and the tables of a sweep."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rllib_weighted.cli.progress import (
    NOTHING,
    ROUND,
    STEPS,
    TrialProgress,
    format_brief_duration,
    format_drops,
    format_duration,
    format_number,
    format_return,
    format_shares,
    format_time_left,
    format_weights,
    plain_line,
)
from rllib_weighted.cli.sweep import ENDED, STATUSES, ArmProgress, Sweep, count_statuses
from rllib_weighted.report.formats import shorten
from rllib_weighted.text import printable

PLAIN_INTERVAL = 10.0  # Seconds between plain lines of one trial.

_HEADERS = {"best": "best\nso far", "time left": "time\nleft"}
_LEAST_NEEDED = ("trial", "best", "steps", "round")
_GAP = 2  # Blanks between columns.
_MARGIN = 2  # Columns that keep what the terminal echoes (^C) from wrapping into the next line.
_OTHER_LINES = (
    6  # Lines of the display without arms and trials: title, bar, header, caption, margin.
)
_ARM_LINES = 3  # The arms' header, caption, and what is between them and the trials.
_LONGEST_LABEL = 48
_LONGEST_BAR = 30


def show(console: Console, message: str) -> None:
    """Writes a message; what others have named in it does not control the terminal."""
    console.print(Text(printable(message)), soft_wrap=True)


class Display:
    """Shows the progress of trials and messages.

    Args:
        console: Where to write.
        title: What is trained.
        live: Whether to redraw in place; None does so on a terminal.
        sweep: What is planned.
    """

    def __init__(
        self,
        console: Console,
        *,
        title: str,
        live: bool | None = None,
        sweep: Sweep | None = None,
    ) -> None:
        self.console = console
        self.title = printable(title)
        self.sweep = sweep or Sweep(num_trials=1)
        self._trials: list[TrialProgress] = []
        self._last_line: dict[int, float] = {}
        self._num_ended = 0
        self._warned = False
        self._started = time.monotonic()
        in_place = console.is_terminal if live is None else live
        self._live = Live(console=console, get_renderable=self.renderable) if in_place else None

    def running(self) -> AbstractContextManager[object]:
        """Shows the progress inside the block, and its time from the beginning of the block."""
        self._started = time.monotonic()
        return nullcontext() if self._live is None else self._live

    def note(self, message: str) -> None:
        """Shows a message above the progress."""
        show(self.console, message)

    @property
    def is_sweep(self) -> bool:
        """Whether there are, or will be, several trials."""
        return self.sweep.num_trials != 1 or len(self._trials) > 1

    def refresh(self, trials: Sequence[TrialProgress]) -> None:
        """Sets the trials to show; without a live view, writes how many of a sweep have ended."""
        self._trials = list(trials)
        ended = sum(trial.status in ENDED for trial in trials)
        if self._live is None and self.is_sweep and ended > self._num_ended:
            self.note(progress_line(self.sweep, trials))
        self._num_ended = ended

    def round_ended(self, trial: TrialProgress) -> None:
        """Writes a plain line for a trial, at most one per `PLAIN_INTERVAL`, if nothing is live."""
        self._warn_of_unreported(trial)
        if trial.num_idle == 1:
            self.note(
                f"Warning: {self._label(trial)}: in round {format_number(trial.value(ROUND))} all "
                f"workers were dropped. First drop: {trial.first_drop}"
            )
        now = time.monotonic()
        last = self._last_line.get(id(trial), -PLAIN_INTERVAL)
        if self._live is None and now - last >= PLAIN_INTERVAL:
            self._last_line[id(trial)] = now
            prefix = f"{self._label(trial)} | " if self.is_sweep else ""
            self.note(prefix + plain_line(trial))

    def _label(self, trial: TrialProgress) -> str:
        label = self.sweep.labels(self._trials).get(id(trial), "") if self.is_sweep else ""
        settings = trial.settings
        seed = f"seed={settings.seed}" if label and settings and settings.seed is not None else ""
        return ", ".join(filter(None, [f"trial {trial.name}", label, seed]))

    def _warn_of_unreported(self, trial: TrialProgress) -> None:
        missing = [] if self._warned else trial.unreported()
        if missing:
            self._warned = True
            names = ", ".join(repr(name) for name in missing)
            ends = "" if len(missing) < len(trial.stop) else " Training goes on until Ctrl-C."
            self.note(f"Warning: `stop` names {names}, which this algorithm does not report.{ends}")

    def arms(self) -> list[ArmProgress]:
        """Returns the arms of a sweep, the one with the best mean return first."""
        return self.sweep.arms(self._trials)

    def renderable(self) -> RenderableType:
        """Returns what the terminal shows now."""
        title = f"{self.title}  {format_duration(time.monotonic() - self._started)}"
        trials = self._trials
        if not self.is_sweep:
            return Group(Text(title, style="bold"), _single(trials[0] if trials else None))
        width = self.console.width - _MARGIN
        lines: list[RenderableType] = [
            Text(title, style="bold", no_wrap=True, overflow="ellipsis"),
            _bar(self.sweep, trials, width),
        ]
        dropping = [trial for trial in trials if trial.num_dropping]
        room = max(3, self.console.height - _OTHER_LINES - bool(dropping))
        arms = self.arms()
        if any(arm.num_trials > 1 for arm in arms):
            num_arms = _room_for_arms(len(arms), trials, room)
            lines += [arms_table(arms, width=width, max_rows=num_arms), Text("")]
            room -= min(num_arms, len(arms)) + _ARM_LINES
        if trials:
            labels = self.sweep.labels(trials)
            lines.append(trials_table(trials, labels, width=width, max_rows=max(1, room)))
        if dropping:
            one = dropping[0]
            note = f"{len(dropping)} of them dropped workers, as {one.name}: {format_drops(one)}"
            lines.append(Text(note, no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def _room_for_arms(num_arms: int, trials: Sequence[TrialProgress], room: int) -> int:
    """Returns how many arms to show: all, if the running trials have room besides; else half."""
    running = sum(trial.status == "RUNNING" for trial in trials)
    return min(num_arms, max(room // 2 - _ARM_LINES, room - _ARM_LINES - max(running, 1), 1))


def progress_line(sweep: Sweep, trials: Sequence[TrialProgress]) -> str:
    """Returns how far a sweep is, in a line: `5 of 36 done, 2 running · time left about 14 min`."""
    waiting = sweep.num_waiting(trials)
    counts = count_statuses(
        trial for trial in trials if trial.status not in ("PENDING", "TERMINATED")
    )
    done = sum(trial.status == "TERMINATED" for trial in trials)
    total = "" if sweep.num_trials is None else f" of {max(sweep.num_trials, len(trials))}"
    parts = [f"{done}{total} trials done", counts, f"{waiting} waiting" if waiting else ""]
    left = sweep.seconds_left(trials)
    bound = "at most" if any(trial.may_end_sooner() for trial in trials) else "about"
    text = f" · time left {bound} {format_brief_duration(left)}" if left else ""
    return ", ".join(filter(None, parts)) + text


def _bar(sweep: Sweep, trials: Sequence[TrialProgress], width: int) -> RenderableType:
    line = Text(progress_line(sweep, trials), no_wrap=True, overflow="ellipsis")
    fraction = sweep.fraction_done(trials)
    room = min(_LONGEST_BAR, width - line.cell_len - _GAP)
    if fraction is None or room < 10:
        return line
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_row(ProgressBar(total=1.0, completed=fraction, width=room), line)
    return table


def arms_table(arms: Sequence[ArmProgress], *, width: int, max_rows: int) -> Table:
    """Returns a table with a row per arm.

    Args:
        arms: The arms, in their order.
        width: Columns of the terminal; labels are cut to it.
        max_rows: How many arms to show; the rest is counted in the caption.
    """
    rows = [arm_row(arm) for arm in arms[:max_rows]]
    names = ("arm", "done", "mean return", "best so far")
    others = sum(
        max(len(name), *(len(row[index]) for row in rows)) + _GAP
        for index, name in enumerate(names[1:], start=1)
    )
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="left" if name == "arm" else "right")
    for label, *cells in rows:
        table.add_row(Text(shorten(label, max(8, width - others)), no_wrap=True), *cells)
    if rest := len(arms) - len(rows):
        table.caption = f"… and {rest} more arms"
        table.caption_justify = "left"
    return table


def arm_row(arm: ArmProgress) -> tuple[str, str, str, str]:
    """Returns an arm's label, how many of its trials are done, its mean return and its best."""
    return (
        printable(arm.label),
        f"{arm.num_done}/{arm.num_trials}",
        format_number(arm.mean_return),
        format_number(arm.best_return),
    )


def ranking(arms: Sequence[ArmProgress], width: int | None = None) -> list[str]:
    """Returns the arms as lines of equal columns.

    Args:
        arms: The arms, in their order.
        width: Columns of the terminal; labels are cut to it. None cuts nothing.
    """
    rows = [("arm", "done", "mean return", "best return"), *map(arm_row, arms)]
    if width is not None:
        others = sum(max(map(len, column)) + _GAP for column in list(zip(*rows, strict=True))[1:])
        rows = [(shorten(row[0], max(8, width - others)), *row[1:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def trials_table(
    trials: Sequence[TrialProgress], labels: Mapping[int, str], *, width: int, max_rows: int
) -> Table:
    """Returns a compact table of a sweep: running trials first, then finished ones, best first.

    Trials that wait are only counted.

    Args:
        trials: All trials.
        labels: What the arm of each is called, by the trial's `id`.
        width: Columns of the terminal; what does not fit is left out, the least needed first.
        max_rows: How many trials to show; the rest is counted in the caption.
    """
    ordered = sorted(trials, key=_rank)
    num_started = sum(trial.status != "PENDING" for trial in trials)
    num_shown = min(max_rows, max(1, num_started))
    rows = [_row(trial, labels.get(id(trial), NOTHING)) for trial in ordered[:num_shown]]
    if len({trial.settings.seed for trial in trials if trial.settings}) <= 1:
        for row in rows:
            del row["seed"]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    columns = _fitting(rows, width)
    for name in columns:
        # Rich wants a literal type.
        justify: Any = "left" if name in ("trial", "arm") else "right"
        table.add_column(Text(_HEADERS.get(name, name)), justify=justify, vertical="bottom")
    for row in rows:
        table.add_row(*(Text(row[name], no_wrap=True) for name in columns))
    rest = ordered[num_shown:]
    if rest:
        table.caption = f"… and {len(rest)} more: {count_statuses(rest)}"
        table.caption_justify = "left"
    return table


def _rank(trial: TrialProgress) -> tuple[int, float]:
    best = -math.inf if trial.best_return is None else trial.best_return
    return list(STATUSES).index(trial.status), -best if trial.status == "TERMINATED" else 0.0


def _row(trial: TrialProgress, label: str) -> dict[str, str]:
    seed = trial.settings.seed if trial.settings else None
    return {
        "trial": trial.name,
        "arm": shorten(printable(label), _LONGEST_LABEL),
        "seed": NOTHING if seed is None else str(seed),
        "round": format_number(trial.value(ROUND)),
        "steps": format_number(trial.value(STEPS)),
        "return": format_number(trial.mean_return),
        "best": format_number(trial.best_return),
        "time left": _brief_time_left(trial),
    }


def _brief_time_left(trial: TrialProgress) -> str:
    if trial.status != "RUNNING":
        return STATUSES[trial.status]
    if not trial.last:
        return "starts"
    return ("≤ " if trial.may_end_sooner() else "") + format_brief_duration(trial.seconds_left())


def _fitting(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """Returns the columns that fit into the width without cutting off a cell.

    Labels are cut where the others alone leave no room for them.
    """

    def needed(name: str) -> int:
        texts = [*_HEADERS.get(name, name).splitlines(), *(row[name] for row in rows)]
        return max(map(len, texts)) + _GAP

    widths = {name: needed(name) for name in rows[0]}
    for name in _LEAST_NEEDED:
        if sum(widths.values()) - _GAP > width:
            widths.pop(name)
    if (excess := sum(widths.values()) - _GAP - width) > 0:
        longest = max(8, widths["arm"] - _GAP - excess)
        for row in rows:
            row["arm"] = shorten(row["arm"], longest)
    return list(widths)


def _single(trial: TrialProgress | None) -> RenderableType:
    if trial is None or not trial.last:
        return Text("  starting: building environments and workers …", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    steps, speed = format_number(trial.value(STEPS)), format_number(trial.speed(STEPS))
    best = f"  (best {format_number(trial.best_return)})" if trial.best_return is not None else ""
    table.add_row("  round", format_number(trial.value(ROUND)))
    table.add_row("  steps", f"{steps}  ({speed} per second)")
    table.add_row("  return", format_return(trial) + best)
    if weights := format_weights(trial):
        table.add_row("  weights w", weights)
    if shares := format_shares(trial):
        table.add_row("  shares p", shares)
    if trial.num_dropping:
        table.add_row("  dropped", format_drops(trial))
    table.add_row("  time left", format_time_left(trial))
    return table
