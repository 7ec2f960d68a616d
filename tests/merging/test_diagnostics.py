"""The estimates against workers whose signal and noise are known."""

import math

import pytest
import torch

from rllib_weighted.merging import GradientSums, diagnose
from rllib_weighted.merging.diagnostics import one_step_gain, predicted_speed


def halves(num, size, *, noise, spread=0.0, signal=1.0, seed=0):
    """[num, size] each: gradient `signal` in every entry, a worker's own shift, and noise.

    A half has twice the variance of the whole, so that |g_i - E g_i|^2 = noise_i.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(num, size, generator=generator, dtype=torch.float64)

    scale = torch.as_tensor(noise, dtype=torch.float64).expand(num).sqrt()[:, None]
    mean = signal + normal() * math.sqrt(spread / size)
    return tuple(mean + normal() * scale * math.sqrt(2 / size) for _ in range(2))


def mean_over(draws, pick, **kwargs):
    found = [diagnose(GradientSums.of(*halves(seed=s, **kwargs))) for s in range(draws)]
    values = torch.tensor([pick(each) for each in found], dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(draws))


def test_the_estimates_are_unbiased():
    known = {"num": 6, "size": 20, "noise": [1.0, 2.0, 4.0, 1.0, 2.0, 8.0], "spread": 3.0}
    for pick, true in (
        (lambda d: d.signal_norm, 20.0),  # |E g|^2 = 20 entries of 1
        (lambda d: d.noises[0], 1.0),
        (lambda d: d.noises[5], 8.0),
        (lambda d: d.spread, 3.0),
    ):
        mean, error = mean_over(400, pick, **known)
        assert abs(mean - true) < 4 * error, (mean, true, error)
        assert error < 0.1 * true  # The test could tell a bias of 40 %.


def test_the_signal_is_unbiased_where_there_is_none():
    found = [
        diagnose(GradientSums.of(*halves(4, 10, noise=5.0, signal=0.0, seed=s))).signal_norm
        for s in range(400)
    ]
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20
    assert float(values.min()) < 0  # Reported as it is.


def test_by_hand():
    first = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    second = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    # g = (1, 0), (0, 2). sigma^2 = 4/4, 0. g_1 . g_2 = 0.
    # tau^2 = ((1/4 + 1) + (1/4 + 1)) / 1 - 1/2 = 2
    found = diagnose(GradientSums.of(first, second))
    assert found.noises == [1.0, 0.0]
    assert found.signal_norm == 0.0
    assert found.spread == 2.0
    assert found.heterogeneity == 4.0
    assert found.agreements == [0.0, 0.0]
    sums = GradientSums.of(first, second)
    # g_a . (0, 1), the mean of g_b
    assert sums.ahead.tolist() == [0.0, 4.0]


def test_agreement_by_a_slow_loop():
    first, second = halves(5, 7, noise=3.0)
    gradients = (first + second) / 2
    found = diagnose(GradientSums.of(first, second))
    for i in range(5):
        others = torch.stack([gradients[j] for j in range(5) if j != i]).mean(0)
        cosine = torch.nn.functional.cosine_similarity(gradients[i], others, dim=0)
        assert found.agreements[i] == pytest.approx(float(cosine), abs=1e-12)


def test_the_noise_scale():
    # (sigma^2 + tau^2) / (N G^2) = 4 / (8 x 20)
    mean, error = mean_over(300, lambda d: d.noise_scale, num=8, size=20, noise=4.0)
    assert mean == pytest.approx(4 / 160, abs=max(5 * error, 0.002))


@pytest.mark.parametrize("num", [1, 2])
def test_few_workers(num):
    found = diagnose(GradientSums.of(*halves(num, 3, noise=1.0)), {"a": torch.ones(num)})
    assert math.isnan(found.signal_norm) == (num == 1)
    assert len(found.noises) == num


def test_predicted_speed_by_hand():
    equal = torch.tensor([1.0, 1.0])
    # rho = 1; one worker alone: N sum w^2 = 2: (1 + 1) / (1 + 2)
    assert predicted_speed(torch.tensor([1.0, 0.0]), equal, 1.0) == pytest.approx(2 / 3)
    assert predicted_speed(torch.tensor([3.0, 3.0]), equal, 1.0) == pytest.approx(1.0)
    # v = 1, 3: inverse variance 3/4, 1/4: 2 (9/16 + 3/16) / 2 = 3/4: 2 / 1.75
    inverse = torch.tensor([0.75, 0.25])
    assert predicted_speed(inverse, torch.tensor([1.0, 3.0]), 1.0) == pytest.approx(8 / 7)
    assert predicted_speed(inverse, torch.zeros(2), 1.0) == 1.0


def test_the_predicted_speed_is_that_of_many_noisy_steps():
    """Weights (1, 0, 0, 0) against the average: the error of their estimates, measured."""
    noise, num = 2.0, 4
    draws = torch.stack([sum(halves(num, 5, noise=noise, seed=s)) / 2 for s in range(3000)])
    error = [float((d - 1.0).square().sum(-1).mean()) for d in (draws.mean(1), draws[:, 0])]
    # Steps to a given progress ~ (signal + noise) / signal.
    signal = 5.0
    measured = (signal + error[0]) / (signal + error[1])
    alone = torch.tensor([1.0, 0.0, 0.0, 0.0])
    predicted = predicted_speed(alone, torch.full((4,), noise), noise / (num * signal))
    assert predicted == pytest.approx(measured, rel=0.03)


def test_one_step_gain():
    variances, ahead = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 0.0])
    # Alone: 4 / 1; the average: 2 / sqrt(1/2)
    gain = one_step_gain(torch.tensor([1.0, 0.0]), variances, ahead)
    assert gain == pytest.approx(4 / (2 / math.sqrt(0.5)))
    assert one_step_gain(torch.tensor([2.0, 2.0]), variances, ahead) == pytest.approx(1.0)
