"""Connects a running Tune experiment with the display, checkpoints, Ctrl-C and log files.

Tune calls `SessionCallback` and `ProgressTable`. It pickles both into the experiment's folder and
loads them when the experiment is resumed: their names must stay importable.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pyarrow.fs import FileSystem, FileType
from ray.air.constants import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE, TRAINING_ITERATION
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback
from ray.tune.result import SHOULD_CHECKPOINT

from rllib_weighted.cli.cluster import environment_variable
from rllib_weighted.cli.display import Display
from rllib_weighted.cli.inputs import algorithm_config
from rllib_weighted.cli.progress import TrialProgress
from rllib_weighted.cli.sizing import run_settings
from rllib_weighted.cli.sweep import count_statuses
from rllib_weighted.cli.tracking import Tracking
from rllib_weighted.core.durable import durable
from rllib_weighted.fault_tolerance import discard_rescue, rescued_iteration
from rllib_weighted.records.history import HISTORY_DIR, MergeHistory
from rllib_weighted.records.reading import read_history
from rllib_weighted.report.trials import Settings, parse_settings

_LOGS = (EXPR_RESULT_FILE, EXPR_PROGRESS_FILE)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TWICE_S = 1.0  # Between two signals that are two.
_STOPPING = "Stopping after this round, to save a checkpoint. Once more Ctrl-C stops at once."

Result = dict[str, Any]  # Metrics of a round, nested, as RLlib reports them.


class Interrupt:
    """A request to stop (Ctrl-C or SIGTERM), and which trials have been saved since.

    Args:
        on_request: Called once, with a message for the user, when the request is seen.
    """

    def __init__(self, on_request: Callable[[str], None]) -> None:
        self.signum: int | None = None
        self._asked_at = 0.0
        self._on_request = on_request
        self._waiting: set[str] | None = None
        self._saved: set[str] = set()
        self._ended = False

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """Exit status by the shell's convention: 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP)."""
        return 128 + (self.signum or signal.SIGINT)

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: the first signal asks to stop, a second one stops at once.

        Not so SIGHUP, which the shell sends again, nor a SIGTERM that comes twice at a time, to the
        process and to its group, as `timeout` sends it.
        """
        now = time.monotonic()  # Do not print here: the handler may have interrupted a print.
        is_echo = signum == self.signum == signal.SIGTERM and now - self._asked_at < _TWICE_S
        if signum == signal.SIGHUP:
            _leave_lost_terminal()
        elif self.requested and not is_echo:
            raise KeyboardInterrupt
        if not self.requested:
            self.signum, self._asked_at = signum, now

    def before_result(self, trial_id: str, result: Result) -> None:
        """Asks Tune to save a trial after this result; it reads the flag from the result."""
        if self.requested and trial_id not in self._saved:
            result[SHOULD_CHECKPOINT] = True

    def after_save(self, trial_id: str) -> None:
        """Notes that a trial has a checkpoint of its last round."""
        if self.requested:
            self._saved.add(trial_id)

    def after_step(self, trials: Sequence[Trial]) -> None:
        """Ends the experiment once every trial that was running has been saved."""
        if not self.requested or self._ended:
            return
        running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
        if self._waiting is None:
            self._waiting = running
            self._on_request(_STOPPING if running else "Stopping: no trial had started yet.")
        if not (self._waiting & running) - self._saved:
            self._ended = True
            # Tune's handler of this signal ends its loop and saves the experiment's state.
            signal.raise_signal(signal.SIGUSR1)


def _leave_lost_terminal() -> None:
    """Sends output nowhere if the terminal is gone: writing to it would raise in Tune's loop."""
    for descriptor in (1, 2):
        try:
            os.get_terminal_size(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:  # Not ENOTTY, which is that of a file.
                with Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), descriptor)


@contextlib.contextmanager
def handling_signals(interrupt: Interrupt) -> Iterator[None]:
    """Lets `interrupt` handle Ctrl-C, SIGTERM and SIGHUP inside the block.

    Outside of the main thread (where Python takes no handlers) and where the platform has no
    SIGUSR1 this does nothing, and Tune's own handling stays.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "SIGUSR1"):
        yield
        return
    handlers = {signum: signal.getsignal(signum) for signum in (*_SIGNALS, signal.SIGUSR1)}
    for signum in _SIGNALS:
        if (signum, handlers[signum]) != (signal.SIGHUP, signal.SIG_IGN):  # As `nohup` has it.
            signal.signal(signum, interrupt.handle)
    try:
        # Otherwise Tune would put its own handler in place of this one.
        with environment_variable("TUNE_DISABLE_SIGINT_HANDLER", "1"):
            yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@dataclass
class TrainSession:
    """One call of `Tuner.fit` as the command sees it.

    Args:
        display: Where progress is shown.
        stop: Flat stop criteria that replace those of the trials; None keeps theirs (which a
            resumed experiment has saved).
        checkpoint_seconds: Seconds between two checkpoints of a trial; infinity leaves them to
            Tune.
        resumed: Whether there are trials of an earlier process that have yet to be adopted.
        tracking: What is told of results, too; see `cli/tracking.py`.
        trials: Progress by the trial's id.
        num_started: How many trials' processes have started.
        errors: What each trial that has failed has failed of, by its id, the first one first.
        tune_trials: Tune's trials.
    """

    display: Display
    stop: dict[str, float] | None
    checkpoint_seconds: float = math.inf
    resumed: bool = False
    tracking: Tracking | None = None
    trials: dict[str, TrialProgress] = field(default_factory=dict)
    num_started: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    tune_trials: Sequence[Trial] = ()
    _configs: dict[str, Any] = field(default_factory=dict)
    _unpublished: dict[str, Trial] = field(default_factory=dict)
    _saved_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.interrupt = Interrupt(self.display.note)

    def adopt(self, trials: list[Trial]) -> None:
        """Prepares the trials of a resumed experiment before they continue."""
        if not self.resumed or not trials:
            return
        self.resumed = False
        for trial in trials:
            if self.stop is not None:
                trial.stopping_criterion = dict(self.stop)
            progress = self.progress(trial)
            progress.status = trial.status
            if TRAINING_ITERATION in trial.last_result:
                progress.update(trial.last_result)
                known = trial.metric_analysis.get(progress.return_key, {})
                progress.best_return = known.get("max", progress.best_return)
            if not trial.is_finished() and (note := trim_logs(trial)):
                self.display.note(f"  note        trial {progress.name}: {note}")
        if len(trials) > 1:
            self.display.note(f"  found       {count_statuses(self.trials.values())}")

    def progress(self, trial: Trial) -> TrialProgress:
        """Returns the progress of a trial."""
        if trial.trial_id not in self.trials:
            name, stop = trial.trial_id.rpartition("_")[2], trial.stopping_criterion
            self.trials[trial.trial_id] = TrialProgress(name, stop)
        progress = self.trials[trial.trial_id]
        if self._configs.get(trial.trial_id) is not trial.config:  # A scheduler may change it.
            self._configs[trial.trial_id] = trial.config
            progress.settings = trial_settings(trial.config, trial.trainable_name)
        return progress

    def take(self, trial: Trial, result: Result) -> None:
        """Handles the result of a round, before Tune decides whether to save the trial."""
        if self.is_due(trial):
            result[SHOULD_CHECKPOINT] = True
        self.interrupt.before_result(trial.trial_id, result)
        progress = self.progress(trial)
        progress.update(result)
        self.display.round_ended(progress)
        if self.tracking is not None:
            self.tracking.result(trial, result)

    def is_due(self, trial: Trial) -> bool:
        """Whether it is time for a checkpoint of a trial; the time counts from the first call."""
        last = self._saved_at.setdefault(trial.trial_id, time.monotonic())
        return not trial.checkpoint_freq and time.monotonic() - last >= self.checkpoint_seconds

    def saved(self, trial: Trial) -> None:
        """Notes that a trial has a checkpoint of its last round."""
        self._saved_at[trial.trial_id] = time.monotonic()
        self._unpublished[trial.trial_id] = trial
        self.interrupt.after_save(trial.trial_id)

    def failed(self, trial: Trial) -> None:
        """Keeps what a trial has failed of: its file of that may not fit on the disk."""
        with contextlib.suppress(OSError):
            text = Path(trial.error_file or "").read_text(errors="replace")
            # Tune appends to the file; before this failure may be those of an earlier process.
            self.errors[trial.trial_id] = re.split(r"(?m)^Failure # \d+ .*\n", text)[-1]

    def ended(self, trial: Trial, *, failed: bool) -> None:
        """Notes that a trial has ended for good."""
        if failed:
            self.failed(trial)
        if self.tracking is not None:
            self.tracking.ended(trial, failed=failed)

    def warn(self) -> None:
        """Shows what trackers have to say, if anything."""
        for warning in self.tracking.new_warnings() if self.tracking is not None else ():
            self.display.note(warning)

    def stop_tracking(self, seconds: float) -> None:
        """Lets trackers send what is left, for so long or until Ctrl-C."""
        if self.tracking is not None:
            with contextlib.suppress(KeyboardInterrupt):
                self.tracking.close(seconds, say=self.display.note)
            self.warn()

    def publish_logs(self) -> None:
        """Copies the logs of trials that have a new checkpoint into the storage.

        Called before Tune saves that it knows of these checkpoints: a trial that is resumed from
        one finds all the rounds before it in its logs, whenever the process is killed.

        Raises:
            OSError: They cannot be written.
        """
        while self._unpublished:
            trial_id, trial = next(iter(self._unpublished.items()))
            for name in _LOGS:
                own = Path(trial.local_path or "", name)
                if trial.storage is not None and own.is_file():
                    filesystem, path = trial.storage.storage_filesystem, trial.storage.trial_fs_path
                    filesystem.create_dir(path)
                    with (
                        own.open("rb") as source,
                        filesystem.open_output_stream(f"{path}/{name}") as stream,
                    ):
                        shutil.copyfileobj(source, stream, 2**24)
            del self._unpublished[trial_id]

    def forget_unreported_rounds(self) -> None:
        """Shortens the trials' merge histories to what `result.json` holds; see the function."""
        for trial in self.tune_trials:
            with contextlib.suppress(OSError):  # A resumed trial does it, too.
                forget_unreported_rounds(trial)


_current: TrainSession | None = None


@contextlib.contextmanager
def session(active: TrainSession) -> Iterator[TrainSession]:
    """Makes `active` the session that `SessionCallback` reports to."""
    global _current
    previous, _current = _current, active
    try:
        with active.display.running(), handling_signals(active.interrupt):
            yield active
    finally:
        _current = previous


class SessionCallback(Callback):
    """Reports what Tune does to the current session; does nothing where there is none.

    Tune pickles the callbacks of an experiment and loads them when it is resumed, in another
    process. So this one has no state and looks up the session when it is called.
    """

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Before a step of Tune's loop."""
        if _current is not None:
            _current.adopt(trials)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """After a step of Tune's loop, several times a second."""
        if _current is not None:
            _current.tune_trials = trials
            for trial in trials:
                _current.progress(trial).status = trial.status
            _current.display.refresh(list(_current.trials.values()))
            _current.interrupt.after_step(trials)
            _current.warn()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """When a trial's process has started."""
        if _current is not None:
            _current.num_started += 1
            _current.is_due(trial)  # Its time counts from here.

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Result, **info: Any
    ) -> None:
        """After a round."""
        if _current is not None:
            _current.take(trial, result)

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """After a checkpoint of a trial was written."""
        if _current is not None:
            _current.saved(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """After a trial has failed for good."""
        if _current is not None:
            _current.ended(trial, failed=True)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """After a trial has reached its end."""
        if _current is not None:
            _current.ended(trial, failed=False)

    def get_state(self) -> None:
        """Before Tune saves the experiment's state in the storage; there is none of its own."""
        if _current is not None:
            _current.publish_logs()


def trial_settings(config: Mapping[str, Any], algorithm: str) -> Settings:
    """Returns the settings of a trial as the report will read them.

    Args:
        config: The trial's config.
        algorithm: The name of its algorithm.
    """
    try:
        whole = algorithm_config(algorithm).update_from_dict(config)
    except Exception:  # Whatever RLlib raises over a wrong value: the trial itself reports it.
        return parse_settings(config, algorithm)
    return run_settings(whole, algorithm)


class ProgressTable(CSVLoggerCallback):
    """Tune's writer of progress.csv; keeps the columns of the file when a trial is resumed."""

    def log_trial_result(self, iteration: int, trial: Trial, result: Result) -> None:
        """Writes a row; leaves out metrics without a column and cells without a value."""
        if trial not in self._trial_files:
            self._setup_trial(trial)
        if self._trial_csv[trial] is None and self._trial_continue[trial]:
            with Path(trial.local_path or "", EXPR_PROGRESS_FILE).open(newline="") as stream:
                header = next(csv.reader(stream))
            self._trial_csv[trial] = csv.DictWriter(self._trial_files[trial], header)
        super().log_trial_result(iteration, trial, result)


def trim_logs(trial: Trial) -> str | None:
    """Removes from a trial's log files the rounds that will come again.

    It goes on from its last checkpoint, from a newer one that was rescued when a learner died (see
    `fault_tolerance`), or from the start. One that was rescued is left aside where the logs lack
    rounds before it: Tune was killed before it had written them.

    Args:
        trial: A trial that is about to be resumed.

    Returns:
        What there is to say of it.
    """
    if trial.storage is None:
        return None
    filesystem = durable(trial.storage.storage_filesystem)
    folder = trial.storage.trial_fs_path
    saved = trial.latest_checkpoint_result
    last_round = int((saved.metrics or {}).get(TRAINING_ITERATION, 0)) if saved else 0
    logs = {name: _read_log(filesystem, f"{folder}/{name}") for name in _LOGS}
    note = None
    rescued = rescued_iteration(filesystem, folder)
    if rescued is not None and rescued > last_round:
        between = set(range(last_round + 1, rescued + 1))
        if all(between <= {round for round, _ in rows} for _, rows in logs.values()):
            last_round = rescued
            note = f"goes on after round {rescued}, rescued when a learner failed"
        else:
            discard_rescue(filesystem, folder)
            note = (
                f"goes on after round {last_round}; what was rescued after round {rescued} is "
                "left aside, as the logs lack rounds before it"
            )
    for name, (header, rows) in logs.items():
        kept = "".join([header, *(line for round, line in rows if round <= last_round)])
        _replace(filesystem, f"{folder}/{name}", kept)
        # Tune goes on with this one, and fetches the other only where it knows of a checkpoint.
        own = Path(trial.local_path or "", name)
        if kept or own.is_file():
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(kept)
    return note


def _read_log(filesystem: FileSystem, path: str) -> tuple[str, list[tuple[int, str]]]:
    """Returns the header of a CSV or JSON log ("" of JSON), and its lines, each with its round.

    Lines that a kill has cut off are left out. So is a header: Tune then writes a new one.
    """
    try:
        with filesystem.open_input_stream(path) as stream:
            lines = stream.read().decode(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return "", []
    is_table = path.endswith(".csv")
    columns = next(csv.reader(lines[:1]), []) if is_table else []
    header = lines[0] if TRAINING_ITERATION in columns else ""
    rows = []
    for line in lines[bool(header) :]:
        with contextlib.suppress(ValueError, KeyError, TypeError, StopIteration):
            cells = next(csv.reader([line])) if is_table else []
            row = dict(zip(columns, cells, strict=True)) if is_table else json.loads(line)
            rows.append((int(row[TRAINING_ITERATION]), line))
    return header, rows


def _replace(filesystem: FileSystem, path: str, text: str) -> None:
    """Gives a file that is there another text, in one step."""
    if filesystem.get_file_info(path).type == FileType.File:
        with filesystem.open_input_stream(path) as stream:
            if stream.read() == text.encode():
                return
        with filesystem.open_output_stream(path) as stream:
            stream.write(text.encode())


def forget_unreported_rounds(trial: Trial) -> None:
    """Removes from a trial's merge history what its `result.json` does not hold.

    A trial that is stopped ends the round that it is in; nobody takes its result any more.

    Args:
        trial: A trial whose process has ended.
    """
    steps = trial.last_result.get(NUM_ENV_STEPS_SAMPLED_LIFETIME)
    if trial.storage is None or steps is None:
        return
    filesystem, folder = trial.storage.storage_filesystem, trial.storage.trial_fs_path
    path = f"{folder}/{HISTORY_DIR}"
    known = read_history(path, filesystem, columns=["round", "env_steps"]).to_pydict()
    reported = {r for r, s in zip(known["round"], known["env_steps"], strict=True) if s <= steps}
    if len(reported) < len(set(known["round"])):
        history = MergeHistory(filesystem, path, trial_id=trial.trial_id)
        history.truncate(max(reported, default=0))
