import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rllib_weighted.merging import Average, LossWeighted, RewardWeighted, Sum, merge, weighted_sum
from tests.merging._asserts import assert_close, draw

NAN, INF = math.nan, math.inf
STRATEGIES = {
    "average": Average(),
    "sum": Sum(),
    "reward": RewardWeighted(),
    "reward low": RewardWeighted(direction="low", offset="min"),
    "loss": LossWeighted(),
    "loss softmax": LossWeighted(transform="softmax", temperature=0.7),
    "loss rank": LossWeighted(transform="rank", normalize=True),
    "loss top_k": LossWeighted(transform="top_k", top_k=2),
}
every = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


class Workers:
    """A small float64 network and the fixed data of N workers."""

    def __init__(self, num_workers: int) -> None:
        generator = torch.Generator().manual_seed(7)
        draw_normal = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.inputs = [draw_normal(5 + worker, 3) for worker in range(num_workers)]
        self.targets = [draw_normal(5 + worker, 2) for worker in range(num_workers)]
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(draw_normal(*parameter.shape))

    def loss(self, worker: int) -> Tensor:
        return (self.network(self.inputs[worker]) - self.targets[worker]).square().mean()

    def losses(self, workers: list[int]) -> Tensor:
        return torch.stack([self.loss(worker) for worker in workers])

    def gradient(self, loss: Tensor) -> Tensor:
        """[P], all parameters."""
        self.network.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in self.network.parameters()])

    def after_step(self, loss: Tensor) -> Tensor:
        """[P] parameters after one step of SGD; the network itself stays as it was."""
        before = torch.cat([p.detach().flatten() for p in self.network.parameters()])
        return before - 0.1 * self.gradient(loss)


def test_golden():
    # 2 * 1 + 3 * 0.5 = 3.5
    losses = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    total = weighted_sum(losses, torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert total.item() == 3.5
    total.backward()
    assert losses.grad.tolist() == [1.0, 0.5]


def test_weight_2_moves_the_parameters_as_two_identical_workers_with_weight_1():
    workers = Workers(2)
    start = workers.after_step(0.0 * workers.loss(0))
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
    one = workers.after_step(weighted_sum(workers.losses([0, 1]), weights))
    two = workers.after_step(weighted_sum(workers.losses([0, 1, 0]), torch.ones(3)))
    assert_close(one, two, atol=1e-14)
    assert float((one - start).abs().max()) > 1e-3


def test_negative_control_weight_2_is_not_weight_1():
    workers = Workers(2)
    once = workers.after_step(weighted_sum(workers.losses([0, 1]), torch.ones(2)))
    twice = workers.after_step(weighted_sum(workers.losses([0, 1, 0]), torch.ones(3)))
    with pytest.raises(AssertionError):
        assert_close(once, twice, atol=1e-4)


@every
@pytest.mark.parametrize("present", [None, [True, False, True, True, True]])
def test_against_one_backward_pass_per_worker(strategy, present):
    workers = Workers(5)
    signals = workers.losses([0, 1, 2, 3, 4]) if strategy.signal == "loss" else draw(5)
    weights = merge(strategy, signals, present=present).weights
    merged = workers.gradient(weighted_sum(workers.losses([0, 1, 2, 3, 4]), weights))
    expected = torch.zeros_like(merged)
    for worker, weight in enumerate(weights.tolist()):
        expected += weight * workers.gradient(workers.loss(worker))
    assert_close(merged, expected, atol=1e-13)
    assert float(merged.abs().max()) > 1e-3


def test_the_weights_are_constants():
    losses = torch.tensor([2.0, 3.0], requires_grad=True)
    weights = (losses * 2).double()
    weighted_sum(losses, weights).backward()
    assert losses.grad.tolist() == [4.0, 6.0]


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
@pytest.mark.parametrize("as_list", [False, True])
def test_the_garbage_of_a_dropped_worker_does_not_leak(garbage, as_list):
    losses = torch.tensor([2.0, garbage, 3.0], dtype=torch.float64, requires_grad=True)
    weights = merge(LossWeighted(), losses, present=[True, False, True], min_weight=0).weights
    total = weighted_sum(list(losses) if as_list else losses, weights)
    total.backward()
    # shares 2/5, 3/5: 4/5 + 9/5
    assert total.item() == pytest.approx(2.6, abs=1e-12)
    assert_close(losses.grad, [0.4, 0.0, 0.6])


def test_separate_losses_keep_a_dropped_workers_nan_out_of_the_parameters():
    workers = Workers(3)
    weights = merge(RewardWeighted(), draw(3), present=[True, False, True]).weights
    clean = workers.gradient(weighted_sum(workers.losses([0, 2]), weights[[0, 2]]))
    workers.inputs[1].fill_(NAN)
    losses = [workers.loss(worker) for worker in range(3)]
    merged = workers.gradient(weighted_sum(losses, weights))
    assert_close(merged, clean, atol=1e-14)
    assert float(merged.abs().max()) > 1e-3


def test_negative_control_a_product_with_zero_poisons_the_parameters():
    workers = Workers(3)
    weights = merge(RewardWeighted(), draw(3), present=[True, False, True]).weights
    workers.inputs[1].fill_(NAN)
    merged = workers.gradient((workers.losses([0, 1, 2]) * weights).sum())
    assert bool(merged.isnan().all())


def test_dtype_is_that_of_the_losses():
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert weighted_sum(torch.ones(2, dtype=dtype), weights).dtype == dtype


def test_all_weights_zero():
    losses = torch.tensor([NAN, 1.0], requires_grad=True)
    total = weighted_sum(losses, torch.zeros(2))
    total.backward()
    assert total.item() == 0.0
    assert losses.grad.tolist() == [0.0, 0.0]
    assert weighted_sum(list(losses), torch.zeros(2)).item() == 0.0


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2, 1), torch.ones(2, 1)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (torch.ones(0), torch.ones(0)),
        ([torch.tensor(1.0)], torch.ones(2)),
        ([], torch.ones(0)),
    ],
)
def test_malformed_shapes_are_refused(losses, weights):
    with pytest.raises(ValueError, match=r"should have the same shape \[N\]"):
        weighted_sum(losses, weights)
