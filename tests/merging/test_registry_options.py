import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar, Literal, Optional, Union

import pytest
import torch

from rllib_weighted.merging.registry import (
    describe,
    matches,
    nearest,
    option_hints,
    option_problems,
    required_options,
)

OldStyle = Optional[Union[int, str]]  # noqa: UP007, UP045 - users write it, and 3.10 still has it


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (bool, [True, False], [0, 1, "yes", None]),
        (int, [0, -3, 10**30], [True, 1.0, "1", None, math.nan]),
        (float, [0.5, 1, -2, math.inf, Fraction(1, 2)], [True, math.nan, "1.0", None, 1j]),
        (str, ["", "auto"], [1, None, b"auto"]),
        (Literal["high", "low"], ["high", "low"], ["up", "", 1, None, ["high"], torch.ones(2)]),
        (Literal[1, 2], [1, 2], [True, 1.5, "1"]),
        (Literal["auto", "min"] | float, ["auto", 1.5, 2], ["max", True, None, math.nan]),
        (int | None, [None, 3], [True, 1.0, "3"]),
        (OldStyle, [None, 3, "3"], [1.5, True]),
        (None, [None], [0, False]),
        (list[int], [[], [1]], [(1,), None]),
        (dict, [{}], [[], None]),
        (Any, [None, 1, "x", True], []),
        (Callable[[int], int], [len], [3]),
    ],
)
def test_values_against_annotations(hint, good, bad):
    assert [value for value in good if not matches(hint, value)] == []
    assert [value for value in bad if matches(hint, value)] == []


def test_numpy_numbers_are_numbers():
    real = torch.tensor([1.5], dtype=torch.float32).numpy()[0]
    whole = torch.tensor([3]).numpy()[0]
    truth = torch.tensor([True]).numpy()[0]
    assert matches(float, real)
    assert matches(float, whole)
    assert matches(int, whole)
    assert not matches(int, real)
    assert not matches(float, truth)
    assert not matches(float, real * math.nan)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float, "a number"),
        (int | None, "a whole number or None"),
        (Literal["auto", "min"] | float, "'auto', 'min' or a number"),
        (bool, "True or False"),
        (str, "a string"),
        (list[int], "list"),
    ],
)
def test_annotations_in_words(hint, words):
    assert describe(hint) == words


def test_nearest():
    assert nearest("sofmax", ["softmax", "rank"]) == "; did you mean 'softmax'?"
    assert nearest("Top_K", ["top_k", "rank"]) == "; did you mean 'top_k'?"
    assert nearest("zzz", ["softmax", "rank"]) == ""
    assert nearest(3, ["softmax"]) == ""


@dataclasses.dataclass
class Example:
    needed: int
    kind: ClassVar[str] = "example"
    gain: float = 1.0
    names: list = dataclasses.field(default_factory=list)
    cache: dict = dataclasses.field(default_factory=dict, init=False)


def test_options_are_the_fields_one_can_set():
    assert option_hints(Example) == {"needed": int, "gain": float, "names": list}
    assert required_options(Example) == ["needed"]


def test_a_class_without_fields_has_no_options():
    assert option_hints(int) == {}
    assert required_options(int) == []


def test_an_annotation_that_cannot_be_evaluated_takes_anything():
    @dataclasses.dataclass
    class Local:
        gain: "NotThere" = 1.0  # noqa: F821

    assert option_hints(Local) == {"gain": Any}
    assert matches(Any, "whatever")


def test_each_option_gets_its_sentence():
    hints = {"transform": Literal["softmax", "rank"], "gain": float}
    found = option_problems("'mine'", hints, {"transform": "softmaxx", "gian": 1.0, "gain": 2.0})
    assert found == {
        "transform": "`transform` should be 'softmax' or 'rank', found 'softmaxx' (str): "
        "change the option of 'mine'; did you mean 'softmax'?",
        "gian": "`merge_options` of 'mine' should be among 'transform', 'gain', found unknown "
        "option 'gian': rename or remove it; did you mean 'gain'?",
    }
