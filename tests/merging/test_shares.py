import math
from functools import partial

import pytest
import torch

from rllib_weighted.merging import RewardWeighted, resolve_strategy
from rllib_weighted.merging import shares as transforms
from rllib_weighted.merging.shares import NegativeSignalError
from tests.merging import _asserts
from tests.merging._asserts import assert_close, assert_shares, draw

LN2, LN3 = math.log(2), math.log(3)


def shares(signals, *, generator=None, **options):
    strategy = resolve_strategy(RewardWeighted(**options))
    return strategy.shares(torch.as_tensor(signals, dtype=torch.float64), generator=generator)


GOLDEN = [
    # 1 + 2 + 3 + 4 = 10
    ([1, 2, 3, 4], {}, [0.1, 0.2, 0.3, 0.4]),
    # lowest -2, so + 2: 0, 2, 6; sum 8
    ([-2, 0, 4], {}, [0.0, 0.25, 0.75]),
    # a lowest of 0 is no reason to shift: 0, 1, 3; sum 4
    ([0, 1, 3], {}, [0.0, 0.25, 0.75]),
    # "min" shifts in any case, - 1: 0, 1, 3; sum 4
    ([1, 2, 4], {"offset": "min"}, [0.0, 0.25, 0.75]),
    # + 1: 2, 3, 5; sum 10
    ([1, 2, 4], {"offset": 1}, [0.2, 0.3, 0.5]),
    # - 1: 0, 1, 3; sum 4
    ([1, 2, 4], {"offset": -1.0}, [0.0, 0.25, 0.75]),
    # negated -1, -2, -4; + 4: 3, 2, 0; sum 5
    ([1, 2, 4], {"direction": "low"}, [0.6, 0.4, 0.0]),
    # negated 1, 3; all >= 0, so no shift; sum 4
    ([-1, -3], {"direction": "low"}, [0.25, 0.75]),
    # negated, + 6: 5, 4, 2; sum 11
    ([1, 2, 4], {"direction": "low", "offset": 6.0}, [5 / 11, 4 / 11, 2 / 11]),
    # e^0, e^ln2, e^ln3 = 1, 2, 3; sum 6
    ([0, LN2, LN3], {"transform": "softmax"}, [1 / 6, 2 / 6, 3 / 6]),
    # divided by 2 the same
    ([0, 2 * LN2, 2 * LN3], {"transform": "softmax", "temperature": 2}, [1 / 6, 2 / 6, 3 / 6]),
    # e^0, e^-ln2 = 1, 1/2; sum 3/2
    ([0, LN2], {"transform": "softmax", "direction": "low"}, [2 / 3, 1 / 3]),
    # ranks 3, 1, 2; sum 6
    ([10, -5, 3], {"transform": "rank"}, [3 / 6, 1 / 6, 2 / 6]),
    # ranks of the negated 1, 3, 2
    ([10, -5, 3], {"transform": "rank", "direction": "low"}, [1 / 6, 3 / 6, 2 / 6]),
    # 0 is rank 1; both 1 share ranks 2 and 3; 5 is rank 4; sum 10
    ([1, 1, 5, 0], {"transform": "rank"}, [0.25, 0.25, 0.4, 0.1]),
    # -0.0 and 0.0 tie: ranks 1.5, 1.5, 3; sum 6
    ([0.0, -0.0, 1], {"transform": "rank"}, [0.25, 0.25, 0.5]),
    ([5, 1, 3, 4], {"transform": "top_k", "top_k": 2}, [0.5, 0.0, 0.0, 0.5]),
    ([5, 1, 3, 4], {"transform": "top_k", "top_k": 1, "direction": "low"}, [0.0, 1.0, 0.0, 0.0]),
    # one of the two places is taken by 5, both 3 share the other: 1/2 / 2
    ([5, 3, 3, 1], {"transform": "top_k", "top_k": 2}, [0.5, 0.25, 0.25, 0.0]),
    # three share two places: 2/3 of 1/2
    ([3, 3, 3, 1], {"transform": "top_k", "top_k": 2}, [1 / 3, 1 / 3, 1 / 3, 0.0]),
    ([5, 1], {"transform": "top_k", "top_k": 9}, [0.5, 0.5]),
]


@pytest.mark.parametrize(("signals", "options", "expected"), GOLDEN)
def test_golden(signals, options, expected):
    actual = shares(signals, **options)
    assert_shares(actual, len(signals))
    assert_close(actual, expected)


OPTIONS = {
    "auto": {},
    "auto low": {"direction": "low"},
    "min": {"offset": "min"},
    "number": {"offset": 5.5},
    "number low": {"offset": 5.5, "direction": "low"},
    "softmax": {"transform": "softmax"},
    "softmax low": {"transform": "softmax", "direction": "low", "temperature": 0.3},
    "rank": {"transform": "rank"},
    "rank low": {"transform": "rank", "direction": "low"},
    "top_k": {"transform": "top_k", "top_k": 3},
}
every = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@every
@pytest.mark.parametrize("num_workers", [1, 2, 3, 8, 256])
def test_shares_are_shares(options, num_workers):
    for seed in range(5):
        assert_shares(shares(draw(num_workers, seed=seed), **options), num_workers)


@every
def test_permutation_equivariant(options):
    _asserts.assert_permutation_equivariant(partial(shares, **options), draw(8))
    tied = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0, -2.0, 1.0], dtype=torch.float64)
    _asserts.assert_permutation_equivariant(partial(shares, **options), tied)


@every
def test_monotone(options):
    down = options.get("direction") == "low"
    _asserts.assert_monotone(lambda s: shares(-s if down else s, **options), draw(8))


@every
def test_single_worker_is_the_identity(options):
    _asserts.assert_single_worker_is_identity(partial(shares, **options))


@every
def test_input_is_not_mutated(options):
    _asserts.assert_input_not_mutated(partial(shares, **options), draw(8))


@every
@pytest.mark.parametrize("value", [-5.0, 0.0, 0.1, 5.0])
@pytest.mark.parametrize("num_workers", [2, 3, 7])
def test_uniform_signals_give_equal_shares(options, value, num_workers):
    signals = torch.full((num_workers,), value, dtype=torch.float64)
    assert_close(shares(signals, **options), [1 / num_workers] * num_workers)


@pytest.mark.parametrize("name", ["auto", "auto low", "min", "rank", "rank low", "top_k"])
def test_scaling_invariant(name):
    for seed in range(5):
        _asserts.assert_scaling_invariant(partial(shares, **OPTIONS[name]), draw(8, seed=seed))


@pytest.mark.parametrize("name", ["min", "softmax", "softmax low", "rank", "rank low", "top_k"])
def test_shift_invariant(name):
    for seed in range(5):
        _asserts.assert_shift_invariant(partial(shares, **OPTIONS[name]), draw(8, seed=seed))


def test_negative_control_the_property_helpers_can_fail():
    with pytest.raises(AssertionError):
        _asserts.assert_scaling_invariant(partial(shares, transform="softmax"), draw(8))
    with pytest.raises(AssertionError):
        _asserts.assert_shift_invariant(shares, draw(8, low=1.0))
    with pytest.raises(AssertionError):
        _asserts.assert_permutation_equivariant(lambda s: torch.arange(8.0).double() + s, draw(8))
    with pytest.raises(AssertionError):
        _asserts.assert_monotone(partial(shares, direction="low"), draw(8))
    with pytest.raises(AssertionError):
        _asserts.assert_input_not_mutated(lambda s: s.mul_(2), draw(8))


@pytest.mark.parametrize("offset", ["auto", "min"])
@pytest.mark.parametrize("seed", range(10))
def test_proportional_against_a_plain_loop(offset, seed):
    signals = draw(16, seed=seed, low=-5.0 if seed % 2 else 2.0)
    expected = _asserts.oracle_proportional(signals.tolist(), offset)
    assert_close(shares(signals, offset=offset), expected)


def test_auto_is_continuous_as_the_lowest_signal_crosses_zero():
    at_zero = shares([0.0, 1.0, 3.0])
    for step in (1e-3, 1e-6, 1e-9):
        for side in (step, -step):
            assert float((shares([side, 1.0, 3.0]) - at_zero).abs().max()) < 2 * step


@pytest.mark.parametrize(
    ("signals", "options", "expected"),
    [
        ([1e308, 1e308, 1e308], {}, [1 / 3] * 3),
        # + 1.7e308: 0, 3.4e308
        ([-1.7e308, 1.7e308], {}, [0.0, 1.0]),
        # 0, 1.5e308, 3e308
        ([-1.5e308, 0.0, 1.5e308], {"offset": "min"}, [0.0, 1 / 3, 2 / 3]),
        ([1.5e308, 0.0], {"offset": 1.5e308}, [2 / 3, 1 / 3]),
        ([-1.7e308, 1.7e308], {"transform": "softmax"}, [0.0, 1.0]),
        ([1e308, 1e308], {"transform": "softmax", "temperature": 1e-300}, [0.5, 0.5]),
        ([1e-300, 3e-300], {}, [0.25, 0.75]),
        ([0.0, 5e-324 * 8], {}, [0.0, 1.0]),
        ([1e308, -1e308], {"transform": "rank"}, [2 / 3, 1 / 3]),
    ],
)
def test_extreme_signals_give_finite_shares(signals, options, expected):
    assert_close(shares(signals, **options), expected)


@pytest.mark.parametrize("transform", ["proportional", "softmax", "rank", "top_k", "random"])
def test_a_signal_still_negative_after_a_number_names_worker_and_value(transform):
    message = r"worker 1 has the signal -3, which offset=2 leaves at -1: .* at least 3, or 'auto'"
    with pytest.raises(NegativeSignalError, match=message) as raised:
        shares([-1.0, -3.0, 4.0], offset=2, transform=transform, top_k=1)
    assert raised.value.worker == 1
    assert isinstance(raised.value, ValueError)


def test_a_negative_signal_in_direction_low_is_named_as_it_was_reported():
    message = r"worker 2 has the signal 4 \(-4 in direction 'low'\), which offset=1.5 leaves"
    with pytest.raises(ValueError, match=message):
        shares([1.0, 2.0, 4.0], offset=1.5, direction="low")


class TestRandom:
    def test_the_spread_is_that_of_the_proportional_shares(self):
        signals = draw(32)
        generator = torch.Generator().manual_seed(5)
        dealt = shares(signals, transform="random", generator=generator)
        assert dealt.tolist() != shares(signals).tolist()
        assert sorted(dealt.tolist()) == sorted(shares(signals).tolist())

    def test_the_generator_decides(self):
        def deal(seed):
            generator = torch.Generator().manual_seed(seed)
            return shares(draw(32), transform="random", generator=generator).tolist()

        assert deal(1) == deal(1)
        assert deal(1) != deal(2)

    def test_a_generator_moves_on_and_leaves_the_global_one_alone(self):
        generator = torch.Generator().manual_seed(1)
        state = torch.get_rng_state()
        first = shares(draw(32), transform="random", generator=generator)
        second = shares(draw(32), transform="random", generator=generator)
        assert first.tolist() != second.tolist()
        assert torch.equal(torch.get_rng_state(), state)

    def test_every_worker_gets_the_same_on_average(self):
        # Shares 0, 1/4, 3/4: mean 1/3, standard deviation 0.31; 4000 draws: 0.005 on the mean.
        generator = torch.Generator().manual_seed(3)
        draws = [shares([0, 1, 3], transform="random", generator=generator) for _ in range(4000)]
        assert_close(torch.stack(draws).mean(dim=0), [1 / 3] * 3, atol=0.025)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "sofmax"}, "`transform` should be 'proportional', .* found 'sofmax'"),
        ({"direction": "up"}, "`direction` should be 'high' or 'low', found 'up'"),
        ({"offset": "max"}, "`offset` should be 'auto' or 'min' or a valid number, found 'max'"),
        ({"transform": "top_k"}, "`top_k` should be a whole number >= 1 .* found None"),
        ({"transform": "top_k", "top_k": 0}, "`top_k` should be greater than 0 .* found 0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shares([1.0, 2.0], **options)


class TestAtLeastEffective:
    """Mixed with equal weights until enough workers count, and no further."""

    @pytest.mark.parametrize("wanted", [1.0, 1.5, 2.0, 3.9, 4.0, 7.0])
    def test_the_effective_number_is_reached_and_the_sum_stays(self, wanted):
        weights = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)  # (4^2) / 10 = 1.6
        mixed = transforms.at_least_effective(weights, wanted)
        found = float(mixed.sum() ** 2 / mixed.square().sum())
        assert found == pytest.approx(max(1.6, min(wanted, 4.0)))
        assert float(mixed.sum()) == pytest.approx(4.0)
        assert bool((mixed >= 0).all())

    def test_the_least_mixing(self):
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
        # (1 - l/2)^2 + (l/2)^2 = 1/E = 5/8: l = 1/2
        assert_close(transforms.at_least_effective(weights, 1.6), [0.75, 0.25])

    def test_nothing_is_mixed_without_need(self):
        weights = torch.tensor([1.0, 0.9], dtype=torch.float64)
        assert transforms.at_least_effective(weights, None) is weights
        assert transforms.at_least_effective(weights, 1.9) is weights
        zeros = torch.zeros(3, dtype=torch.float64)
        assert transforms.at_least_effective(zeros, 2.0) is zeros
