"""Text of others on a terminal."""

from __future__ import annotations

import pytest

from rllib_weighted.text import printable


@pytest.mark.parametrize("text", ["", "CartPole-v1", "größer – 日本語", "a b", "'\\'"])
def test_visible_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202eb", r"a\u202eb"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_controls_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
