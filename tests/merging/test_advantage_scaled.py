"""Weights in proportion to a power of the scale of the advantages, within a factor of 4."""

import pytest
import torch

from rllib_weighted.merging import AdvantageScaled, merge, strategy_problems
from tests.merging._asserts import (
    assert_close,
    assert_input_not_mutated,
    assert_permutation_equivariant,
    assert_scaling_invariant,
    assert_shares,
    assert_single_worker_is_identity,
    draw,
)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [
        # sd / mean sd = 0.5, 1.5, 1
        (1.0, [0.5 / 3, 1.5 / 3, 1.0 / 3]),
        (2.0, [0.25 / 3.5, 2.25 / 3.5, 1.0 / 3.5]),
        (-1.0, [2.0 / (11 / 3), (2 / 3) / (11 / 3), 1.0 / (11 / 3)]),
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_by_hand(exponent, expected):
    merged = merge(AdvantageScaled(exponent=exponent), [1.0, 3.0, 2.0])
    assert_close(merged.weights, expected)
    assert_shares(merged.shares, 3)


def test_the_scale_is_clipped():
    # mean 2.5; 0 -> 1/4, 10 -> 4
    assert_close(merge(AdvantageScaled(), [0.0, 0.0, 0.0, 10.0]).weights, [1 / 19] * 3 + [16 / 19])


def test_without_any_advantage_all_weigh_the_same():
    for exponent in (-2.0, 1.0):
        assert_close(merge(AdvantageScaled(exponent=exponent), [0.0] * 4).weights, [0.25] * 4)


def test_properties():
    def weigh(signals):
        return merge(AdvantageScaled(exponent=-1.5), signals).weights

    scales = draw(7, low=0.1, high=5.0)
    assert_permutation_equivariant(weigh, scales)
    assert_scaling_invariant(weigh, scales)
    assert_input_not_mutated(weigh, scales)
    assert_single_worker_is_identity(lambda s: weigh(s.abs()))


def test_a_dropped_worker_gets_nothing():
    merged = merge(AdvantageScaled(), [1.0, 100.0, 3.0], present=[True, False, True])
    assert_close(merged.weights, [0.25, 0.0, 0.75])


def test_effective_workers():
    weights = merge(AdvantageScaled(exponent=2.0, min_effective_workers=3.5), draw(4).abs()).weights
    assert float(weights.sum() ** 2 / weights.square().sum()) >= 3.5 - 1e-9
    assert isinstance(weights, torch.Tensor)


def test_bad_options():
    (problem,) = strategy_problems("advantage_scaled", {"exponent": 3})
    assert "`exponent` should be less than or equal to 2, found 3" in problem
