from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from rllib_weighted.text import html_paragraphs, html_table, printable, short_path


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


def test_a_table_for_notebooks() -> None:
    rows = [("<b>", 1), ("x\x1b[2J", 2)]
    assert html_table(("name", "n"), rows, "a & b", bold={1}) == (
        "<table><caption>a &amp; b</caption><thead><tr><th>name</th><th>n</th></tr></thead><tbody>"
        "<tr><td>&lt;b&gt;</td><td>1</td></tr>"
        "<tr><th>x\\x1b[2J</th><th>2</th></tr></tbody></table>"
    )
    # Without a head, a row begins with its name.
    assert html_table((), [("a", 1)]) == (
        "<table><tbody><tr><th>a</th><td>1</td></tr></tbody></table>"
    )
    assert html_paragraphs(["a < b", "c"]) == "<p>a &lt; b</p><p>c</p>"


def test_paths_are_short_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert short_path(tmp_path / "here" / "a" / "b") == "a/b"
    assert short_path(str(tmp_path / "results")) == "~/results"
    assert short_path("/elsewhere/x") == "/elsewhere/x"
    assert short_path("s3://bucket/x") == "s3://bucket/x"
    assert short_path(Path("a/b")) == "a/b"
