"""What messages say of what a user wrote."""

from __future__ import annotations

import pytest

from rllib_weighted.suggest import nearest, shown


def test_nearest_suggests_only_what_is_close() -> None:
    assert nearest("min_wieght", ["min_weight", "lr"]) == "; did you mean 'min_weight'?"
    assert nearest("zzz", ["min_weight", "lr"]) == ""
    assert nearest("LR", ["min_weight", "lr"]) == "; did you mean 'lr'?"
    assert nearest(3, ["min_weight", "lr"]) == ""


CYCLE: list[object] = []
CYCLE.append(CYCLE)
BOMB: list[object] = [1]
for _ in range(30):  # Written out, 9 ** 30 values.
    BOMB = [BOMB] * 9


@pytest.mark.parametrize("value", [1, -2.5, "x", None, True, [1, "a"], {"a": 1}, (), 10**40])
def test_short_values_are_shown_as_python_writes_them(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "begins"),
    [
        ("x" * 10**6, "'xxxxx"),
        (10**4000, "10000"),
        (10**5000, "a whole number of more than 4300 digits"),
        (CYCLE, "["),
        (BOMB, "["),
        ({str(key): key for key in range(10**5)}, "{'0': 0"),
        ([["y" * 10**5] * 50] * 50, "[['yyyy"),
    ],
    ids=["text", "number", "number without a text", "cycle", "bomb", "dict", "lists"],
)
def test_long_values_are_cut(value: object, begins: str) -> None:
    assert shown(value).startswith(begins)
    assert len(shown(value)) < 310
