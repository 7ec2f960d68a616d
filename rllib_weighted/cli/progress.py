"""How far a trial is, and how that is written: `TrialProgress` is fed with a trial's results."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rllib_weighted.records import metrics
from rllib_weighted.report.trials import Settings
from rllib_weighted.text import printable

ROUND = "training_iteration"
STEPS = "num_env_steps_sampled_lifetime"
TIME = "time_total_s"
RETURN = "env_runners/episode_return_mean"
SMOOTHED_RETURN = f"{metrics.MERGE}/{metrics.EPISODE_RETURN_MEAN}"

NOTHING = "-"  # Shown for an unknown value.
SPEED_WINDOW = 10  # Rounds over which speed is measured.


@dataclass
class TrialProgress:
    """Progress of one trial, fed with its results.

    Args:
        name: A short name; it is part of the name of the trial's folder.
        stop: Flat stop criteria.
        settings: Its settings, as the report reads them; None if they are not known.
        status: Tune's status of the trial.
        last: The last result.
        best_return: The best mean return so far.
        num_dropping: Rounds so far in which workers were dropped from the merge.
        num_idle: Rounds in a row, up to the last one, in which all of them were.
        first_drop: The round and the cause of the first drop; empty without one.
    """

    name: str
    stop: Mapping[str, float]
    settings: Settings | None = None
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
    """Returns the spread of the merge weights: `0.221 … 0.267, 7.4 of 8 effective`.

    Without the spread where there are too many workers to report each. Empty for algorithms that
    do not merge.
    """
    names = metrics.EFFECTIVE_WORKERS, metrics.NUM_WORKERS
    effective, workers = (trial.value(f"{metrics.MERGE}/{name}") for name in names)
    if effective is None or workers is None:
        return ""
    reports = lookup(trial.last, f"{metrics.MERGE}/{metrics.WORKERS}", {}).values()
    known = [report.get(metrics.WEIGHT, math.nan) for report in reports]
    weights = list(filter(math.isfinite, known))
    spread = [f"{min(weights):.3f} … {max(weights):.3f}"] if weights else []
    return ", ".join([*spread, f"{effective:.1f} of {workers:.0f} effective"])


def format_shares(trial: TrialProgress) -> str:
    """Returns the spread of the workers' shares of the signal: `0.096 … 0.155`; see above."""
    names = metrics.SHARE_MIN, metrics.SHARE_MAX
    low, high = (trial.value(f"{metrics.MERGE}/{name}") for name in names)
    return "" if low is None or high is None else f"{low:.3f} … {high:.3f}"


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
    weights, shares = format_weights(trial), format_shares(trial)
    parts = [
        f"round {format_number(trial.value(ROUND))}",
        f"{format_number(trial.value(STEPS))} steps",
        f"{format_number(trial.speed(STEPS))} steps/s",
        f"return {format_return(trial)}",
        f"weights w {weights}" if weights else "",
        f"shares p {shares}" if shares else "",
        f"dropped {format_drops(trial)}" if trial.num_dropping else "",
        f"time left {format_time_left(trial)}",
    ]
    return " | ".join(filter(None, parts))
