"""Action distributions and their derivatives: by hand, by torch.distributions, by autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as td

from rllib_weighted.learning.closed_form.loss import Categorical, DiagonalGaussian

ROWS, SIZE = 7, 3
LN2, LN3 = math.log(2), math.log(3)
LOG_2PI = math.log(2 * math.pi)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# p = (1/4, 3/4), action 1: log p = ln 3/4. H = ln 4 / 4 + 3/4 (ln 4 - ln 3) = 2 ln 2 - 3/4 ln 3.
# From q = (1/2, 1/2): KL = ln(2) / 2 + ln(2/3) / 2 = ln 2 - ln(3) / 2.
def test_two_actions_by_hand():
    policy = Categorical(tensor([0.0, LN3]), tensor([0.0, 1.0]), tensor([5.0, 5.0]))
    assert policy.logp.tolist() == pytest.approx([LN3 - 2 * LN2])
    assert policy.entropy.tolist() == pytest.approx([2 * LN2 - 0.75 * LN3])
    assert policy.kl.tolist() == pytest.approx([LN2 - LN3 / 2])
    one, two, three = (torch.tensor([x], dtype=torch.float64) for x in (1, 2, 3))
    # d log p_1 / dz = (0, 1) - p
    assert policy.backward(one, None, None).tolist() == [pytest.approx([-0.25, 0.25])]
    # dH/dz_1 = -p_1 (log p_1 + H) = -3/4 (ln 3 / 4), and the opposite for z_0.
    assert policy.backward(0 * one, two, None).tolist() == [
        pytest.approx([2 * 3 / 16 * LN3, -2 * 3 / 16 * LN3])
    ]
    # dKL/dz = p - q
    assert policy.backward(0 * one, None, three).tolist() == [pytest.approx([-0.75, 0.75])]


# Mean 1, deviation 2, action 3: z = 1. From mean 0, deviation 1:
# KL = ln 2 + (1 + 1) / (2 * 4) - 1/2 = ln 2 - 1/4.
def test_one_gaussian_by_hand():
    before = tensor([0.0]), tensor([0.0])
    policy = DiagonalGaussian(tensor([1.0]), tensor([LN2]), tensor([3.0]), before)
    assert policy.logp.tolist() == pytest.approx([-0.5 - LN2 - 0.5 * LOG_2PI])
    assert policy.entropy.tolist() == pytest.approx([LN2 + 0.5 + 0.5 * LOG_2PI])
    assert policy.kl.tolist() == pytest.approx([LN2 - 0.25])
    one = torch.ones(1, dtype=torch.float64)
    # (a - mu) / sigma^2 = 2/4; z^2 - 1 = 0.
    assert policy.backward(one, None, None).tolist() == [pytest.approx([0.5, 0.0], abs=1e-15)]
    assert policy.backward(0 * one, 3 * one, None).tolist() == [pytest.approx([0.0, 3.0])]
    # (mu - mu_0) / sigma^2 = 1/4; 1 - (1 + 1) / 4 = 1/2.
    assert policy.backward(0 * one, None, one).tolist() == [pytest.approx([0.25, 0.5])]


def categorical(inputs: Tensor, before: Tensor | None):
    actions = torch.arange(ROWS) % SIZE
    ours = Categorical(inputs.detach(), F.one_hot(actions, SIZE).double(), before)
    return ours, td.Categorical(logits=inputs), actions


def gaussian(inputs: Tensor, before: Tensor | None):
    actions = draw(ROWS, SIZE, seed=3)
    mean, log_std = inputs.detach().chunk(2, -1)
    pair = None if before is None else tuple(before.chunk(2, -1))
    ours = DiagonalGaussian(mean, log_std, actions, pair)
    return ours, normal(inputs), actions


def normal(inputs: Tensor) -> td.Distribution:
    mean, log_std = inputs.chunk(2, -1)
    return td.Independent(td.Normal(mean, log_std.exp()), 1)


KINDS = {
    "categorical": (categorical, SIZE, lambda inputs: td.Categorical(logits=inputs)),
    "gaussian": (gaussian, 2 * SIZE, normal),
}


@pytest.mark.parametrize(("make", "width", "distribution"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("with_kl", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_numbers_and_derivatives_equal_those_of_torch(
    make, width, distribution, with_kl, with_entropy
):
    inputs = draw(ROWS, width, seed=1).requires_grad_()
    before = draw(ROWS, width, seed=2) if with_kl else None
    ours, theirs, actions = make(inputs, before)
    terms = [theirs.log_prob(actions), theirs.entropy()]
    if before is None:
        assert ours.kl is None
    else:
        terms.append(td.kl_divergence(distribution(before), theirs))
    for found, wanted in zip((ours.logp, ours.entropy, ours.kl), terms, strict=False):
        torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-12)
    factors = [draw(ROWS, seed=10 + k) for k in range(3)]
    used = [True, with_entropy, with_kl]
    loss = sum(
        (term * factor).sum()
        for term, factor, wanted in zip(terms, factors, used, strict=False)
        if wanted
    )
    (expected,) = torch.autograd.grad(loss, inputs)
    given = [factor if wanted else None for factor, wanted in zip(factors, used, strict=True)]
    found = ours.backward(*given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    # Nothing is used up: the same again, and the numbers are still there.
    assert torch.equal(ours.backward(*given), found)
    torch.testing.assert_close(ours.logp, terms[0].detach(), rtol=0, atol=1e-12)


def test_an_action_that_is_all_but_certain():
    """log p in one piece: the probability of the others is 0 in float32."""
    logits = torch.tensor([[200.0, 0.0]])
    policy = Categorical(logits, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
    assert policy.logp.tolist() == [-200.0]
    assert policy.entropy.tolist() == [0.0]
    one = torch.ones(1)
    assert policy.backward(one, one, one).isfinite().all()
