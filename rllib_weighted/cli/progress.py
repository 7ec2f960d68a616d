"""How far trials are: what is known of each, how it is written, and how a terminal shows it.

`TrialProgress` is fed with a trial's results; `Display` shows one or many of them, live on a
terminal and as a plain line now and then elsewhere.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rllib_weighted.records import metrics
from rllib_weighted.text import printable

ROUND = "training_iteration"
STEPS = "num_env_steps_sampled_lifetime"
TIME = "time_total_s"
RETURN = "env_runners/episode_return_mean"
SMOOTHED_RETURN = f"{metrics.MERGE}/{metrics.EPISODE_RETURN_MEAN}"
MERGE_SETTINGS = ("merge_strategy", "min_weight")

NOTHING = "-"  # Shown for an unknown value.
SPEED_WINDOW = 10  # Rounds over which speed is measured.
PLAIN_INTERVAL = 10.0  # Seconds between plain lines of one trial.

# Tune's statuses, in the order of the table, and what they are called.
_STATUSES = {
    "RUNNING": "running",
    "ERROR": "failed",
    "TERMINATED": "done",
    "PAUSED": "paused",
    "PENDING": "waiting",
}
_HEADERS = {
    "merge_strategy": "strategy",
    "min_weight": "min\nweight",
    "best": "best\nso far",
    "time left": "time\nleft",
}
_LEAST_NEEDED = ("trial", "best", "steps", "round")
_GAP = 2  # Blanks between columns.
_MARGIN = 2  # Columns that keep what the terminal echoes (^C) from wrapping into the next line.
_OTHER_LINES = 7  # Lines of the display that hold no trial: title, header, caption, margin.


@dataclass
class TrialProgress:
    """Progress of one trial, fed with its results.

    Args:
        name: A short name; it is part of the name of the trial's folder.
        stop: Flat stop criteria.
        settings: The settings that distinguish this trial, as text.
        status: Tune's status of the trial.
        last: The last result.
        best_return: The best mean return so far.
        num_dropping: Rounds so far in which workers were dropped from the merge.
        num_idle: Rounds in a row, up to the last one, in which all of them were.
        first_drop: The round and the cause of the first drop; empty without one.
    """

    name: str
    stop: Mapping[str, float]
    settings: Mapping[str, str] = field(default_factory=dict)
    status: str = "PENDING"
    last: Mapping[str, Any] = field(default_factory=dict)  # RLlib's metrics are of any type.
    best_return: float | None = None
    num_dropping: int = 0
    num_idle: int = 0
    first_drop: str = ""
    _window: collections.deque[dict[str, float]] = field(
        default_factory=lambda: collections.deque(maxlen=SPEED_WINDOW + 1)
    )

    def update(self, result: Mapping[str, Any]) -> None:
        """Updates the progress with the result of a round."""
        self.last = result
        known = [value for value in (self.mean_return, self.best_return) if value is not None]
        self.best_return = max(known, default=None)
        self._count_drops()
        counters = {ROUND, STEPS, TIME, *filter(is_counter, self.stop)}
        sample = {key: v for key in counters if (v := self.value(key)) is not None}
        before = self._window[-1] if self._window else {}
        same_round = ROUND in before and sample.get(ROUND) == before[ROUND]
        if same_round or any(sample[key] < before[key] for key in sample.keys() & before.keys()):
            self._window.clear()  # Resumed from an earlier round, or with a clock that starts over.
        self._window.append(sample)

    def _count_drops(self) -> None:
        dropped = self.num_dropped
        is_idle = bool(dropped) and dropped == self.value(f"{metrics.MERGE}/{metrics.NUM_WORKERS}")
        self.num_idle = self.num_idle + 1 if is_idle else 0
        if dropped:
            self.num_dropping += 1
            cause = lookup(self.last, f"{metrics.MERGE}/{metrics.DROP_CAUSE}", "unknown cause")
            self.first_drop = (
                self.first_drop or f"round {format_number(self.value(ROUND))}, {cause}"
            )

    @property
    def num_dropped(self) -> int:
        """How many workers were dropped from the last round's merge."""
        return int(self.value(f"{metrics.MERGE}/{metrics.NUM_DROPPED}") or 0)

    @property
    def return_key(self) -> str:
        """The mean return to show: the one that `stop` names, else the smoothed one if reported."""
        named = [key for key in (SMOOTHED_RETURN, RETURN) if key in self.stop]
        if named:
            return named[0]
        return RETURN if self.value(SMOOTHED_RETURN) is None else SMOOTHED_RETURN

    @property
    def mean_return(self) -> float | None:
        """The last mean return; None while there is none."""
        return self.value(self.return_key)

    def value(self, key: str) -> float | None:
        """Returns the last finite value of a metric, or None."""
        value = lookup(self.last, key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    def speed(self, key: str) -> float | None:
        """Returns a counter's growth per second over the last rounds; None if unknown."""
        if not self._window:
            return None
        old, new = self._window[0], self._window[-1]
        if len(self._window) == 1:
            # RLlib counts time from the trial's start, which may lie in an earlier process.
            old = {key: 0.0, TIME: 0.0} if new.get(ROUND) == 1 else {}
        if not old.keys() & new.keys() >= {key, TIME}:
            return None
        seconds = new[TIME] - old[TIME]
        return (new[key] - old[key]) / seconds if seconds else None

    def seconds_left(self) -> float | None:
        """Returns the estimated seconds until the first counted criterion is reached.

        None if no criterion is a counter, or no speed is known yet.
        """
        estimates = []
        for key, target in self.stop.items():
            value = self.value(key)
            if value is None or not is_counter(key):
                continue
            speed = 1.0 if key == TIME else self.speed(key)
            if value >= target:
                estimates.append(0.0)
            elif speed and speed > 0:
                estimates.append((target - value) / speed)
        return min(estimates, default=None)

    def may_end_sooner(self) -> bool:
        """Whether a criterion that is not counted can end the trial before `seconds_left`."""
        return bool(self.seconds_left()) and not all(map(is_counter, self.stop))

    def reached(self) -> list[str]:
        """Returns the criteria that are reached, as text."""
        return [
            f"{key} {format_number(value)} >= {format_number(target)}"
            for key, target in self.stop.items()
            if (value := self.value(key)) is not None and value >= target
        ]

    def unreported(self) -> list[str]:
        """Returns the criteria that the last result does not contain."""
        return [key for key in self.stop if self.last and lookup(self.last, key) is None]


def is_counter(key: str) -> bool:
    """Whether a metric grows steadily, so that the time until a target can be estimated."""
    return key in (ROUND, TIME) or key.endswith("_lifetime")


def lookup(nested: Mapping[str, Any], key: str, default: Any = None) -> Any:  # Of any type.
    """Returns a value of a nested dict by its flat name, e.g. `env_runners/num_episodes`."""
    if key in nested:
        return nested[key]
    head, slash, rest = key.partition("/")
    inner = nested.get(head)
    return lookup(inner, rest, default) if slash and isinstance(inner, Mapping) else default


def format_number(value: float | None) -> str:
    """Formats a number: `48 000`, `142.3`, `0.0123`; `-` for None."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def format_duration(seconds: float | None) -> str:
    """Formats a duration: `42 s`, `3 min 05 s`, `2 h 07 min`; `-` for None."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_brief_duration(seconds: float | None) -> str:
    """Formats a duration in at most seven characters: `42 s`, `3 min`, `2.1 h`; `-` for None."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 59.5:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def format_return(trial: TrialProgress) -> str:
    """Returns the mean return, with its target where `stop` names one: `142.3 of 475`."""
    text = format_number(trial.mean_return)
    target = trial.stop.get(trial.return_key)
    return text if target is None else f"{text} of {format_number(target)}"


def format_weights(trial: TrialProgress) -> str:
    """Returns the spread of the merge weights: `0.08 … 0.19, 7.4 of 8 effective`.

    Empty for algorithms that do not merge.
    """
    names = metrics.SHARE_MIN, metrics.SHARE_MAX, metrics.EFFECTIVE_WORKERS, metrics.NUM_WORKERS
    low, high, effective, workers = (trial.value(f"{metrics.MERGE}/{name}") for name in names)
    if low is None or high is None or effective is None or workers is None:
        return ""
    return f"{low:.3f} … {high:.3f}, {effective:.1f} of {workers:.0f} effective"


def format_drops(trial: TrialProgress) -> str:
    """Returns how many workers are dropped, and why it began: `2 of 8 workers, in 5 rounds; …`.

    Empty as long as none was.
    """
    if not trial.num_dropping:
        return ""
    workers = format_number(trial.value(f"{metrics.MERGE}/{metrics.NUM_WORKERS}"))
    rounds = f"{trial.num_dropping} round{'s' * (trial.num_dropping > 1)}"
    first = printable(trial.first_drop)
    return f"{trial.num_dropped} of {workers} workers, some in {rounds}; first: {first}"


def format_time_left(trial: TrialProgress) -> str:
    """Returns the time until a counted criterion ends the trial at the latest, or `-`."""
    return ("at most " if trial.may_end_sooner() else "") + format_duration(trial.seconds_left())


def plain_line(trial: TrialProgress) -> str:
    """Returns a trial's progress as one line for logs."""
    weights = format_weights(trial)
    parts = [
        f"round {format_number(trial.value(ROUND))}",
        f"{format_number(trial.value(STEPS))} steps",
        f"{format_number(trial.speed(STEPS))} steps/s",
        f"return {format_return(trial)}",
        f"weights {weights}" if weights else "",
        f"dropped {format_drops(trial)}" if trial.num_dropping else "",
        f"time left {format_time_left(trial)}",
    ]
    return " | ".join(filter(None, parts))


def trials_table(trials: Sequence[TrialProgress], *, width: int, max_rows: int) -> Table:
    """Returns a compact table of a sweep: running trials first, then finished ones, best first.

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
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    columns = _fitting(rows, width)
    for name in columns:
        # Rich wants a literal type.
        justify: Any = "left" if name in ("trial", *settings) else "right"
        table.add_column(Text(_header(name)), justify=justify, vertical="bottom")
    for row in rows:
        table.add_row(*(Text(row[name], no_wrap=True) for name in columns))
    rest = ordered[num_shown:]
    if rest:
        table.caption = f"… and {len(rest)} more: {count_statuses(rest)}"
        table.caption_justify = "left"
    return table


def count_statuses(trials: Iterable[TrialProgress]) -> str:
    """Returns how many trials are in which state: `2 running, 5 done, 29 waiting`."""
    counts = collections.Counter(trial.status for trial in trials)
    words = _STATUSES.items()
    return ", ".join(f"{counts[status]} {word}" for status, word in words if counts[status])


def telling_settings(trials: Sequence[TrialProgress]) -> list[str]:
    """Returns the settings worth showing: those of the merge, and others that differ."""
    names = dict.fromkeys(name for trial in trials for name in trial.settings)
    values = {name: {trial.settings.get(name) for trial in trials} for name in names}
    return [name for name in names if name in MERGE_SETTINGS or len(values[name]) > 1]


def _rank(trial: TrialProgress) -> tuple[int, float]:
    best = -math.inf if trial.best_return is None else trial.best_return
    return list(_STATUSES).index(trial.status), -best if trial.status == "TERMINATED" else 0.0


def _row(trial: TrialProgress, settings: Sequence[str]) -> dict[str, str]:
    return {
        "trial": trial.name,
        **{name: printable(trial.settings.get(name, NOTHING)) for name in settings},
        "round": format_number(trial.value(ROUND)),
        "steps": format_number(trial.value(STEPS)),
        "return": format_number(trial.mean_return),
        "best": format_number(trial.best_return),
        "time left": _brief_time_left(trial),
    }


def _header(name: str) -> str:
    return _HEADERS.get(name) or printable(name)


def _brief_time_left(trial: TrialProgress) -> str:
    if trial.status != "RUNNING":
        return _STATUSES[trial.status]
    if not trial.last:
        return "starts"
    return ("≤ " if trial.may_end_sooner() else "") + format_brief_duration(trial.seconds_left())


def _fitting(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """Returns the columns that fit into the width without cutting off a cell."""
    widths = {}
    for name in rows[0]:
        texts = [*_header(name).splitlines(), *(row[name] for row in rows)]
        widths[name] = max(map(len, texts)) + _GAP
    for name in _LEAST_NEEDED:
        if sum(widths.values()) - _GAP > width:
            widths.pop(name)
    return list(widths)


def show(console: Console, message: str) -> None:
    """Writes a message; what others have named in it does not control the terminal."""
    console.print(Text(printable(message)), soft_wrap=True)


class Display:
    """Shows the progress of trials and messages.

    Args:
        console: Where to write.
        title: What is trained.
        live: Whether to redraw in place; None does so on a terminal.
    """

    def __init__(self, console: Console, *, title: str, live: bool | None = None) -> None:
        self.console = console
        self.title = printable(title)
        self._trials: list[TrialProgress] = []
        self._last_line: dict[int, float] = {}
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

    def refresh(self, trials: Sequence[TrialProgress]) -> None:
        """Sets the trials to show."""
        self._trials = list(trials)

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
        title = f"{self.title}  {format_duration(time.monotonic() - self._started)}"
        trials = self._trials
        if len(trials) <= 1:
            return Group(Text(title, style="bold"), _single(trials[0] if trials else None))
        title = f"{title}  ({len(trials)} trials: {count_statuses(trials)})"
        dropping = [trial for trial in trials if trial.num_dropping]
        max_rows = max(3, self.console.height - _OTHER_LINES - bool(dropping))
        table = trials_table(trials, width=self.console.width - _MARGIN, max_rows=max_rows)
        lines: list[RenderableType] = [
            Text(title, style="bold", no_wrap=True, overflow="ellipsis"),
            table,
        ]
        if dropping:
            one = dropping[0]
            note = f"{len(dropping)} of them dropped workers, as {one.name}: {format_drops(one)}"
            lines.append(Text(note, no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


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
    weights = format_weights(trial)
    if weights:
        table.add_row("  weights", weights)
    if trial.num_dropping:
        table.add_row("  dropped", format_drops(trial))
    table.add_row("  time left", format_time_left(trial))
    return table
