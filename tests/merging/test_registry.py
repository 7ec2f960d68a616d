import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch

from rllib_weighted.merging import (
    ActorAverage,
    ActorSum,
    Average,
    LossWeighted,
    RewardWeighted,
    Sum,
    Weighting,
    merge,
    register_strategy,
    resolve_strategy,
    strategy_names,
    strategy_problems,
    unregister_strategy,
)
from tests.merging._asserts import assert_close

BUILT_IN = [
    "average",
    "sum",
    "reward_weighted",
    "loss_weighted",
    "actor_average",
    "actor_sum",
    "learnability",
    "advantage_scaled",
    "inverse_variance",
    "torchjd",
]


@pytest.fixture(autouse=True)
def _forget_what_a_test_registers():
    before = strategy_names()
    yield
    for name in strategy_names():
        if name not in before:
            unregister_strategy(name)


def test_built_in_names():
    assert strategy_names()[: len(BUILT_IN)] == BUILT_IN  # Others may have registered more.


VALID = [
    ("average", None, Average()),
    ("average", {}, Average()),
    ("sum", {}, Sum()),
    ("actor_average", {}, ActorAverage()),
    ("actor_sum", None, ActorSum()),
    ("reward_weighted", None, RewardWeighted()),
    ("loss_weighted", {}, LossWeighted()),
    ("reward_weighted", {"offset": "min"}, RewardWeighted(offset="min")),
    ("reward_weighted", {"offset": 3}, RewardWeighted(offset=3)),
    (
        "reward_weighted",
        {"transform": "top_k", "top_k": 2, "direction": "low", "normalize": True},
        RewardWeighted(transform="top_k", top_k=2, direction="low", normalize=True),
    ),
    (
        "loss_weighted",
        {"transform": "softmax", "temperature": 0.5, "loss": "policy", "scope": "round"},
        LossWeighted(transform="softmax", temperature=0.5, loss="policy", scope="round"),
    ),
]


@pytest.mark.parametrize(("name", "options", "expected"), VALID)
def test_valid_choices(name, options, expected):
    assert strategy_problems(name, options) == []
    assert resolve_strategy(name, options) == expected


@pytest.mark.parametrize("options", [None, {}])
def test_a_strategy_object_is_returned_as_it_is(options):
    strategy = LossWeighted(scope="round")
    assert resolve_strategy(strategy, options) is strategy


INVALID = [
    ("reward_weigthed", None, "'average', 'sum', .* found 'reward_weigthed': .*'reward_weighted'"),
    ("Average", None, "found 'Average': .* did you mean 'average'"),
    ("zzz", None, "found 'zzz': use one of them or register your own$"),
    (3, None, r"`merge_strategy` should be one of .* or a Weighting object, found 3 \(int\)"),
    (None, None, r"found None \(NoneType\): use a name"),
    (RewardWeighted, None, r"write RewardWeighted\(\)"),
    ("reward_weighted", ["offset"], r"`merge_options` should be a dict .* \(list\)"),
    ("reward_weighted", {"ofset": 1}, "'offset', 'direction', .* 'ofset': .*mean 'offset'"),
    ("reward_weighted", {1: 1}, "found unknown option 1"),
    ("reward_weighted", {"loss": "total"}, "found unknown option 'loss'"),
    ("average", {"offset": "auto"}, "'average' takes no options, found 'offset'"),
    ("sum", {"normalize": True}, "'sum' takes no options, found 'normalize'"),
    ("actor_sum", {"top_k": 1}, "'actor_sum' takes no options, found 'top_k'"),
    ("actor_avg", None, "found 'actor_avg': .* did you mean 'actor_average'"),
    ("reward_weighted", {"offset": "max"}, "'auto' or 'min' or a valid number, found 'max'"),
    ("reward_weighted", {"offset": True}, r"`offset` should be .* found True \(bool\)"),
    ("reward_weighted", {"offset": math.nan}, "`offset` should be .* found nan"),
    ("reward_weighted", {"offset": math.inf}, "`offset` should be .* finite number, found inf"),
    ("reward_weighted", {"offset": None}, r"`offset` should be .* found None \(NoneType\)"),
    ("loss_weighted", {"direction": "hihg"}, "'high' or 'low', found 'hihg' .*mean 'high'"),
    ("loss_weighted", {"transform": "topk"}, "'random', found 'topk' .* did you mean 'top_k'"),
    (
        "loss_weighted",
        {"temperature": "hot"},
        "`temperature` should be a valid number, found 'hot'",
    ),
    ("loss_weighted", {"temperature": 0}, "`temperature` should be greater than 0, found 0"),
    (
        "loss_weighted",
        {"temperature": math.nan},
        "`temperature` should be a valid number, found nan",
    ),
    ("loss_weighted", {"top_k": 2.0}, r"a valid integer or None, found 2.0 \(float\)"),
    ("loss_weighted", {"top_k": True}, r"a valid integer or None, found True \(bool\)"),
    ("loss_weighted", {"top_k": 0}, "`top_k` should be greater than 0 or None, found 0"),
    ("loss_weighted", {"transform": "top_k"}, "when transform='top_k', found None: set it"),
    ("loss_weighted", {"normalize": 1}, r"`normalize` should be a valid boolean, found 1 \(int\)"),
    ("loss_weighted", {"loss": "entropy"}, "'total', 'policy' or 'value', found 'entropy'"),
    ("loss_weighted", {"scope": "epoch"}, "'minibatch' or 'round', found 'epoch'"),
    (RewardWeighted(), {"offset": "min"}, r"is an object, .* to RewardWeighted\(...\) instead"),
    (RewardWeighted(direction="up"), None, "'high' or 'low', found 'up' .* of RewardWeighted"),
    (LossWeighted(temperature=-1.0), None, "`temperature` should be greater than 0, found -1.0"),
]


@pytest.mark.parametrize(("strategy", "options", "message"), INVALID)
def test_invalid_choices(strategy, options, message):
    assert len(strategy_problems(strategy, options)) == 1
    with pytest.raises(ValueError, match=message):
        resolve_strategy(strategy, options)


def test_all_problems_at_once():
    options = {"ofset": 1, "transform": "top_k", "temperature": -1.0, "normalize": "yes"}
    problems = strategy_problems("reward_weighted", options)
    assert len(problems) == 4
    for part in ("'ofset'", "`normalize`", "`temperature`", "`top_k`"):
        assert sum(problem.count(f"{part}") > 0 for problem in problems) == 1
    with pytest.raises(ValueError, match=r"(?s)ofset.*\n.*temperature.*\n.*normalize.*\n.*top_k"):
        resolve_strategy("reward_weighted", options)


def test_an_ill_typed_option_is_reported_once():
    problems = strategy_problems("loss_weighted", {"transform": "top_k", "top_k": "three"})
    assert len(problems) == 1
    assert "'three'" in problems[0]


def test_unknown_strategy_and_malformed_options_are_both_reported():
    assert len(strategy_problems("zzz", "offset")) == 2
    assert len(strategy_problems(7, "offset")) == 2


def test_options_are_not_mutated():
    options = {"offset": "min"}
    resolve_strategy("reward_weighted", options)
    assert options == {"offset": "min"}


def register_power():
    @register_strategy("power")
    @dataclass(frozen=True)
    class Power(Weighting):
        """Shares proportional to a power of the reward."""

        signal: ClassVar[Literal["reward"]] = "reward"
        exponent: float = 2.0
        sign: Literal["abs", "raw"] = "abs"

        def shares(self, signals, *, generator=None):
            raised = signals.abs() ** self.exponent
            return raised / raised.sum()

        def problems(self):
            return [] if self.exponent > 0 else ["`exponent` should be > 0: use 2"]

    return Power


def test_a_user_registers_a_strategy_with_options():
    power = register_power()
    assert strategy_names()[-1] == "power"
    strategy = resolve_strategy("power", {"exponent": 3})
    assert strategy == power(exponent=3)
    # 1, 8, 27; sum 36; m = 1/3
    merged = merge(strategy, [1.0, 2.0, 3.0])
    assert_close(merged.shares, [1 / 36, 8 / 36, 27 / 36])
    assert_close(merged.weights, [13 / 36, 20 / 36, 39 / 36])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": "2"}, r"`exponent` should be a valid number, found '2' \(str\).*'power'"),
        ({"exponent": -1.0}, "`exponent` should be > 0: use 2"),
        ({"sign": "neg"}, "`sign` should be 'abs' or 'raw', found 'neg'"),
        ({"exponnent": 2.0}, "of 'power' should be among 'exponent', 'sign', .*mean 'exponent'"),
    ],
)
def test_options_of_a_user_are_checked_by_their_annotations(options, message):
    register_power()
    with pytest.raises(ValueError, match=message):
        resolve_strategy("power", options)


def test_a_class_without_options_needs_no_dataclass():
    @register_strategy("first")
    class First(Weighting):
        signal = "none"

        def shares(self, signals, *, generator=None):
            shares = torch.zeros_like(signals)
            shares[0] = 1.0
            return shares

    assert_close(merge(resolve_strategy("first"), [5.0, 7.0], min_weight=0).weights, [1.0, 0.0])
    with pytest.raises(ValueError, match="'first' takes no options, found 'gain'"):
        resolve_strategy("first", {"gain": 1})


def test_an_option_without_default_must_be_given():
    @register_strategy("needy")
    @dataclass(frozen=True)
    class Needy(Average):
        gain: float

    assert resolve_strategy("needy", {"gain": 1.0}).gain == 1.0
    with pytest.raises(ValueError, match=r"of 'needy' should hold 'gain', found none: .* set it"):
        resolve_strategy("needy")
    assert len(strategy_problems("needy", {"gain": "much"})) == 1


def test_a_strategy_that_refuses_its_options_is_named():
    @register_strategy("picky")
    class Picky(Average):
        def __init__(self):
            raise RuntimeError("not today")

    with pytest.raises(ValueError, match=r"'picky' refused its options: RuntimeError\('not today'"):
        resolve_strategy("picky")


def test_registering_the_same_class_again_replaces_it():
    first, second = register_power(), register_power()
    assert first is not second
    assert type(resolve_strategy("power")) is second
    unregister_strategy("power")
    assert "power" not in strategy_names()


@pytest.mark.parametrize("name", ["", "1st", "my strategy", "a/b", None, 3, "größe"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(ValueError, match="name of a strategy should be a letter followed by"):
        register_strategy(name)


@pytest.mark.parametrize("name", ["average", "reward_weighted"])
def test_a_built_in_name_is_taken(name):
    class Mine(RewardWeighted):
        pass

    with pytest.raises(ValueError, match=f"'{name}' is already registered, as rllib_weighted"):
        register_strategy(name)(Mine)
    assert type(resolve_strategy(name)) is not Mine


def test_another_class_under_a_users_name_is_refused():
    register_power()

    class Other(Average):
        pass

    with pytest.raises(ValueError, match=r"already registered, as .*Power: choose another name"):
        register_strategy("power")(Other)


def test_what_is_no_strategy_is_refused():
    class Plain:
        pass

    class Silent(Weighting):
        def shares(self, signals, *, generator=None):
            return signals

    class Empty(Weighting):
        signal = "none"

    class OneName(Average):
        signals = "return"

    class Unknown(Average):
        signals = ("return", "gain")

    with pytest.raises(ValueError, match="should be a subclass of Weighting, found <class"):
        register_strategy("mine")(Plain)
    with pytest.raises(ValueError, match="should be a subclass of Weighting, found <function"):
        register_strategy("mine")(lambda signals: signals)
    with pytest.raises(ValueError, match="should define shares, found Empty without"):
        register_strategy("mine")(Empty)
    with pytest.raises(ValueError, match="`signal` of Silent should be 'reward', 'loss' or 'none'"):
        register_strategy("mine")(Silent)
    with pytest.raises(
        ValueError, match=r"its `signals` a tuple .*'return', .* found 'return': set"
    ):
        register_strategy("mine")(OneName)
    with pytest.raises(ValueError, match=r"`signals` .* found \('return', 'gain'\): set it"):
        register_strategy("mine")(Unknown)
    with pytest.raises(ValueError, match="`signal` of Silent should be"):
        resolve_strategy(Silent())
    assert not {"mine", "Silent"} & set(strategy_names())


def test_signals_that_depend_on_options_are_checked_with_them():
    @register_strategy("either")
    @dataclass(frozen=True)
    class Either(RewardWeighted):
        by: str = "return"

        @property
        def signals(self):
            return (self.by,)

    assert resolve_strategy("either", {"by": "loss"}).signals == ("loss",)
    with pytest.raises(ValueError, match=r"of Either .* its `signals` .* found \('gain',\)"):
        resolve_strategy("either", {"by": "gain"})
    with pytest.raises(ValueError, match=r"of Either .* its `signals` .* found \('gain',\)"):
        resolve_strategy(Either(by="gain"))


def test_unregistering():
    with pytest.raises(ValueError, match="'average' is built in"):
        unregister_strategy("average")
    with pytest.raises(ValueError, match="found 'nope'"):
        unregister_strategy("nope")
