"""What has to be done at the end is done, whatever fails of it."""

from __future__ import annotations

import pytest

from rllib_weighted.fault_tolerance import call_all


def test_all_are_called_and_the_first_error_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def step(name: str, error: Exception | None = None) -> None:
        called.append(name)
        if error is not None:
            raise error

    with pytest.raises(OSError, match="No space left"):
        call_all(
            [
                lambda: step("history", OSError("No space left")),
                lambda: step("env runners", RuntimeError("no answer")),
                lambda: step("learners"),
            ]
        )
    assert called == ["history", "env runners", "learners"]
    assert "no answer" in caplog.text
    call_all([lambda: step("nothing fails")])
