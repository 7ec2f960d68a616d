"""A worker that is dropped leaves no trace: as if it had never been there."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.learner import WeightedPPOLearner
from tests.learning.helpers import (
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    optimizer_is_finite,
    pooled_group,
    run_update,
)

LENGTHS = [[6, 4], [2, 17], [6]]
REWARDS = [2.0, 100.0, 4.0]
STRATEGIES = ["average", "sum", "reward_weighted", "loss_weighted"]
MARK = 5.0  # An observation that only the bad worker sees.
BAD = 1


def _reward(episode, bad):
    episode.rewards.data[3] = bad


def _obs(episode, bad):
    episode.observations.data[1] = bad


def _bootstrap_obs(episode, bad):
    episode.observations.data[-1] = bad


def _logp(episode, bad):
    episode.extra_model_outputs["action_logp"].data[3] = bad


def _dist_inputs(episode, bad):
    episode.extra_model_outputs["action_dist_inputs"].data[3] = bad


def _mark(episode, bad=MARK):
    episode.observations.data[:, 0] = bad


def spoiled(spoil, bad=math.nan):
    episodes = make_episodes(LENGTHS)
    spoil(next(e for e in episodes if len(e) == 17), bad)
    return episodes


def without_the_bad_worker():
    return [e for e in make_episodes(LENGTHS) if e.custom_data[WORKER_KEY] != BAD]


def compare(cls, episodes, request, *, reason, strategy="average", **kwargs):
    """Updates with the bad worker and without it; returns the report of the former."""
    training = kwargs.pop("training", {})
    group, expected = (pooled_group(3, cls, **training) for _ in range(2))
    before = flat_parameters(group)
    report = run_update(group, episodes, request, **kwargs)
    other = run_update(expected, without_the_bad_worker(), request, **kwargs)
    assert torch.equal(flat_parameters(group), flat_parameters(expected))
    assert not torch.equal(flat_parameters(group), before)
    assert optimizer_is_finite(group)
    assert report.drops[0] is report.drops[2] is None
    assert reason in report.drops[BAD]
    assert report.num_steps == other.num_steps > 0
    assert report.num_skipped_steps == 0
    assert (report.shares, report.weights, report.losses, report.signals) == (
        other.shares,
        other.weights,
        other.losses,
        other.signals,
    )
    assert report.weights[BAD] == 0
    return report


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("spoil", "column"),
    [(_reward, "rewards"), (_obs, "obs"), (_bootstrap_obs, "adv"), (_logp, "action_logp")],
)
def test_numbers_that_are_not_finite(spoil, column, bad):
    request = make_request(3, "reward_weighted", rewards=REWARDS)
    compare(
        None,
        spoiled(spoil, bad),
        request,
        reason=column,
        num_epochs=2,
        minibatch_size=5,  # 16 steps of two workers: 3 minibatches, not the 7 of 35
        shuffle_batch_per_epoch=True,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", ["worker", "batch"])
def test_every_strategy(strategy, mode):
    request = make_request(3, strategy, rewards=REWARDS, min_weight=0.1)
    training = {"advantage_normalization": mode}
    compare(None, spoiled(_reward), request, reason="rewards", num_epochs=3, training=training)


def test_random_shares_are_those_without_the_worker():
    request = make_request(3, "loss_weighted", {"transform": "random"})
    compare(None, spoiled(_reward), request, reason="rewards", num_epochs=5)


def test_the_losses_of_the_round_are_those_without_the_worker():
    request = make_request(3, "loss_weighted", {"scope": "round", "offset": "min"})
    compare(None, spoiled(_reward), request, reason="rewards", num_epochs=2, minibatch_size=5)


def test_a_worker_that_its_env_runner_calls_faulty_takes_no_part():
    """Its numbers were repaired before they got here, so they look sound."""
    request = make_request(3, "reward_weighted", rewards=REWARDS, invalid={BAD: "reward nan"})
    compare(None, make_episodes(LENGTHS), request, reason="reward nan", num_epochs=2)


class BadLoss(WeightedPPOLearner):
    """The loss is NaN on the marked observations only."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        return loss * math.nan if (batch["obs"] == MARK).any() else loss


class BadGradient(BadLoss):
    """The loss is finite, but its gradient is not: d sqrt(x) / dx at 0."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = WeightedPPOLearner.compute_loss_for_module(
            self, module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        if (batch["obs"] == MARK).any():
            loss = loss + torch.sqrt(0.0 * fwd_out["action_dist_inputs"].sum())
        return loss


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("cls", "reason"),
    [(BadLoss, "its loss is not finite"), (BadGradient, "its gradient is not finite")],
)
def test_a_loss_or_gradient_that_is_not_finite(cls, reason, strategy):
    request = make_request(3, strategy, rewards=REWARDS)
    compare(cls, spoiled(_mark, MARK), request, reason=reason, num_epochs=3)


def test_the_kl_divergence_alone_is_not_finite():
    """Where all workers share a forward pass."""
    request = make_request(3, "loss_weighted")
    compare(
        None,
        spoiled(_dist_inputs),
        request,
        reason="its loss is not finite",
        training={"use_kl_loss": True, "fast_learner": False},  # Which would rescue it likewise.
        num_epochs=2,
    )


def test_without_the_mark_the_custom_losses_drop_nobody():
    for cls in (BadLoss, BadGradient):
        report = run_update(pooled_group(3, cls), make_episodes(LENGTHS), make_request(3))
        assert report.drops == [None] * 3


def test_a_worker_is_dropped_from_the_bad_minibatch_only():
    episodes = make_episodes(LENGTHS)
    next(e for e in episodes if len(e) == 17).observations.data[0, 0] = MARK
    group = pooled_group(3, BadLoss)
    report = run_update(group, episodes, make_request(3), minibatch_size=11)
    assert report.drops[BAD] == "its loss is not finite"
    assert report.num_steps == 3
    # Two of three merges were over 3 workers, one over 2.
    assert report.shares[0] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert report.shares[BAD] == pytest.approx((1 / 3 + 1 / 3) / 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("use_kl_loss", [False, True])
def test_all_dropped_skips_the_update(strategy, use_kl_loss, caplog):
    group = pooled_group(3, use_kl_loss=use_kl_loss)
    request = make_request(3, strategy, rewards=REWARDS)
    run_update(group, make_episodes(LENGTHS), request)  # so that there is an optimizer state
    before = flat_parameters(group)
    (optimizer,) = learner_of(group)._named_optimizers.values()
    state = [value.clone() for s in optimizer.state.values() for value in s.values()]
    kl_coeff = float(learner_of(group).curr_kl_coeffs_per_module["default_policy"])
    episodes = make_episodes(LENGTHS)
    for episode in episodes:
        _obs(episode, math.nan)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    report = run_update(group, episodes, request, num_epochs=4)
    assert torch.equal(flat_parameters(group), before)
    after = [value for s in optimizer.state.values() for value in s.values()]
    assert all(torch.equal(old, new) for old, new in zip(state, after, strict=True))
    assert (report.num_steps, report.num_skipped_steps) == (0, 4)
    assert all("obs" in reason for reason in report.drops)
    assert report.shares == report.weights == [0.0] * 3
    assert report.losses == [None] * 3
    assert float(learner_of(group).curr_kl_coeffs_per_module["default_policy"]) == kl_coeff
    assert caplog.messages == []
    # And training goes on afterwards.
    run_update(group, make_episodes(LENGTHS), request)
    assert not torch.equal(flat_parameters(group), before)
    assert torch.isfinite(flat_parameters(group)).all()


@pytest.mark.parametrize("cls", [BadLoss, BadGradient])
def test_all_dropped_by_loss_or_gradient_skips_every_step(cls):
    group = pooled_group(3, cls)
    before = flat_parameters(group)
    episodes = make_episodes(LENGTHS)
    for episode in episodes:
        _mark(episode)
    report = run_update(group, episodes, make_request(3), num_epochs=2)
    assert torch.equal(flat_parameters(group), before)
    assert (report.num_steps, report.num_skipped_steps) == (0, 2)
    assert all("not finite" in reason for reason in report.drops)


class Overflow(WeightedPPOLearner):
    """Every worker's gradient is finite; their weighted sum is not."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        values = self.module[module_id].compute_values(batch)
        return 1e19 * values.sum() / 20


def test_a_sum_that_overflows_is_no_step_and_drops_nobody():
    group = pooled_group(3, Overflow)
    before = flat_parameters(group)
    report = run_update(group, make_episodes(LENGTHS), make_request(3, "sum"))
    assert torch.equal(flat_parameters(group), before)
    assert (report.num_steps, report.num_skipped_steps) == (0, 1)
    assert report.drops == [None] * 3
    # A gradient so large that Adam's second moment would overflow and freeze its entry.
    assert optimizer_is_finite(group)


def test_rewards_beyond_float32_drop_their_worker_without_a_warning():
    episodes = make_episodes(LENGTHS)
    episode = next(e for e in episodes if len(e) == 17)
    episode.rewards.data = episode.rewards.data.astype("float64")
    episode.rewards.data[3] = 1e300
    compare(None, episodes, make_request(3), reason="NaN or infinite")
