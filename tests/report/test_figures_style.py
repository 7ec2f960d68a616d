from __future__ import annotations

import itertools

import pytest

from rllib_weighted.report.figures import BASELINE_COLOR, COLORS, arm_styles, file_stem, plain


def test_arms_differ_in_more_than_colour() -> None:
    arms = [f"arm {i}" for i in range(30)]
    found = arm_styles(["average", *arms], ["average"])
    assert found["average"].color == BASELINE_COLOR
    assert all(found[arm].color != BASELINE_COLOR for arm in arms)
    assert len(set(found.values())) == 31
    neighbours = list(found.values())
    for first, second in itertools.pairwise(neighbours):
        assert first.color != second.color
        assert first.marker != second.marker
        assert first.line != second.line


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_are_seen_on_white() -> None:
    for color in COLORS:
        assert 1.05 / (luminance(color) + 0.05) > 1.9, color


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x00", "a\ufffdb\ufffd"),
        ("_hidden", " _hidden"),
        ("x" * 50, "x" * 39 + "…"),
        ("$x_2$", "$x_2$"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_file_stems_are_safe() -> None:
    assert file_stem("curves", "1", "../../ALE/Pong-v5 <b>") == "curves_1_ale-pong-v5-b"
    assert len(file_stem("x" * 300)) == 40
