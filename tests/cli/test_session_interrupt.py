"""Ctrl-C: which trials are waited for, and when the experiment ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rllib_weighted.cli import session as session_module
from rllib_weighted.cli.locks import stop_at_once
from rllib_weighted.cli.session import Interrupt, handling_signals


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Collects the signals that would end Tune's loop."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: received.append(signum))
    yield received
    signal.signal(signal.SIGUSR1, before)


def trials(**statuses: str) -> Any:
    return [SimpleNamespace(trial_id=name, status=status) for name, status in statuses.items()]


def asks_to_save(interrupt: Interrupt, trial_id: str) -> bool:
    result: dict[str, Any] = {}
    interrupt.before_result(trial_id, result)
    return bool(result.get("should_checkpoint"))


def test_nothing_happens_unasked(ended: list[int]) -> None:
    interrupt = Interrupt(lambda message: None)
    assert not asks_to_save(interrupt, "a")
    interrupt.after_step(trials(a="RUNNING"))
    assert ended == []


def test_running_trials_are_saved_once_before_the_end(ended: list[int]) -> None:
    messages: list[str] = []
    interrupt = Interrupt(messages.append)
    interrupt.handle(signal.SIGINT, None)
    now = trials(a="RUNNING", b="RUNNING", c="PENDING", d="TERMINATED")
    interrupt.after_step(now)
    assert asks_to_save(interrupt, "a")
    interrupt.after_save("a")
    assert not asks_to_save(interrupt, "a")
    interrupt.after_step(now)
    assert ended == []
    interrupt.after_save("b")
    interrupt.after_step(now)
    interrupt.after_step(now)
    assert ended == [signal.SIGUSR1]
    assert len(messages) == 1
    assert interrupt.exit_code == 130


def test_trials_that_fail_or_start_meanwhile_are_not_waited_for(ended: list[int]) -> None:
    interrupt = Interrupt(lambda message: None)
    interrupt.handle(signal.SIGTERM, None)
    interrupt.after_step(trials(a="RUNNING", b="PENDING"))
    assert ended == []
    interrupt.after_step(trials(a="ERROR", b="RUNNING"))
    assert ended == [signal.SIGUSR1]
    assert interrupt.exit_code == 143


def test_without_running_trials_it_ends_at_once(ended: list[int]) -> None:
    interrupt = Interrupt(lambda message: None)
    interrupt.handle(signal.SIGINT, None)
    interrupt.after_step(trials(a="PENDING"))
    assert ended == [signal.SIGUSR1]


def test_second_signal_stops_at_once() -> None:
    interrupt = Interrupt(lambda message: None)
    with handling_signals(interrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_handlers_and_environment_come_back() -> None:
    before = [signal.getsignal(signum) for signum in HANDLED]
    with handling_signals(Interrupt(lambda message: None)):
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert [signal.getsignal(signum) for signum in HANDLED] == before
    assert "TUNE_DISABLE_SIGINT_HANDLER" not in os.environ


@pytest.mark.parametrize(("signum", "code"), list(zip(HANDLED, (130, 143, 129), strict=True)))
def test_each_signal_asks_to_stop_and_has_its_exit_code(signum: signal.Signals, code: int) -> None:
    interrupt = Interrupt(lambda message: None)
    with handling_signals(interrupt):
        os.kill(os.getpid(), signum)
        assert interrupt.requested
    assert interrupt.exit_code == code


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_one_signal_that_comes_twice_is_one(signum: signal.Signals) -> None:
    interrupt = Interrupt(lambda message: None)
    with handling_signals(interrupt):
        for _ in range(2):
            os.kill(os.getpid(), signum)
    assert interrupt.exit_code == 128 + signum


def test_what_watches_the_training_stops_it_at_once() -> None:
    with handling_signals(Interrupt(lambda message: None)), pytest.raises(KeyboardInterrupt):
        stop_at_once()


def test_a_later_second_one_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now[0])
    interrupt = Interrupt(lambda message: None)
    interrupt.handle(signal.SIGTERM, None)
    now[0] = 102.0
    interrupt.handle(signal.SIGHUP, None)  # The terminal closes meanwhile.
    with pytest.raises(KeyboardInterrupt):
        interrupt.handle(signal.SIGTERM, None)
    assert interrupt.exit_code == 143


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    interrupt = Interrupt(lambda message: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling_signals(interrupt):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)
