"""Connects a running Tune experiment with the display and with Ctrl-C."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.result import SHOULD_CHECKPOINT

from rllib_weighted.cli.display import Display
from rllib_weighted.cli.interrupt import Interrupt, handling_signals
from rllib_weighted.cli.logs import forget_rounds_behind_checkpoint
from rllib_weighted.cli.progress import TrialProgress
from rllib_weighted.cli.trials_table import MERGE_SETTINGS, count_statuses
from rllib_weighted.grids import uses_min_weight

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class TrainSession:
    """One call of `Tuner.fit` as the command sees it.

    Args:
        display: Where progress is shown.
        stop: Flat stop criteria that replace those of the trials; None keeps theirs (which a
            resumed experiment has saved).
        checkpoint_seconds: Seconds between two checkpoints of a trial; None leaves them to Tune.
        resumed: Whether the experiment was started in another process.
    """

    def __init__(
        self,
        display: Display,
        stop: dict[str, float] | None,
        *,
        checkpoint_seconds: float | None = None,
        resumed: bool = False,
    ) -> None:
        self.display = display
        self.interrupt = Interrupt(display.note)
        self.trials: dict[str, TrialProgress] = {}
        self.num_started = 0
        self._stop = stop
        self._checkpoint_seconds = checkpoint_seconds
        self._saved_at: dict[str, float] = {}
        self._adopted = not resumed

    def adopt(self, trials: list[Trial]) -> None:
        """Takes over the trials that a resumed experiment brought, before they go on."""
        if self._adopted or not trials:
            return
        self._adopted = True
        for trial in trials:
            if self._stop is not None:
                trial.stopping_criterion = dict(self._stop)
            progress = self.progress(trial)
            progress.status = trial.status
            if trial.last_result:
                progress.update(trial.last_result)
                known = trial.metric_analysis.get(progress.return_key, {})
                progress.best_return = known.get("max", progress.best_return)
            if not trial.is_finished():
                forget_rounds_behind_checkpoint(trial)
        if len(trials) > 1:
            self.display.note(f"  found       {count_statuses(self.trials.values())}")

    def is_due(self, trial: Trial) -> bool:
        """Whether it is time for a checkpoint of a trial."""
        last = self._saved_at.setdefault(trial.trial_id, time.monotonic())
        seconds = self._checkpoint_seconds
        if seconds is None or trial.checkpoint_freq:
            return False
        return time.monotonic() - last >= seconds

    def saved(self, trial: Trial) -> None:
        """Notes that a trial has a checkpoint of its last round."""
        self._saved_at[trial.trial_id] = time.monotonic()
        self.interrupt.after_save(trial.trial_id)

    def progress(self, trial: Trial) -> TrialProgress:
        """Returns the progress of a trial."""
        if trial.trial_id not in self.trials:
            self.trials[trial.trial_id] = TrialProgress(
                name=trial.trial_id.rpartition("_")[2],
                stop=trial.stopping_criterion,
                settings=trial_settings(trial),
            )
        return self.trials[trial.trial_id]

    def take(self, trial: Trial, result: dict[str, Any]) -> None:
        """Takes in the result of one more round."""
        progress = self.progress(trial)
        progress.settings = trial_settings(trial)  # Schedulers change those of a living trial.
        progress.update(result)
        self.display.round_ended(progress)


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
            _current.is_due(trial)  # Its time counts from here.

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """After a round, before Tune decides whether to save the trial."""
        if _current is not None:
            if _current.is_due(trial):
                result[SHOULD_CHECKPOINT] = True
            _current.interrupt.before_result(trial.trial_id, result)
            _current.take(trial, result)

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """After a checkpoint of a trial was written."""
        if _current is not None:
            _current.saved(trial)


def trial_settings(trial: Trial) -> dict[str, str]:
    """Returns the settings of a trial as short texts: those of its merge, and of the search."""
    config = trial.config
    searched = {
        key.rsplit("/", 1)[-1]: _short(_lookup(config, key, value))
        for key, value in (trial.evaluated_params or {}).items()
    }
    strategy = config.get("merge_strategy")
    if strategy is None:  # Another algorithm than WeightedPPO.
        return searched
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    merge = dict(zip(MERGE_SETTINGS, (name, _min_weight(strategy, config)), strict=True))
    hidden = {*merge, "merge_arm"}
    return {**merge, **{key: text for key, text in searched.items() if key not in hidden}}


def _min_weight(strategy: Any, config: Mapping[str, Any]) -> str:
    value = config.get("min_weight")
    try:
        used = uses_min_weight(strategy, config.get("merge_options"))
    except ValueError:  # The trial itself will say what is wrong with it.
        used = True
    if not used:
        return "–"
    return "1/N" if value is None else _short(value)


def _lookup(config: Mapping[str, Any], path: str, default: Any) -> Any:
    """Returns a setting as it is now, which a scheduler may have changed."""
    found: Any = config
    for key in path.split("/"):
        if not isinstance(found, Mapping) or key not in found:
            return default
        found = found[key]
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
