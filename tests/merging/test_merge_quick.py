"""The quick merge is the merge, for the strategies that it knows."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rllib_weighted.merging import (
    Average,
    LossWeighted,
    RewardWeighted,
    Sum,
    is_quick,
    merge,
    quick_merge,
)
from tests.merging._asserts import assert_close

NAN, INF = math.nan, math.inf


def draws(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    drawn = rng.normal(size=count)
    return {
        "mixed": drawn,
        "positive": np.abs(drawn),
        "negative": -np.abs(drawn),
        "equal": np.full(count, 2.5),
        "equal, negative": np.full(count, -2.5),
        "zero": np.zeros(count),
        "one of many": np.eye(count)[0],
        "large": 1e300 * drawn,
        "largest": np.where(drawn > 0, 1.0, -1.0) * np.finfo(np.float64).max,
        "tiny": 1e-300 * drawn,
        "subnormal": np.abs(5e-324 * np.round(5 * drawn)),
        "far from 0": 1e9 + drawn,
    }[kind]


KINDS = [
    "mixed",
    "positive",
    "negative",
    "equal",
    "equal, negative",
    "zero",
    "one of many",
    "large",
    "largest",
    "tiny",
    "subnormal",
    "far from 0",
]


# All equal to the lowest, or a sum that overflows.
LEFT_TO_MERGE = ("equal", "equal, negative", "zero", "large", "largest", "tiny", "subnormal")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", ["auto", "min"])
@pytest.mark.parametrize("min_weight", [None, 0.0, 0.3])
@pytest.mark.parametrize("cls", [RewardWeighted, LossWeighted])
def test_it_is_the_merge(cls, kind, offset, min_weight):
    strategy = cls(offset=offset)
    assert is_quick(strategy)
    for count in (1, 2, 3, 8, 37, 300):
        signals = torch.from_numpy(draws(kind, count))
        before = signals.clone()
        found = quick_merge(strategy, signals, min_weight=min_weight)
        expected = merge(strategy, signals, min_weight=min_weight)
        assert torch.equal(signals, before)
        if found is None:
            assert count == 1 or kind in LEFT_TO_MERGE
            continue
        for name in ("shares", "weights"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours.dtype == theirs.dtype == torch.float64
            assert_close(ours, theirs)
        assert found.shares.sum().item() == pytest.approx(1)


# 1 and 3 of 4; the lowest of -1, 1, 3 as 0: 2 and 4 of 6.
@pytest.mark.parametrize(
    ("signals", "offset", "shares"),
    [
        ([1.0, 3.0], "auto", [1 / 4, 3 / 4]),
        ([1.0, 3.0], "min", [0.0, 1.0]),
        ([-1.0, 1.0, 3.0], "auto", [0.0, 1 / 3, 2 / 3]),
    ],
)
def test_by_hand(signals, offset, shares):
    strategy = RewardWeighted(offset=offset)
    given = torch.tensor(signals, dtype=torch.float64)
    found = quick_merge(strategy, given, min_weight=0.3)
    assert found.shares.tolist() == pytest.approx(shares)
    assert found.weights.tolist() == pytest.approx([share + 0.3 for share in shares])
    found = quick_merge(strategy, given, min_weight=None)
    assert found.weights.tolist() == pytest.approx([s + 1 / len(shares) for s in shares])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("offset", ["auto", "min"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("rest", [[1.0, -2.0, 3.0], [INF, INF, INF], [-INF, -INF, -INF]])
def test_a_signal_that_is_not_finite_is_left_to_the_merge(bad, offset, place, rest):
    signals = torch.tensor(rest, dtype=torch.float64)
    signals[place] = bad
    assert quick_merge(LossWeighted(offset=offset), signals, min_weight=None) is None


def test_losses_are_float32_most_often():
    signals = torch.tensor([0.1, -0.3, 2.0])
    found = quick_merge(LossWeighted(), signals, min_weight=0.3)
    expected = merge(LossWeighted(), signals.double(), min_weight=0.3)
    assert_close(found.shares, expected.shares)
    assert_close(found.weights, expected.weights)


class Mine(LossWeighted):
    """Could change anything."""


@pytest.mark.parametrize(
    "strategy",
    [
        Average(),
        Sum(),
        Mine(),
        LossWeighted(direction="low"),
        LossWeighted(offset=3.0),
        LossWeighted(normalize=True),
        RewardWeighted(direction="low", offset="min"),
        RewardWeighted(normalize=True),
        *(
            RewardWeighted(transform=transform)
            for transform in ("softmax", "rank", "random", "top_k")
        ),
    ],
    ids=str,
)
def test_other_strategies_are_not_quick(strategy):
    assert not is_quick(strategy)


@pytest.mark.parametrize(
    "strategy",
    [
        RewardWeighted(),
        RewardWeighted(offset="min"),
        LossWeighted(),
        LossWeighted(scope="round"),
        LossWeighted(loss="value", offset="min"),
    ],
    ids=str,
)
def test_these_are_quick(strategy):
    assert is_quick(strategy)


def test_every_field_was_thought_of():
    """A new option of a strategy has to be known to `is_quick`."""
    known = {"transform", "direction", "offset", "normalize", "temperature", "top_k"}
    known |= {"min_effective_workers", "smoothing"}  # The learner smooths before the merge.
    for cls, own in ((RewardWeighted, {"signal"}), (LossWeighted, {"scope", "loss"})):
        assert {field.name for field in dataclasses.fields(cls)} - known - own == set()
