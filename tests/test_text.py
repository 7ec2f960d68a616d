from __future__ import annotations

import unicodedata

import pytest

from rllib_weighted.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),  # a tag, which nobody sees
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["", "CartPole-v1", "漢字 é", "क्\u200dष", "👩\u200d🚀", "a\xa0b", "\\x1b"]
)
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def test_of_all_characters_none_that_controls_gets_through() -> None:
    planes = (range(0x3000), range(0xD7F0, 0x10000), range(0xE0000, 0xE0200))
    every = "".join(chr(number) for plane in planes for number in plane)
    shown = printable(every)
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"} == set()
    assert {c for c in shown if unicodedata.category(c) == "Cf"} == {"\u200c", "\u200d"}
    assert shown.encode()  # No surrogate is left.
