"""Connects a running Tune experiment with the display and with Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from rllib_weighted.cli.display import Display
from rllib_weighted.cli.interrupt import Interrupt, handling_signals
from rllib_weighted.cli.progress import TrialProgress

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class TrainSession:
    """One call of `Tuner.fit` as the command sees it.

    Args:
        display: Where progress is shown.
        stop: Flat stop criteria that replace those of the trials; None keeps theirs (which a
            resumed experiment has saved).
    """

    def __init__(self, display: Display, stop: dict[str, float] | None) -> None:
        self.display = display
        self.interrupt = Interrupt(display.note)
        self.trials: dict[str, TrialProgress] = {}
        self.num_started = 0
        self._stop = stop
        self._adopted = False

    def adopt(self, trials: list[Trial]) -> None:
        """Puts this session's stop criteria on trials that a resumed experiment brought."""
        if not self._adopted and trials:
            self._adopted = True
            for trial in trials:
                if self._stop is not None:
                    trial.stopping_criterion = dict(self._stop)

    def progress(self, trial: Trial) -> TrialProgress:
        """Returns the progress of a trial."""
        if trial.trial_id not in self.trials:
            varied = varied_settings(trial)
            label = ", ".join(f"{key}={value}" for key, value in varied.items())
            self.trials[trial.trial_id] = TrialProgress(
                label=label or f"trial {len(self.trials) + 1}",
                stop=trial.stopping_criterion,
                varied=varied,
            )
        return self.trials[trial.trial_id]


_current: TrainSession | None = None


@contextlib.contextmanager
def session(active: TrainSession) -> Iterator[TrainSession]:
    """Makes `active` the session that `SessionCallback` reports to."""
    global _current
    previous, _current = _current, active
    try:
        with active.display, handling_signals(active.interrupt):
            yield active
    finally:
        _current = previous


class SessionCallback(Callback):
    """Reports what Tune does to the current session; does nothing where there is none.

    Tune pickles the callbacks of an experiment and brings them back when it is resumed, in
    another process. So this one holds nothing and finds its session when it is called.
    """

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Before a step of Tune's loop."""
        if _current is not None:
            _current.adopt(trials)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """After a step of Tune's loop, several times a second."""
        if _current is None:
            return
        for trial in trials:
            _current.progress(trial).status = trial.status
        _current.display.refresh(list(_current.trials.values()))
        _current.interrupt.after_step(trials)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """When a trial's process has started."""
        if _current is not None:
            _current.num_started += 1

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """After a round, before Tune decides whether to save the trial."""
        if _current is not None:
            _current.interrupt.before_result(trial.trial_id, result)
            _current.progress(trial).update(result)
            _current.display.round_ended(_current.progress(trial))

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """After a checkpoint of a trial was written."""
        if _current is not None:
            _current.interrupt.after_save(trial.trial_id)


def varied_settings(trial: Trial) -> dict[str, str]:
    """Returns the settings that a search has chosen for a trial, as short texts."""
    return {
        key.rsplit("/", 1)[-1]: f"{value:.4g}" if isinstance(value, float) else str(value)
        for key, value in (trial.evaluated_params or {}).items()
    }
