"""How far a sweep is as a whole: its arms, its trials by status, the time that is left."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rllib_weighted.cli.progress import TIME, TrialProgress
from rllib_weighted.report.arms import Arm, group_arms
from rllib_weighted.report.trials import Settings

# Tune's statuses, in the order in which trials are shown, and what they are called.
STATUSES = {
    "RUNNING": "running",
    "ERROR": "failed",
    "TERMINATED": "done",
    "PAUSED": "paused",
    "PENDING": "waiting",
}
ENDED = ("TERMINATED", "ERROR")


@dataclass(frozen=True)
class ArmProgress:
    """Trials that differ in nothing but their seed.

    Args:
        label: What the report calls them.
        trials: Those that Tune has made so far.
        num_trials: How many there will be.
    """

    label: str
    trials: Sequence[TrialProgress]
    num_trials: int

    @property
    def num_done(self) -> int:
        """How many trials have come to their end."""
        return sum(trial.status == "TERMINATED" for trial in self.trials)

    @property
    def mean_return(self) -> float | None:
        """The trials' last mean returns, on average: of those that are done, if any, else of all.

        One that has only begun would make its arm look worse than it is.
        """
        done = [trial for trial in self.trials if trial.status == "TERMINATED"]
        known = _known(trial.mean_return for trial in done) or _known(
            trial.mean_return for trial in self.trials
        )
        return sum(known) / len(known) if known else None

    @property
    def best_return(self) -> float | None:
        """The best mean return that any of the trials has had."""
        return max(_known(trial.best_return for trial in self.trials), default=None)


@dataclass
class Sweep:
    """What is planned of a sweep, and from that and its trials, how far it is.

    Args:
        num_trials: How many trials there will be; None for a search without an end.
        points: The settings of each point of a grid; empty where they are not known before.
        num_samples: How many trials each of those points gets.
        clock: Tells the time, in seconds.
    """

    num_trials: int | None = None
    points: Sequence[Settings] = ()
    num_samples: int = 1
    clock: Callable[[], float] = time.monotonic
    _grouped: tuple[list[Settings | None], list[Arm]] = field(default=([], []), repr=False)
    _most_running: int = 0
    # When the sweep was first looked at, the trials' worth of work that was done, and ended trials.
    _begun: tuple[float, float, int] | None = None

    def arms(self, trials: Sequence[TrialProgress]) -> list[ArmProgress]:
        """Returns the arms, the one with the best mean return first.

        Args:
            trials: The trials that Tune has made so far; it makes them one by one.
        """
        settings = [trial.settings for trial in trials]
        if not self._grouped[1] or settings != self._grouped[0]:
            self._grouped = settings, self._group([item or Settings() for item in settings])
        found = []
        first = len(self.points)
        for arm in self._grouped[1]:
            own = [trials[index - first] for index in arm.runs if index >= first]
            planned = (len(arm.runs) - len(own)) * self.num_samples
            found.append(ArmProgress(arm.label, own, max(planned, len(own))))
        return sorted(found, key=_rank)

    def _group(self, settings: Sequence[Settings]) -> list[Arm]:
        """Returns the arms of the points, followed by the trials.

        A trial that is at none of the points (a search has drawn others, or a scheduler has changed
        its settings) shows that they are not those of the sweep: they are forgotten.
        """
        arms = group_arms([*self.points, *settings])
        if self.points and any(arm.runs[0] >= len(self.points) for arm in arms):
            self.points = ()
            arms = group_arms(settings)
        several = len({arm.settings.env for arm in arms}) > 1
        return [_with_env(arm) for arm in arms] if several else arms

    def labels(self, trials: Sequence[TrialProgress]) -> dict[int, str]:
        """Returns the label of each trial's arm, by the trial's `id`."""
        return {id(trial): arm.label for arm in self.arms(trials) for trial in arm.trials}

    def num_waiting(self, trials: Sequence[TrialProgress]) -> int | None:
        """Returns how many trials have not started; None if nobody knows."""
        if self.num_trials is None:
            return None
        started = sum(trial.status != "PENDING" for trial in trials)
        return max(self.num_trials, len(trials)) - started

    def fraction_done(self, trials: Sequence[TrialProgress]) -> float | None:
        """Returns which part of all the work is done; None if nobody knows how much it is."""
        if self.num_trials is None:
            return None
        return _work(trials) / max(self.num_trials, len(trials), 1)

    def seconds_left(self, trials: Sequence[TrialProgress]) -> float | None:
        """Returns the estimated seconds until the last trial has ended; None if unknown.

        Trials that wait are taken to last as long as those that are done did on average or, before
        the first is, as those that run will; as many as have run at once do so to the end. It is
        no less than at the sweep's pace so far: where trials are short, their start takes longer.
        """
        pace = self._seconds_left_by_pace(trials)
        waiting = self.num_waiting(trials)
        running = [trial for trial in trials if trial.status in ("RUNNING", "PAUSED")]
        self._most_running = max(
            self._most_running, sum(trial.status == "RUNNING" for trial in trials)
        )
        if waiting is None or not self._most_running:
            return None
        done = _known(trial.value(TIME) for trial in trials if trial.status == "TERMINATED")
        lasting = done or _known(map(_whole_time, running))
        mean = sum(lasting) / len(lasting) if lasting else None
        left = [_left(trial, mean) for trial in running]
        if mean is None and (waiting or None in left):
            return None
        known = _known(left)
        return max([sum(known, (mean or 0.0) * waiting) / self._most_running, pace, *known])

    def _seconds_left_by_pace(self, trials: Sequence[TrialProgress]) -> float:
        """Returns how long the rest takes at the pace so far; 0 before a trial has ended."""
        now, work = self.clock(), _work(trials)
        num_ended = sum(trial.status in ENDED for trial in trials)
        if self._begun is None:  # A sweep that is resumed has done some before.
            self._begun = now, work, num_ended
        start, before, ended_before = self._begun
        if self.num_trials is None or num_ended == ended_before or work <= before:
            return 0.0
        return (now - start) / (work - before) * (max(self.num_trials, len(trials)) - work)


def count_statuses(trials: Iterable[TrialProgress]) -> str:
    """Returns how many trials are in which state: `2 running, 5 done, 29 waiting`."""
    counts = collections.Counter(trial.status for trial in trials)
    words = STATUSES.items()
    return ", ".join(f"{counts[status]} {word}" for status, word in words if counts[status])


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _rank(arm: ArmProgress) -> tuple[bool, float]:
    value = arm.mean_return
    return value is None, -(value or 0.0)


def _with_env(arm: Arm) -> Arm:
    return Arm(f"{arm.settings.env}, {arm.label}", arm.line, arm.settings, arm.runs, arm.varied)


def _whole_time(trial: TrialProgress) -> float | None:
    """Returns how many seconds a trial that runs will have lasted in all."""
    spent, left = trial.value(TIME), trial.seconds_left()
    return None if spent is None or left is None else spent + left


def _left(trial: TrialProgress, mean: float | None) -> float | None:
    """Returns the seconds that a trial still takes; of an unknown number, the rest of the mean."""
    if (left := trial.seconds_left()) is not None or mean is None:
        return left
    return max(0.0, mean - (trial.value(TIME) or 0.0))


def _work(trials: Iterable[TrialProgress]) -> float:
    """Returns how many trials' worth of work is done."""
    return sum(1.0 if trial.status in ENDED else _fraction(trial) for trial in trials)


def _fraction(trial: TrialProgress) -> float:
    """Returns which part of a trial is done, by its time; 0 if unknown."""
    whole = _whole_time(trial)
    return (trial.value(TIME) or 0.0) / whole if whole and math.isfinite(whole) else 0.0
