import dataclasses
import doctest
import math
import sys

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
    strategies,
    strategy_problems,
)
from tests.merging._asserts import assert_close

SHARES = torch.tensor([0.25, 0.75, 0.0, 0.0], dtype=torch.float64)
SIGNALS = torch.tensor([1.0, 3.0, 0.0, 0.0], dtype=torch.float64)
WEIGHTED = [RewardWeighted(), LossWeighted()]


@pytest.mark.parametrize("strategy", WEIGHTED)
@pytest.mark.parametrize(
    ("min_weight", "expected"),
    [
        (None, [0.5, 1.0, 0.25, 0.25]),  # + 1/N = 1/4
        (0, [0.25, 0.75, 0.0, 0.0]),
        (0.5, [0.75, 1.25, 0.5, 0.5]),
        (2, [2.25, 2.75, 2.0, 2.0]),
    ],
)
def test_the_minimum_weight_is_added_to_each_share(strategy, min_weight, expected):
    assert_close(strategy.shares(SIGNALS), SHARES)
    weights = strategy.weights(SHARES, min_weight=min_weight)
    assert_close(weights, expected)
    # sum w = 1 + N m
    m = 0.25 if min_weight is None else min_weight
    assert float(weights.sum()) == pytest.approx(1 + 4 * m, abs=1e-12)


def test_normalize_divides_by_the_sum():
    # 0.5 + 1 + 0.25 + 0.25 = 2
    weights = RewardWeighted(normalize=True).weights(SHARES)
    assert_close(weights, [0.25, 0.5, 0.125, 0.125])


def test_normalize_survives_a_huge_minimum_weight():
    weights = LossWeighted(normalize=True).weights(SHARES, min_weight=1e308)
    assert_close(weights, [0.25] * 4)


@pytest.mark.parametrize("min_weight", [None, 0.0, 0.5, 100.0, -1.0, math.nan])
@pytest.mark.parametrize(
    ("strategy", "weight"),
    [(Average(), 0.25), (Sum(), 1.0), (ActorAverage(), 0.25), (ActorSum(), 1.0)],
)
def test_average_and_sum_ignore_signals_and_minimum_weight(strategy, weight, min_weight):
    assert not strategy.uses_min_weight
    assert_close(strategy.shares(SIGNALS), [0.25] * 4)
    assert_close(strategy.weights(strategy.shares(SIGNALS), min_weight=min_weight), [weight] * 4)


@pytest.mark.parametrize("strategy", WEIGHTED)
@pytest.mark.parametrize(
    "min_weight", [-1, -1e-9, math.nan, math.inf, True, False, "0.1", [0.1], 1j]
)
def test_a_bad_minimum_weight_is_refused(strategy, min_weight):
    with pytest.raises(ValueError, match=r"min_weight should be a finite .* found .*None"):
        strategy.weights(SHARES, min_weight=min_weight)


def test_which_signals_each_reads():
    assert RewardWeighted().signals == ("return",)
    assert Average().signals == Sum().signals == ActorAverage().signals == ActorSum().signals == ()
    names = {
        (loss, scope): LossWeighted(loss=loss, scope=scope).signals
        for scope in ("minibatch", "round")
        for loss in ("total", "policy", "value")
    }
    assert names == {
        ("total", "minibatch"): ("loss",),
        ("policy", "minibatch"): ("policy_loss",),
        ("value", "minibatch"): ("value_loss",),
        ("total", "round"): ("round_loss",),
        ("policy", "round"): ("round_policy_loss",),
        ("value", "round"): ("round_value_loss",),
    }


def test_the_older_name_of_the_signal():
    assert LossWeighted.signal == "loss"
    assert Average.signal == Sum.signal == "none"
    assert RewardWeighted.uses_min_weight
    assert LossWeighted.uses_min_weight


def test_which_keep_parameters_of_their_own():
    shared = [Weighting, Average, Sum, RewardWeighted, LossWeighted]
    assert [cls.per_worker_parameters for cls in shared] == [False] * 5
    assert ActorAverage.per_worker_parameters
    assert ActorSum.per_worker_parameters


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(ActorAverage(), [0.5, 0.0, 0.5]), (ActorSum(), [1.0, 0.0, 1.0])],
)
def test_what_a_dropped_worker_counts_in_the_merged_part(strategy, expected):
    # The mean and the sum of those that remain.
    merged = merge(strategy, [0.0, 0.0, 0.0], present=[True, False, True])
    assert_close(merged.weights, expected)


def test_the_fields_are_the_options():
    common = ["offset", "direction", "transform", "temperature", "top_k", "normalize"]
    common += ["smoothing", "min_effective_workers"]
    assert [field.name for field in dataclasses.fields(RewardWeighted)] == [*common, "signal"]
    assert [field.name for field in dataclasses.fields(LossWeighted)] == [*common, "loss", "scope"]
    assert not dataclasses.fields(Average)
    assert not dataclasses.fields(Sum)


def test_built_in_strategies_are_immutable_values():
    assert RewardWeighted(top_k=2) == RewardWeighted(top_k=2)
    assert len({LossWeighted(), LossWeighted(), LossWeighted(scope="round")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        RewardWeighted().offset = "min"


def test_options_reach_the_shares():
    assert_close(LossWeighted(direction="low").shares(SIGNALS), [2 / 8, 0, 3 / 8, 3 / 8])
    assert_close(RewardWeighted(transform="top_k", top_k=1).shares(SIGNALS), [0, 1, 0, 0])
    generator = torch.Generator().manual_seed(0)
    dealt = RewardWeighted(transform="random").shares(SIGNALS, generator=generator)
    assert sorted(dealt.tolist()) == sorted(SHARES.tolist())


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({}, []),
        ({"transform": "top_k", "top_k": 1}, []),
        ({"top_k": 5}, []),
        ({"offset": -3.5}, []),
        ({"transform": "top_k"}, ["`top_k` should be a whole number >= 1 when transform='top_k'"]),
        ({"top_k": 0}, ["`top_k` should be greater than 0 or None, found 0"]),
        ({"temperature": 0.0}, ["`temperature` should be greater than 0, found 0.0"]),
        ({"temperature": -1}, ["`temperature` should be greater than 0, found -1"]),
        ({"temperature": math.inf}, ["`temperature` should be a finite number, found inf"]),
        ({"offset": -math.inf}, ["`offset` should be 'auto' or 'min' or a finite number"]),
        (
            {"temperature": 0, "offset": math.inf, "top_k": -1},
            ["`offset` should", "`temperature` should", "`top_k` should"],
        ),
    ],
)
@pytest.mark.parametrize("strategy_class", [RewardWeighted, LossWeighted])
def test_problems_of_values(strategy_class, options, messages):
    problems = strategy_problems(strategy_class(**options))
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert problem.startswith(message)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Weighting()


class Older(Weighting):
    """A strategy as users wrote them before a strategy could read several signals."""

    signal = "loss"

    def shares(self, signals, *, generator=None):
        return signals / signals.sum()


def test_a_strategy_that_says_its_signal_the_older_way():
    assert Older().signals == ("loss",)
    assert strategy_problems(Older()) == []
    assert_close(merge(Older(), [1.0, 3.0], min_weight=0).weights, [0.25, 0.75])

    class Blind(Older):
        signal = "none"

    class ByReturn(LossWeighted):
        signal = "reward"

    class OfTheRound(Older):
        signal = "loss"
        loss, scope = "value", "round"

    assert Blind().signals == ()
    assert ByReturn().signals == ("return",)
    assert OfTheRound().signals == ("round_value_loss",)


def test_a_subclass_can_read_other_signals_than_its_base():
    class ByLoss(RewardWeighted):
        signals = ("loss",)

    assert ByLoss().signals == ("loss",)
    assert RewardWeighted().signals == ("return",)


def test_the_older_name_of_own_parameters():
    class Older(Average):
        own_parameters = True

    class Shared(ActorAverage):
        own_parameters = False

    assert Older.per_worker_parameters
    assert not Shared.per_worker_parameters


@pytest.mark.parametrize("module", [strategies, sys.modules[merge.__module__]])
def test_the_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted >= 2
    assert result.failed == 0


def test_every_strategy_has_an_example():
    for strategy_class in {*strategies.BUILT_IN.values(), Weighting}:
        assert ">>> " in strategy_class.__doc__, strategy_class
