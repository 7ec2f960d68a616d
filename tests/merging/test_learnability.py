"""A worker that succeeds half of the time weighs most; one that always or never does, least."""

import math

import pytest
import torch

from rllib_weighted.merging import Learnability, merge, strategy_problems
from tests.merging._asserts import assert_close, assert_shares, draw


def signals(success, episodes, variance=None):
    return {
        "success": success,
        "success_episodes": episodes,
        "return_variance": variance or [0.0] * len(success),
    }


def test_by_hand():
    # q = (k + 1) / (n + 2): (4 + 1) / 10 = 0.5, (8 + 1) / 10 = 0.9, (0 + 1) / 10 = 0.1
    # l = q (1 - q): 0.25, 0.09, 0.09; sum 0.43. w = 0.75 l / 0.43 + 0.25 / 3
    merged = merge(Learnability(), signals([0.5, 1.0, 0.0], [8.0, 8.0, 8.0]))
    floor = 0.25 / 3
    expected = [0.75 * 0.25 / 0.43 + floor, 0.75 * 0.09 / 0.43 + floor, 0.75 * 0.09 / 0.43 + floor]
    assert_close(merged.weights, expected)
    assert_shares(merged.shares, 3)


def test_a_worker_without_episodes_is_as_uncertain_as_can_be():
    # q = 1/2 with n = 0, whatever stands in for its missing success.
    merged = merge(Learnability(uniform=0.0), signals([math.nan, 1.0], [0.0, 98.0]))
    # l = 1/4 and 0.99 x 0.01
    assert_close(merged.weights, [0.25 / 0.2599, 0.0099 / 0.2599])


def test_without_success_the_variance_of_returns_counts():
    missing = [math.nan] * 3
    merged = merge(Learnability(uniform=0.25), signals(missing, missing, [0.1, 0.3, 0.0]))
    assert_close(merged.weights, [0.75 / 4 + 0.25 / 3, 2.25 / 4 + 0.25 / 3, 0.25 / 3])


def test_where_nothing_is_known_or_varies_all_weigh_the_same():
    missing = [math.nan] * 4
    for variance in (missing, [0.0] * 4):
        merged = merge(Learnability(), signals(missing, missing, variance))
        assert_close(merged.weights, [0.25] * 4)


def test_a_minimum_weight_is_added_only_if_it_is_set():
    given = signals([0.5, 1.0], [8.0, 8.0])
    plain = merge(Learnability(), given).weights
    assert float(plain.sum()) == pytest.approx(1.0)
    assert_close(merge(Learnability(), given, min_weight=0.5).weights, plain + 0.5)


def test_effective_workers():
    success = (draw(8, low=0.0, high=1.0) > 0.7).double() * 0.5
    strategy = Learnability(uniform=0.0, min_effective_workers=6.0)
    weights = merge(strategy, signals(success.tolist(), [1000.0] * 8)).weights
    assert float(weights.sum() ** 2 / weights.square().sum()) == pytest.approx(6.0)


def test_a_dropped_worker_gets_nothing():
    present = [True, False, True]
    merged = merge(Learnability(), signals([0.5, 0.5, 0.5], [8.0] * 3), present=present)
    assert_close(merged.weights, [0.5, 0.0, 0.5])


def test_permuting_workers_permutes_weights():
    success, episodes = draw(6, low=0.0, high=1.0), draw(6, seed=1, low=1.0, high=9.0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    plain, permuted = (
        merge(Learnability(), signals(s.tolist(), n.tolist())).weights
        for s, n in ((success, episodes), (success[order], episodes[order]))
    )
    assert_close(permuted, plain[order])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniform": 1.5}, "`uniform` should be less than or equal to 1, found 1.5"),
        ({"success_return": "high"}, "`success_return` should be a valid number or None"),
        ({"smoothing": 1.0}, "`smoothing` should be less than 1, found 1.0"),
        ({"min_effective_workers": 0.5}, "`min_effective_workers` should be greater than or equal"),
    ],
)
def test_bad_options(options, message):
    (problem,) = strategy_problems("learnability", options)
    assert message in problem
