"""Ends a training on Ctrl-C (SIGINT) or SIGTERM so that it can be resumed.

Tune's own handler stops at once and leaves a trial at its last checkpoint, which may be long
ago or not exist. Here the first signal asks every running trial for a checkpoint at the end of
its round, and only then ends the experiment, the way Tune's handler does: trials stay
"running" in the saved state, so that `Tuner.restore` continues them from that checkpoint.
(A `Stopper` would mark them as terminated, and they would never continue.)
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.cluster import environment_variable

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPING = "Stopping after this round, to save a checkpoint. Once more Ctrl-C stops at once."


class Interrupt:
    """A request to stop, and which trials have answered it.

    Args:
        on_request: Called once, with a message for the user, when the request is seen.
    """

    def __init__(self, on_request: Callable[[str], None]) -> None:
        self.signum: int | None = None
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
        """Exit status by the shell's convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signum or signal.SIGINT)

    def handle(self, signum: int, frame: Any) -> None:
        """Signal handler: the first signal asks to stop, a second one stops at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.signum = signum  # Nothing is printed here: a handler may interrupt a print.

    def before_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Asks Tune to save a trial after this result; it reads the flag from the result."""
        if self.requested and trial_id not in self._saved:
            result["should_checkpoint"] = True

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


@contextlib.contextmanager
def handling_signals(interrupt: Interrupt) -> Iterator[None]:
    """Lets `interrupt` handle Ctrl-C and SIGTERM inside the block.

    Outside of the main thread (where Python takes no handlers) and where the platform has no
    SIGUSR1 this does nothing, and Tune's own handling stays.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "SIGUSR1"):
        yield
        return
    handlers = {signum: signal.getsignal(signum) for signum in (*_SIGNALS, signal.SIGUSR1)}
    for signum in _SIGNALS:
        signal.signal(signum, interrupt.handle)
    try:
        # Otherwise Tune would put its own handler in place of this one.
        with environment_variable("TUNE_DISABLE_SIGINT_HANDLER", "1"):
            yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
