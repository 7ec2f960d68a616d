from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY

from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from rllib_weighted.learning.losses import (
    WorkerLosses,
    losses_one_by_one,
    ppo_worker_losses,
    segment_means,
)
from rllib_weighted.learning.minibatches import Minibatch
from tests.learning.helpers import SGD, learner_of, make_episodes, make_request, pooled_group

VALUES = torch.tensor([[1.0, 10], [3, 30], [5, 50], [7, 70]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2, 2), [[2, 20], [6, 60]]),  # (1 + 3) / 2, (5 + 7) / 2
        ((1, 3), [[1, 10], [5, 50]]),  # (3 + 5 + 7) / 3
        ((3, 1), [[3, 30], [7, 70]]),
        ((4,), [[4, 40]]),
        ((1, 1, 1, 1), VALUES.tolist()),
    ],
)
def test_segment_means_by_hand(sizes, expected):
    assert segment_means(VALUES, sizes).tolist() == expected


@pytest.mark.parametrize("sizes", [(5, 5, 5), (1, 9, 5), (15,)])
def test_segment_means_and_their_gradients_equal_a_slow_loop(sizes):
    torch.manual_seed(0)
    values = torch.randn(15, 3, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(len(sizes), 3, dtype=torch.float64)
    found = segment_means(values, sizes)
    expected = torch.stack([part.mean(0) for part in values.split(list(sizes))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad((found * factors).sum(), values)
    rows = torch.cat([f.expand(n, 3) / n for f, n in zip(factors, sizes, strict=True)])
    torch.testing.assert_close(gradient, rows, rtol=0, atol=1e-14)


class _Policy:
    """A distribution with given log-probability, entropy and KL divergence per row."""

    def __init__(self, logits):
        self.logits = logits

    @classmethod
    def from_logits(cls, logits):
        return cls(logits)

    def logp(self, actions):
        return self.logits[:, 0] + 0 * actions

    def entropy(self):
        return self.logits[:, 1]

    def kl(self, other):
        return self.logits[:, 2] - other.logits[:, 2]


class _Module:
    def get_train_action_dist_cls(self):
        return _Policy

    get_exploration_action_dist_cls = get_train_action_dist_cls

    def compute_values(self, batch, embeddings=None):
        return embeddings if embeddings is not None else batch["values"]


class _Config:
    clip_param = 0.25
    vf_clip_param = 9.0
    vf_loss_coeff = 0.5
    use_critic = True
    use_kl_loss = True


def _hand_case(**overrides):
    """Worker 0 has rows 0 and 1, worker 1 has row 2; ratios are 2, 1 and 1/2."""
    ratio = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    before = torch.tensor([[0.0, 0.0, 3.0]] * 3, dtype=torch.float64)
    now = torch.stack(
        [ratio.log(), torch.tensor([4.0, 6.0, 8.0]), torch.tensor([1.0, 2.0, 3.0])], 1
    )
    batch = {
        "actions": torch.zeros(3),
        "action_logp": torch.zeros(3, dtype=torch.float64),
        "action_dist_inputs": before,
        "advantages": torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64),
        "value_targets": torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        "values": torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64),
    }
    config = _Config()
    for name, value in overrides.items():
        setattr(config, name, value)
    return ppo_worker_losses(
        module=_Module(),
        settings=config,
        batch=batch,
        fwd_out={"action_dist_inputs": now},
        sizes=[2, 1],
        entropy_coeff=0.1,
        kl_coeff=2.0,
    )


def test_ppo_losses_by_hand():
    found = _hand_case()
    # Row 0: min(1 x 2, 1 x 1.25) = 1.25. Row 1: 3. Row 2: min(-2 x 0.5, -2 x 0.75) = -1.5.
    assert found.policy.tolist() == [-(1.25 + 3) / 2, 1.5]
    # Squared errors 4, 16, 0, clipped at 9.
    assert found.value.tolist() == [(4 + 9) / 2, 0]
    assert found.value_unclipped.tolist() == [10, 0]
    assert found.entropy.tolist() == [5, 8]
    assert found.kl.tolist() == [1.5, 0]  # 3 - 1, 3 - 2 | 3 - 3
    expected = [-2.125 + 0.5 * 6.5 - 0.1 * 5 + 2 * 1.5, 1.5 + 0 - 0.1 * 8 + 0]
    assert found.total.tolist() == pytest.approx(expected, abs=1e-12)


def test_ppo_losses_without_critic_and_without_kl():
    plain = _hand_case(use_critic=False, use_kl_loss=False)
    assert plain.value.tolist() == [0, 0]
    assert plain.kl.tolist() == [0, 0]
    assert plain.total.tolist() == pytest.approx([-2.125 - 0.5, 1.5 - 0.8], abs=1e-12)
    assert _hand_case(vf_clip_param=None).value.tolist() == [10, 0]  # not clipped
    assert _hand_case(vf_clip_param=math.inf).value.tolist() == [10, 0]


def _both_paths(num_rows=((6, 5), (7, 4)), parts=None, **training):
    learner = learner_of(pooled_group(len(num_rows), SGD, **training))
    episodes = make_episodes(num_rows)
    data = WorkerTrainingData.from_workers(group_by_worker(episodes, num_workers=len(num_rows)))
    module_id, batch = learner._round_batch(data)
    minibatch = Minibatch.of(batch.rows if parts is None else parts)
    workers = list(minibatch.parts)
    fast = learner.worker_losses(module_id, batch, minibatch, workers)
    columns = batch.take(minibatch.rows(workers))
    slow = losses_one_by_one(
        learner,
        module_id,
        columns,
        learner.module[module_id].forward_train(columns),
        [len(part) for part in minibatch.parts.values()],
    )
    return fast, slow


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"use_kl_loss": True, "kl_coeff": 0.7},
        {"use_critic": False},
        {"vf_clip_param": 0.3, "clip_param": 0.01, "entropy_coeff": 0.5},
    ],
)
@pytest.mark.parametrize(
    "parts", [None, {0: np.array([0, 3]), 1: np.array([12, 11])}, {1: np.array([13, 20, 20])}]
)
def test_the_fast_path_and_rllibs_own_loss_agree_worker_by_worker(training, parts):
    fast, slow = _both_paths(parts=parts, **training)
    for name in ("total", "policy", "value", "value_unclipped", "entropy", "kl"):
        one, other = getattr(fast, name).double(), getattr(slow, name).double()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, msg=name)
    assert fast.total.std(correction=0) > 0 or len(fast.total) == 1
    torch.testing.assert_close(fast.total, slow.total, rtol=1e-12, atol=1e-12)


def test_parts_are_asked_for_by_name():
    losses = WorkerLosses(torch.ones(2), policy=torch.zeros(2))
    assert losses.part("total") is losses.total
    assert losses.part("policy") is losses.policy
    with pytest.raises(ValueError, match=r'"loss"\]="value".*super\(\).*"loss": "total"'):
        losses.part("value")


class Unlogged(WeightedPPOLearner):
    """A custom loss that reports no parts."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        return fwd_out["action_dist_inputs"].square().mean()


class HalfLogged(Unlogged):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        self.metrics.log_value((module_id, POLICY_LOSS_KEY), 2 * loss, window=1)
        return loss


@pytest.mark.parametrize(("cls", "known"), [(Unlogged, False), (HalfLogged, True)])
def test_a_custom_loss_reports_the_parts_that_it_logs(cls, known):
    learner = learner_of(pooled_group(2, cls))
    data = WorkerTrainingData.from_workers(
        group_by_worker(make_episodes([[4], [6]]), num_workers=2)
    )
    module_id, batch = learner._round_batch(data)
    losses = learner.worker_losses(module_id, batch, Minibatch.of(batch.rows), [0, 1])
    assert (losses.policy is not None) == known
    assert losses.value is None
    if known:
        torch.testing.assert_close(losses.policy, 2 * losses.total.detach())
    assert {VF_LOSS_KEY, ENTROPY_KEY}.isdisjoint(learner.metrics.peek((module_id,), default={}))


@pytest.mark.parametrize("is_stock", [True, False])
def test_a_policy_that_does_not_say_its_log_probabilities_is_told_so(is_stock: bool) -> None:
    class OwnLoss(WeightedPPOLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return super().compute_loss_for_module(**kwargs)

    group = pooled_group(2, None if is_stock else OwnLoss, fast_learner=False)
    episodes = make_episodes([[5], [5]])
    for episode in episodes:
        del episode.extra_model_outputs[Columns.ACTION_LOGP]
    with pytest.raises(ValueError, match=r"`action_logp`.*found none.*`forward_exploration`"):
        group.update(episodes=episodes, merge=make_request(2, "average"))
