"""A worker's weight falls with the variance of its gradient: w ~ 1 / (sigma_i^2 + tau^2)."""

import math

import pytest
import torch

from rllib_weighted.merging import InverseVariance, merge
from tests.merging._asserts import assert_close, assert_shares, draw


def signals(noise, spread):
    return {"gradient_noise": noise, "gradient_spread": [spread] * len(noise)}


def test_by_hand():
    # 1 / (1 + 1), 1 / (3 + 1), 1 / (1 + 1): 2, 1, 2 of 5
    merged = merge(InverseVariance(), signals([1.0, 3.0, 1.0], 1.0))
    assert_close(merged.weights, [0.4, 0.2, 0.4])
    assert_shares(merged.shares, 3)


def test_the_best_linear_combination():
    """Of all weights with sum 1, these have the least variance: a grid finds no better ones."""
    noise = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    weights = merge(
        InverseVariance(min_effective_workers=1.0), signals(noise.tolist(), 0.0)
    ).weights
    least = float((weights.square() * noise).sum())
    for a in torch.linspace(0, 1, 41).tolist():
        for b in torch.linspace(0, 1 - a, 21).tolist():
            other = torch.tensor([a, b, 1 - a - b], dtype=torch.float64)
            assert float((other.square() * noise).sum()) >= least - 1e-12


def test_half_of_the_workers_count_at_least():
    noise = [1e-6, *[1.0] * 7]
    weights = merge(InverseVariance(), signals(noise, 0.0)).weights
    assert float(weights.sum() ** 2 / weights.square().sum()) == pytest.approx(4.0)
    alone = merge(InverseVariance(min_effective_workers=1.0), signals(noise, 0.0)).weights
    assert float(alone[0]) > 0.99


def test_workers_without_noise():
    weights = merge(
        InverseVariance(min_effective_workers=1.0), signals([0.0, 1.0, 0.0], 0.0)
    ).weights
    assert_close(weights, [0.5, 0.0, 0.5])


def test_before_anything_is_measured_all_weigh_the_same():
    assert_close(merge(InverseVariance(), signals([math.nan] * 4, math.nan)).weights, [0.25] * 4)


def test_a_missing_one_takes_the_mean():
    merged = merge(InverseVariance(), signals([1.0, math.nan, 3.0], 0.0))
    # 1, 1/2, 1/3 of 11/6
    assert_close(merged.weights, [6 / 11, 3 / 11, 2 / 11])


def test_permuting_workers_permutes_weights():
    noise = draw(6, low=0.1, high=9.0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    plain, permuted = (
        merge(InverseVariance(), signals(values.tolist(), 0.5)).weights
        for values in (noise, noise[order])
    )
    assert_close(permuted, plain[order])
