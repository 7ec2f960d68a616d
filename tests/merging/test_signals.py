import math

import pytest
import torch

from rllib_weighted.merging.signals import (
    SIGNALS,
    as_signals,
    dropped_mask,
    fill_missing,
    loss_signal,
)
from tests.merging._asserts import assert_close

INF = math.inf
NAN = math.nan


@pytest.mark.parametrize(
    "signals",
    [
        [1, 2.0, 3],
        (1.0, 2.0, 3.0),
        range(1, 4),
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        [torch.tensor(1.0), torch.tensor([2.0]), torch.tensor(3)],
        torch.tensor([1.0, 2.0, 3.0]).numpy(),
    ],
)
def test_signals_become_detached_float64(signals):
    values = as_signals(signals)
    assert values.dtype == torch.float64
    assert not values.requires_grad
    assert values.tolist() == [1.0, 2.0, 3.0]


def test_none_and_numbers_beyond_float_are_missing():
    values = as_signals([1.0, None, 10**400])
    assert torch.isfinite(values).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([], "at least one worker, found none"),
        (torch.empty(0), "at least one worker, found none"),
        (torch.ones(2, 2), r"shape \[N\], one per worker, found \[2, 2\]"),
        (torch.tensor(1.0), r"shape \[N\], one per worker, found \[\]"),
        (torch.tensor([True, False]), "found a tensor of torch.bool"),
        (torch.tensor([1j]), "found a tensor of torch.complex64"),
        (["1.0"], r"the signal of worker 0 should be a number or None, found '1.0' \(str\)"),
        ([1.0, True], r"the signal of worker 1 should be a number or None, found True \(bool\)"),
        ([1.0, [2.0]], "the signal of worker 1 should be a number or None"),
        ("123", "a sequence of numbers, found str"),
        ({0: 1.0}, "a sequence of numbers, found dict"),
        ({1.0, 2.0}, "a sequence of numbers, found set"),
        (3.0, "a sequence of numbers, found float"),
        (None, "a sequence of numbers, found NoneType"),
    ],
)
def test_malformed_signals_are_refused(signals, message):
    with pytest.raises(ValueError, match=message):
        as_signals(signals)


@pytest.mark.parametrize("missing", [NAN, INF, -INF])
def test_missing_takes_the_mean_of_the_finite(missing):
    # (1 + 2 + 6) / 3 = 3
    values = torch.tensor([1.0, missing, 2.0, 6.0], dtype=torch.float64)
    assert_close(fill_missing(values), [1.0, 3.0, 2.0, 6.0])


def test_nothing_missing_changes_nothing():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert fill_missing(values) is values
    overflowing = torch.tensor([1.5e308, 1.5e308], dtype=torch.float64)
    assert fill_missing(overflowing).tolist() == [1.5e308, 1.5e308]


def test_nothing_finite_is_none():
    assert fill_missing(torch.tensor([NAN, INF, -INF], dtype=torch.float64)) is None


def test_the_mean_does_not_overflow():
    values = torch.tensor([1.7e308, NAN, 1.7e308, 1.7e308], dtype=torch.float64)
    assert fill_missing(values).tolist() == [1.7e308] * 4


@pytest.mark.parametrize("num_workers", range(2, 40))
def test_the_mean_of_equal_signals_is_that_signal_to_the_last_bit(num_workers):
    values = torch.full((num_workers,), 0.1, dtype=torch.float64)
    values[0] = NAN
    assert fill_missing(values).tolist() == [0.1] * num_workers


def test_all_present_is_no_mask():
    assert dropped_mask(None, 3) is None
    assert dropped_mask([True, True, True], 3) is None
    assert dropped_mask([True, False, True], 3).tolist() == [True, False, True]
    assert dropped_mask(torch.tensor([False, True]), 2).tolist() == [False, True]


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([True], r"shape \[2\], one bool per signal, found \[1\]"),
        (torch.ones(2, 1, dtype=torch.bool), r"found \[2, 1\]"),
        ([1, 0], "should hold bools, found torch.int64"),
        (torch.tensor([1.0, 0.0]), "should hold bools, found torch.float32"),
        ([False, False], "at least one of the 2 workers, found all dropped"),
    ],
)
def test_malformed_present_is_refused(present, message):
    with pytest.raises(ValueError, match=message):
        dropped_mask(present, 2)


def test_the_table():
    assert all(name == signal.name for name, signal in SIGNALS.items())
    assert {name: signal.when for name, signal in SIGNALS.items()} == {
        "return": "round",
        "reward_rate": "round",
        "value_target": "round",
        "success": "round",
        "success_episodes": "round",
        "return_variance": "round",
        "advantage_scale": "round",
        "gradient_noise": "round",
        "gradient_spread": "round",
        "gradient_agreement": "round",
        "loss": "minibatch",
        "policy_loss": "minibatch",
        "value_loss": "minibatch",
        "round_loss": "round",
        "round_policy_loss": "round",
        "round_value_loss": "round",
    }
    assert all(signal.unit and signal.meaning for signal in SIGNALS.values())


@pytest.mark.parametrize("scope", ["minibatch", "round"])
@pytest.mark.parametrize("loss", ["total", "policy", "value"])
def test_the_signal_of_a_loss(loss, scope):
    signal = SIGNALS[loss_signal(loss, scope)]
    assert (signal.loss, signal.when) == (loss, scope)
