import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Optional, Protocol, Union

import pytest
import torch
from pydantic import Field

from rllib_weighted.merging import (
    Average,
    register_strategy,
    strategy_problems,
    unregister_strategy,
)
from rllib_weighted.merging.registry import option_types, type_problem

OldStyle = Optional[Union[int, str]]  # noqa: UP007, UP045 - users write it, and 3.10 still has it


def problem(hint: Any, value: object) -> str | None:
    annotation = dataclasses.make_dataclass("Options", [("option", hint)])
    return type_problem(option_types(annotation)["option"], value)


def fits(hint: Any, value: object) -> bool:
    return problem(hint, value) is None


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
    assert [value for value in good if not fits(hint, value)] == []
    assert [value for value in bad if fits(hint, value)] == []


def test_numpy_numbers_are_numbers():
    real = torch.tensor([1.5], dtype=torch.float32).numpy()[0]
    whole = torch.tensor([3]).numpy()[0]
    truth = torch.tensor([True]).numpy()[0]
    assert fits(float, real)
    assert fits(float, whole)
    assert fits(int, whole)
    assert not fits(int, real)
    assert not fits(float, truth)
    assert not fits(float, real * math.nan)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (float, "x", "a valid number"),
        (float, math.nan, "a valid number"),
        (int | None, 1.5, "a valid integer or None"),
        (Literal["auto", "min"] | float, True, "'auto' or 'min' or a valid number"),
        (bool, 1, "a valid boolean"),
        (str, 1, "a valid string"),
        (list[int], 1, "a valid list"),
        (torch.Tensor, 1, "an instance of Tensor"),
        (Annotated[float, Field(gt=0)], -1, "greater than 0"),
        (Literal[1, 2], True, "1 or 2"),
        (float, torch.tensor(1.5), "a valid number"),
    ],
)
def test_annotations_in_words(hint, value, words):
    assert problem(hint, value) == words


@dataclasses.dataclass
class Example:
    needed: int
    kind: ClassVar[str] = "example"
    gain: float = 1.0
    names: list = dataclasses.field(default_factory=list)
    cache: dict = dataclasses.field(default_factory=dict, init=False)


def test_options_are_the_fields_one_can_set():
    assert list(option_types(Example)) == ["needed", "gain", "names"]


def test_a_class_without_fields_has_no_options():
    assert option_types(int) == {}


def test_an_annotation_that_cannot_be_evaluated_takes_anything():
    @dataclasses.dataclass
    class Local:
        gain: "NotThere" = 1.0  # noqa: F821

    assert type_problem(option_types(Local)["gain"], "whatever") is None


class CanRun(Protocol):
    def run(self): ...


def test_an_annotation_that_cannot_be_checked_takes_anything():
    assert fits(CanRun, "whatever")


def test_each_option_gets_its_sentence():
    @dataclasses.dataclass(frozen=True)
    class Mine(Average):
        needed: int
        transform: Literal["softmax", "rank"] = "rank"
        gain: float = 1.0

    register_strategy("mine")(Mine)
    found = strategy_problems("mine", {"transform": "softmaxx", "gian": 1.0, "gain": 2.0})
    unregister_strategy("mine")
    assert found == [
        "`transform` should be 'softmax' or 'rank', found 'softmaxx' (str): "
        "change the option of 'mine'; did you mean 'softmax'?",
        "`merge_options` of 'mine' should be among 'needed', 'transform', 'gain', found unknown "
        "option 'gian': rename or remove it; did you mean 'gain'?",
        "`merge_options` of 'mine' should hold 'needed', found none: it has no default, set it",
    ]
