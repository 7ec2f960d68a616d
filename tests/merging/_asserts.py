"""Properties that a way to weigh may claim, and inputs that have a property by construction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weigh = Callable[[Tensor], Tensor]


def draw(num_workers: int, *, seed: int = 0, low: float = -5.0, high: float = 5.0) -> Tensor:
    """[N] float64 signals between `low` and `high`."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(num_workers, generator=generator, dtype=torch.float64)
    return low + (high - low) * unit


def assert_close(actual: Tensor, expected: Tensor | list[float], *, atol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


def assert_shares(shares: Tensor, num_workers: int) -> None:
    assert shares.dtype == torch.float64
    assert shares.shape == (num_workers,)
    assert not shares.requires_grad
    assert bool(torch.isfinite(shares).all())
    assert bool((shares >= 0).all())
    assert abs(float(shares.sum()) - 1.0) <= 1e-12


def assert_permutation_equivariant(weigh: Weigh, signals: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        order = torch.randperm(len(signals), generator=generator)
        assert_close(weigh(signals[order]), weigh(signals)[order])


def assert_scaling_invariant(weigh: Weigh, signals: Tensor) -> None:
    for factor in (1e-3, 0.5, 7.0, 1e6):
        assert_close(weigh(factor * signals), weigh(signals))


def assert_shift_invariant(weigh: Weigh, signals: Tensor) -> None:
    for shift in (-64.0, -1.0, 0.5, 32.0):
        assert_close(weigh(signals + shift), weigh(signals), atol=1e-11)


def assert_monotone(weigh: Weigh, signals: Tensor) -> None:
    weights = weigh(signals)[signals.argsort()]
    assert bool((weights.diff() >= 0).all())
    assert float(weights[-1]) > float(weights[0])


def assert_single_worker_is_identity(weigh: Weigh) -> None:
    for signal in (-3.0, 0.0, 1e-300, 4.0):
        assert_close(weigh(torch.tensor([signal], dtype=torch.float64)), [1.0])


def assert_input_not_mutated(weigh: Weigh, signals: Tensor) -> None:
    before = signals.clone()
    weigh(signals)
    assert torch.equal(signals, before)


def oracle_proportional(signals: list[float], offset: str) -> list[float]:
    """The definition as a plain loop, for signals that are not all equal after the shift."""
    lowest = min(signals)
    shift = -lowest if offset == "min" else max(0.0, -lowest)
    total = 0.0
    for signal in signals:
        total += signal + shift
    return [(signal + shift) / total for signal in signals]
