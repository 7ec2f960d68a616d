import itertools
import math
from functools import partial

import pytest
import torch

from rllib_weighted.merging import merge_weights
from tests.merging import _asserts
from tests.merging._asserts import assert_close, draw

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("signals", "options", "expected"),
    [
        # shares 1/10 ... 4/10, + 1/4
        ([1, 2, 3, 4], {}, [0.35, 0.45, 0.55, 0.65]),
        ([1, 2, 3, 4], {"min_weight": 0}, [0.1, 0.2, 0.3, 0.4]),
        ([1, 2, 3, 4], {"min_weight": 1.5}, [1.6, 1.7, 1.8, 1.9]),
        # shares 1/4, 3/4; + 1/2; over 2
        ([1, 3], {"normalize": True}, [0.375, 0.625]),
        ([1, 3], {"normalize": True, "min_weight": 0}, [0.25, 0.75]),
        # the mean 2 in the middle: shares 1/6, 2/6, 3/6
        ([1, None, 3], {"min_weight": 0}, [1 / 6, 2 / 6, 3 / 6]),
        ([1, INF, 3], {"min_weight": 0}, [1 / 6, 2 / 6, 3 / 6]),
        # nothing known: 1/N + 1/N
        ([None, NAN, INF, -INF], {}, [0.5] * 4),
        ([None, None], {"offset": -3.0, "min_weight": 0}, [0.5, 0.5]),
        # without worker 1: shares 1/4, 3/4; N = 2, so + 1/2
        ([1, 99, 3], {"present": [True, False, True]}, [0.75, 0.0, 1.25]),
        # the mean for worker 3 is that of workers 0 and 2 alone: 2; shares 1/6, 3/6, 2/6
        (
            [1, 99, 3, None],
            {"present": [True, False, True, True], "min_weight": 0},
            [1 / 6, 0.0, 3 / 6, 2 / 6],
        ),
        # one left: 1 + 1/1
        ([1, 2, NAN], {"present": [False, False, True]}, [0.0, 0.0, 2.0]),
        # negated -1, -2, -4; + 4: 3, 2, 0; sum 5
        ([1, 2, 4], {"direction": "low", "min_weight": 0}, [0.6, 0.4, 0.0]),
        ([7], {}, [2.0]),
    ],
)
def test_golden(signals, options, expected):
    weights = merge_weights(signals, **options)
    assert weights.dtype == torch.float64
    assert_close(weights, expected)


def test_properties_of_the_defaults():
    _asserts.assert_permutation_equivariant(merge_weights, draw(8))
    _asserts.assert_scaling_invariant(merge_weights, draw(8, low=0.0))
    _asserts.assert_shift_invariant(partial(merge_weights, offset="min"), draw(8))
    _asserts.assert_monotone(merge_weights, draw(8))
    _asserts.assert_single_worker_is_identity(partial(merge_weights, min_weight=0))


def test_inputs_are_not_mutated():
    signals = torch.tensor([1.0, NAN, -3.0], dtype=torch.float64)
    present = torch.tensor([True, True, False])
    before, present_before = signals.clone(), present.clone()
    merge_weights(signals, present=present)
    torch.testing.assert_close(signals, before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(present, present_before)
    plain = [1.0, None, -3.0]
    merge_weights(plain)
    assert plain == [1.0, None, -3.0]


def test_the_sum_is_one_plus_n_times_the_minimum_weight():
    for num_workers, m in itertools.product((1, 2, 8, 256), (0.0, 0.125, 1.0)):
        weights = merge_weights(draw(num_workers), min_weight=m)
        assert float(weights.sum()) == pytest.approx(1 + num_workers * m, rel=1e-13)


def test_random_is_drawn_from_the_generator():
    deal = partial(merge_weights, draw(16), transform="random")
    first = deal(generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, deal(generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, deal(generator=torch.Generator().manual_seed(2)))
    assert_close(first.sort().values, merge_weights(draw(16)).sort().values)


@pytest.mark.parametrize(
    ("signals", "options", "message"),
    [
        ([], {}, "at least one worker"),
        ([1.0], {"present": [False]}, "found all dropped: skip this update"),
        ([1.0, 2.0], {"present": [True]}, r"shape \[2\]"),
        ([1.0, 2.0], {"min_weight": -1}, "min_weight should be a finite number >= 0, found -1"),
        ([1.0, 2.0], {"min_weight": True}, "min_weight should be .* found True"),
        ([1.0, 2.0], {"min_weight": NAN}, "min_weight should be .* found nan"),
        (
            [1.0, 2.0],
            {"offset": "max"},
            "`offset` should be 'auto' or 'min' or a valid number, found 'max'",
        ),
        ([1.0, 2.0], {"direction": "hihg"}, "`direction` should .* did you mean 'high'"),
        ([1.0, 2.0], {"transform": "sofmax"}, "`transform` .* did you mean 'softmax'"),
        ([1.0, 2.0], {"ofset": 1.0}, "unknown option 'ofset': .* did you mean 'offset'"),
        ([1.0, 2.0], {"transform": "top_k"}, "`top_k` should be .* when transform='top_k'"),
        ([1.0, 2.0], {"temperature": 0.0}, "`temperature` should be greater than 0, found 0.0"),
        ([1.0, 2.0], {"temperature": 0, "normalize": 1}, r"(?s)temperature.*\n.*normalize"),
        ([1.0, -5.0], {"offset": 2}, "worker 1 has the signal -5, which offset=2 leaves at -3"),
    ],
)
def test_bad_input_is_refused(signals, options, message):
    with pytest.raises(ValueError, match=message):
        merge_weights(signals, **options)


def test_the_negative_worker_is_named_by_its_own_index_when_others_are_dropped():
    present = [False, True, False, True]
    with pytest.raises(ValueError, match="worker 3 has the signal -5, which offset=2") as raised:
        merge_weights([0.0, 1.0, -9.0, -5.0], offset=2, present=present)
    assert "worker 1" not in str(raised.value)


def test_a_dropped_negative_signal_is_no_error():
    weights = merge_weights([1.0, -5.0], offset=2, present=[True, False])
    assert_close(weights, [2.0, 0.0])
