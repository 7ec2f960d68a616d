from __future__ import annotations

from rllib_weighted.report.trials import listed, unknown


def test_the_closest_names_come_first() -> None:
    error = unknown("metric", "merge/share", ["a", "merge/shares", "b", "a"])
    assert str(error) == "unknown metric 'merge/share': these results have merge/shares, a, b"


def test_nothing_known() -> None:
    assert str(unknown("metric", "x", [])) == "unknown metric 'x': these results have none"


def test_long_lists_are_cut() -> None:
    text = listed(f"n{i}" for i in range(25))
    assert text.startswith("n0, n1, ")
    assert text.endswith("n19 and 5 more")
