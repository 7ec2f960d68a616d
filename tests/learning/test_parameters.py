import math

import pytest
import torch

from rllib_weighted.learning.parameters import (
    actor_gradients,
    drift,
    finite_rows,
    parameter_mean,
    weighted_rows,
)
from rllib_weighted.merging import ActorAverage, ActorSum, merge
from tests.merging._asserts import assert_close

NAN, INF = math.nan, math.inf


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def make_rows(n=4, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (3, 2), "b": (3,), "scalar": ()}
    return {
        name: torch.randn(n, *shape, generator=generator, dtype=dtype)
        for name, shape in shapes.items()
    }


def copies(stacks):
    return {name: rows.clone() for name, rows in stacks.items()}


def assert_same(actual, expected, *, atol=0.0):
    assert actual.keys() == expected.keys()
    for name, rows in expected.items():
        assert actual[name].dtype == rows.dtype
        torch.testing.assert_close(actual[name], rows, rtol=0.0, atol=atol, equal_nan=True)


# The gradients


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        # Mean 3: 1 + 3, 2 + 3, 6 + 3. Sum 9: 1 + 9, 2 + 9, 6 + 9.
        (ActorAverage(), [4.0, 5.0, 9.0]),
        (ActorSum(), [10.0, 11.0, 15.0]),
    ],
)
def test_golden(strategy, expected):
    own = {"w": f64([[1.0], [2.0], [6.0]])}
    weights = merge(strategy, [0.0] * 3).weights
    moved = actor_gradients(own, weighted_rows(own, weights))
    assert_close(moved["w"], [[value] for value in expected])


@pytest.mark.parametrize(
    ("strategy", "expected"), [(ActorAverage(), [4.5, 9.5]), (ActorSum(), [8.0, 13.0])]
)
def test_a_dropped_worker_was_never_there(strategy, expected):
    # Of 1 and 6: mean 3.5, sum 7.
    own = {"w": f64([[1.0], [NAN], [6.0]])}
    weights = merge(strategy, [0.0] * 3, present=[True, False, True]).weights
    moved = actor_gradients(own, weighted_rows(own, weights))["w"]
    assert_close(moved[[0, 2]], [[value] for value in expected])
    assert moved[1].isnan().all()


def test_weighted_rows_against_a_loop():
    own, weights = make_rows(), f64([0.5, 2.0, 0.0, 1.25])
    expected = {}
    for name, rows in own.items():
        total = torch.zeros_like(rows[0])
        for row, weight in zip(rows, weights.tolist(), strict=True):
            total += weight * row
        expected[name] = total
    assert_same(weighted_rows(own, weights), expected, atol=1e-14)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_garbage_with_weight_0_does_not_leak(garbage):
    own, weights = make_rows(), f64([0.5, 0.0, 1.0, 0.0])
    clean = weighted_rows(own, weights)
    for rows in own.values():
        rows[1], rows[3] = garbage, garbage
    assert_same(weighted_rows(own, weights), clean)
    # Negative control: with a weight it does.
    assert all(v.isnan().any() or v.isinf().any() for v in weighted_rows(own, weights + 1).values())


def test_all_weights_zero_give_zeros():
    own = {"w": f64([[NAN, 1.0], [2.0, NAN]])}
    assert weighted_rows(own, torch.zeros(2))["w"].tolist() == [0.0, 0.0]


def test_dtype_is_that_of_the_gradients():
    own = make_rows(dtype=torch.float32)
    merged = weighted_rows(own, torch.ones(4, dtype=torch.float64))
    assert {rows.dtype for rows in merged.values()} == {torch.float32}
    assert {rows.dtype for rows in actor_gradients(own, merged).values()} == {torch.float32}


def test_inputs_are_not_mutated():
    own = make_rows()
    before = copies(own)
    actor_gradients(own, weighted_rows(own, torch.ones(4)))
    finite_rows(own)
    parameter_mean(own)
    drift(own)
    assert_same(own, before)


# Finite rows


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["w", "b", "scalar"])
def test_rows_that_are_not_finite_are_found(garbage, name):
    own = make_rows()
    assert finite_rows(own).tolist() == [True] * 4
    own[name][2].view(-1)[0] = garbage
    assert finite_rows(own).tolist() == [True, True, False, True]


def test_opposite_infinities_and_huge_numbers_are_told_apart():
    huge = torch.finfo(torch.float32).max
    own = {"w": torch.tensor([[INF, -INF], [huge, huge]])}
    assert finite_rows(own).tolist() == [False, True]


# Mean and drift


def test_mean_and_drift_by_hand():
    # Mean (3, 4), norm 5; the distances are 0 and twice the norm of (0.3, 0.4), 0.5.
    stacks = {"w": f64([[3.0], [3.3], [2.7]]), "b": f64([[4.0], [4.4], [3.6]])}
    mean = parameter_mean(stacks)
    assert_close(mean["w"], [3.0])
    assert_close(mean["b"], [4.0])
    assert_close(drift(stacks), [0.0, 0.1, 0.1])


def test_drift_against_a_loop():
    stacks = make_rows(5)
    flat = torch.cat([rows.reshape(5, -1) for rows in stacks.values()], dim=1)
    mean = flat.sum(0) / 5
    expected = [float((row - mean).norm() / mean.norm()) for row in flat]
    assert_close(drift(stacks), expected)


@pytest.mark.parametrize("num_workers", [1, 3, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_identical_workers_have_not_drifted_by_a_bit(num_workers, dtype):
    one = make_rows(1, dtype=dtype)
    stacks = {name: rows.expand(num_workers, *rows.shape[1:]).clone() for name, rows in one.items()}
    mean = parameter_mean(stacks)
    if dtype != torch.float64:  # Whose sum of 3 or 7 may round.
        assert_same(mean, {name: rows[0] for name, rows in one.items()})
        assert drift(stacks).tolist() == [0.0] * num_workers
    assert float(drift(stacks).max()) < 1e-15
    assert {rows.dtype for rows in mean.values()} == {dtype}


def test_drift_of_zeros_and_of_garbage():
    assert drift({"w": torch.zeros(2, 3)}).tolist() == [0.0, 0.0]
    assert drift({"w": f64([[1.0], [-1.0]])}).tolist() == [INF, INF]
    assert drift({"w": f64([[1.0], [NAN]])}).isnan().all()


def test_mean_and_drift_carry_no_gradient():
    stacks = {name: rows.requires_grad_() for name, rows in make_rows().items()}
    assert not drift(stacks).requires_grad
    assert not any(rows.requires_grad for rows in parameter_mean(stacks).values())
