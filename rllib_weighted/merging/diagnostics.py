"""What the workers' gradients say of a merge: signal, noise, and what weights would gain.

Estimates from two half-batch gradients per worker, g_a and g_b, at the same parameters. With
g_i = (g_a + g_b) / 2 and N workers:

    sigma_i^2 = |g_a - g_b|^2 / 4             noise of g_i within the worker's batch
    G^2 = mean over i != j of g_i . g_j       squared signal
    tau^2 = max(0, sum_i |g_i - mean|^2 / (N - 1) - mean sigma^2)    spread between workers
    rho = mean (sigma^2 + tau^2) / (N G^2)    noise over signal of the average

The noise scale is that of McCandlish et al. (arXiv 1812.06162). Rows of long episodes depend on
each other, so that sigma^2 is a lower bound where halves are drawn step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_TINY = 1e-30


@dataclass(frozen=True)
class GradientSums:
    """Sums over the half-batch gradients of N workers, of one part of the loss. All float64.

    Args:
        noise: [N], |g_a - g_b|^2 / 4.
        squares: [N], |g_i|^2.
        dots: [N], g_i . sum_j g_j.
        ahead: [N], g_a of the worker . mean over all workers of g_b.
        total: [], |sum_i g_i|^2.
    """

    noise: Tensor
    squares: Tensor
    dots: Tensor
    ahead: Tensor
    total: Tensor

    @staticmethod
    def of(first: Tensor, second: Tensor) -> GradientSums:
        """Returns the sums of all workers' gradients of their two halves, [N, P] each."""
        first, second = first.double(), second.double()
        return GradientSums.of_rows(first, second, first.sum(0), second.sum(0))

    @staticmethod
    def of_rows(
        first: Tensor, second: Tensor, all_first: Tensor, all_second: Tensor
    ) -> GradientSums:
        """Returns the rows of some workers; `all_first`, `all_second` [P] are the sums over all."""
        gradients, overall = (first + second) / 2, (all_first + all_second) / 2
        # Products in the precision of the gradients: a copy in another takes longer than they do.
        return GradientSums(
            noise=(first - second).square_().sum(1, dtype=torch.float64) / 4,
            squares=torch.linalg.vector_norm(gradients, dim=1).double().square(),
            dots=(gradients @ overall.to(gradients)).double(),
            ahead=(first @ all_second.to(first)).double(),
            total=overall.square().sum(),
        )


@dataclass(frozen=True)
class Diagnostics:
    """Estimates for one part of the loss. Unbiased, where rows are independent, but for ratios.

    Args:
        signal_norm: G^2; below 0 where noise hides the signal.
        noise_scale: rho.
        heterogeneity: tau^2 / mean sigma^2.
        agreement: Mean of `agreements`; NaN with one worker.
        noises: [N], sigma_i^2.
        spread: tau^2.
        agreements: [N], cosine of g_i and the mean of the others; NaN where one of them is 0.
        speed: Name of a strategy -> predicted speed against the average; see `predicted_speed`.
        gain: Name of a strategy -> measured one-step gain against the average; see `one_step_gain`.
        parts: "policy" and "value" -> the same of that part of the loss; {} if it is unknown.
    """

    signal_norm: float
    noise_scale: float
    heterogeneity: float
    agreement: float
    noises: list[float]
    spread: float
    agreements: list[float]
    speed: dict[str, float] = field(default_factory=dict)
    gain: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Diagnostics] = field(default_factory=dict)


def diagnose(sums: GradientSums, weights: Mapping[str, Tensor] | None = None) -> Diagnostics:
    """Returns the estimates, and what some weights would gain.

    Args:
        sums: Those of N >= 1 workers.
        weights: Name -> [N] weights, of any sum > 0.
    """
    num = len(sums.noise)
    mean_noise = sums.noise.mean()
    spread = torch.zeros_like(mean_noise)
    signal = mean_noise.new_tensor(torch.nan)
    if num > 1:
        between = (sums.squares.sum() - sums.total / num) / (num - 1)
        spread = (between - mean_noise).clamp_min(0)
        signal = (sums.total - sums.squares.sum()) / (num * (num - 1))
    variances = sums.noise + spread
    scale = variances.mean() / (num * signal.clamp_min(_TINY))
    others = (sums.total - 2 * sums.dots + sums.squares).clamp_min(0)
    agreements = (sums.dots - sums.squares) / (sums.squares * others).sqrt()
    given = weights or {}
    return Diagnostics(
        signal_norm=float(signal),
        noise_scale=float(scale),
        heterogeneity=float(spread / mean_noise.clamp_min(_TINY)),
        agreement=float(agreements.nanmean()),
        noises=sums.noise.tolist(),
        spread=float(spread),
        agreements=agreements.tolist(),
        speed={name: predicted_speed(w, variances, float(scale)) for name, w in given.items()},
        gain={name: one_step_gain(w, variances, sums.ahead) for name, w in given.items()},
    )


def predicted_speed(weights: Tensor, variances: Tensor, noise_scale: float) -> float:
    """(1 + rho) / (1 + rho N sum_i w_i^2 v_i / mean v), the speed of weights against the average.

    Where the workers' expected gradients are equal, an average over more noise needs more steps:
    the fewer, the smaller sum w_i^2 v_i is.

    Args:
        weights: [N], divided by their sum here.
        variances: [N], v_i = sigma_i^2 + tau^2.
        noise_scale: rho.
    """
    mean = float(variances.mean())
    if not mean > 0:
        return 1.0
    parts = weights / weights.sum()
    relative = float(len(parts) * (parts.square() * variances).sum()) / mean
    return (1 + noise_scale) / (1 + noise_scale * relative)


def one_step_gain(weights: Tensor, variances: Tensor, ahead: Tensor) -> float:
    """Progress of one step over its noise, against the average's.

    The progress is the projection of sum_i w_i g_a on the mean of g_b, which is an independent
    measurement: it also counts where expected gradients differ.

    Args:
        weights: [N], divided by their sum here.
        variances: [N], sigma_i^2 + tau^2.
        ahead: [N], g_a . mean g_b.
    """
    parts = weights / weights.sum()
    equal = torch.full_like(parts, 1 / len(parts))

    def progress(w: Tensor) -> Tensor:
        return (w * ahead).sum() / (w.square() * variances).sum().sqrt()

    return float(progress(parts) / progress(equal))
