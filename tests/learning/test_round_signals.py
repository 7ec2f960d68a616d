"""Signals that the learner measures on a round's batch, and what it remembers of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.round_signals import batch_signals
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.learning.signal_memory import SignalMemory
from tests.learning.helpers import (
    SGD,
    learner_of,
    make_episodes,
    make_request,
    pooled_group,
    run_update,
    worker_losses,
)
from tests.learning.test_gradients import LENGTHS, round_of


def test_batch_signals_by_hand():
    round = round_of(pooled_group(3, SGD))
    episodes = make_episodes(LENGTHS)
    rewards = {0: (8, 4.0), 1: (4, -1.0), 2: (6, 0.0)}
    found = batch_signals(round, rewards)
    assert found["reward_rate"] == {0: 0.5, 1: -0.25, 2: 0.0}
    assert len(episodes) == 6
    for worker, rows in round.batch.rows.items():
        targets = round.batch.columns["value_targets"][rows]
        advantages = round.batch.columns["advantages"][rows]
        assert found["value_target"][worker] == pytest.approx(float(targets.mean()))
        assert found["advantage_scale"][worker] == pytest.approx(
            float(advantages.std(correction=0))
        )


@pytest.mark.parametrize("signal", ["reward_rate", "value_target"])
def test_a_round_is_weighed_by_the_signal_that_is_chosen(signal):
    group = pooled_group(3, SGD)
    episodes = make_episodes(LENGTHS)  # Others: an update appends a step to those it gets.
    options = {"signal": signal, "offset": "min"}
    request = make_request(3, "reward_weighted", options, rewards=[9.0, 0.0, 0.0], min_weight=0.0)
    result = run_update(group, make_episodes(LENGTHS), request)
    if signal == "reward_rate":
        rewards = [
            np.concatenate([e.get_rewards() for e in episodes if e.custom_data[WORKER_KEY] == w])
            for w in range(3)
        ]
        wanted = [float(r.mean()) for r in rewards]
        assert result.signals == pytest.approx(wanted, rel=1e-5)
    shifted = np.array(result.signals) - min(result.signals)
    assert result.weights == pytest.approx((shifted / shifted.sum()).tolist(), abs=1e-6)
    assert result.ages == [0, 0, 0]
    assert min(result.weights) == 0.0


def test_advantages_are_measured_before_they_are_normalised():
    group = pooled_group(3, SGD)
    result = run_update(group, make_episodes(LENGTHS), make_request(3, "advantage_scaled"))
    # After it, all would be 1.
    assert max(result.signals) - min(result.signals) > 0.05
    scales = np.array(result.signals)
    ratios = np.clip(scales / scales.mean(), 0.25, 4)
    assert result.weights == pytest.approx((ratios / ratios.sum()).tolist())


class TestSmoothing:
    def test_by_hand(self):
        memory = SignalMemory()
        assert memory.smoothed("s", {0: 1.0}, 0.75) == {0: 1.0}
        # 0.75 x 1 + 0.25 x 5
        assert memory.smoothed("s", {0: 5.0, 1: 7.0}, 0.75) == {0: 2.0, 1: 7.0}
        assert memory.smoothed("other", {0: 5.0}, 0.75) == {0: 5.0}

    def test_a_value_that_is_not_new_does_not_count_again(self):
        memory = SignalMemory()
        memory.smoothed("s", {0: 1.0, 1: 1.0}, 0.5)
        assert memory.smoothed("s", {0: 3.0, 1: 3.0}, 0.5, fresh=[1]) == {0: 1.0, 1: 2.0}

    def test_without_it_values_pass(self):
        memory, values = SignalMemory(), {0: 1.0}
        assert memory.smoothed("s", values, 0.0) is values
        assert memory.get_state() == SignalMemory().get_state()

    def test_returns_of_rounds_without_an_episode_are_not_averaged_again(self):
        memory = SignalMemory()
        options = {"smoothing": 0.5}

        def weights(rewards, ages):
            kwargs = {"rewards": rewards, "ages": ages, "min_weight": 0.0}
            merger = RoundWeights(make_request(2, "reward_weighted", options, **kwargs), memory)
            return merger.weigh([0, 1], worker_losses(0.0, 0.0))[1].weights.tolist()

        assert weights([1, 3], {0: 0, 1: 0}) == [0.25, 0.75]
        # Worker 0: (1 + 5) / 2 = 3; worker 1 has no new episode.
        assert weights([5, 3], {0: 0, 1: 1}) == [0.5, 0.5]

    def test_a_loss_of_minibatches_is_averaged_over_the_steps(self):
        memory = SignalMemory()
        options = {"smoothing": 0.5}
        merger = RoundWeights(make_request(2, "loss_weighted", options, min_weight=0.0), memory)
        assert merger.weigh([0, 1], worker_losses(1.0, 3.0))[1].weights.tolist() == [0.25, 0.75]
        # (1 + 5) / 2 = 3 and (3 + 3) / 2 = 3
        assert merger.weigh([0, 1], worker_losses(5.0, 3.0))[1].weights.tolist() == [0.5, 0.5]
        # and over the rounds: (3 + 3) / 2, (3 + 9) / 2
        later = RoundWeights(make_request(2, "loss_weighted", options, min_weight=0.0), memory)
        assert later.weigh([0, 1], worker_losses(3.0, 9.0))[1].weights.tolist() == [1 / 3, 2 / 3]


def test_the_memory_of_other_workers_is_not_taken():
    memory, other = SignalMemory(3), SignalMemory(2)
    memory.keep(1, {"gradient_noise": {0: 1.0}})
    other.set_state(memory.get_state())
    assert other.gradients == {}
    same = SignalMemory(3)
    same.set_state(memory.get_state())
    assert same.gradients == {"gradient_noise": {0: 1.0}}
    assert same.gradient_ages(4) == {0: 3}


def test_what_is_remembered_is_part_of_the_learners_state():
    options = {"smoothing": 0.9, "signal": "value_target"}
    groups = [pooled_group(3, SGD) for _ in range(2)]
    run_update(groups[0], make_episodes(LENGTHS), make_request(3, "reward_weighted", options))
    state = copy.deepcopy(learner_of(groups[0]).get_state())
    learner_of(groups[1]).set_state(state)
    later = make_request(3, "reward_weighted", options, round=2)
    results = [run_update(group, make_episodes(LENGTHS, seed=9), later) for group in groups]
    assert results[0].weights == results[1].weights
    forgetful = pooled_group(3, SGD)
    state["weighted_ppo"].pop("signals")  # As in a checkpoint of 0.1.
    learner_of(forgetful).set_state(state)
    other = run_update(forgetful, make_episodes(LENGTHS, seed=9), later)
    assert other.weights != results[0].weights
    assert torch.isfinite(torch.tensor(other.weights)).all()


def test_ages():
    def ages(strategy, **kwargs):
        return RoundWeights(make_request(3, strategy, **kwargs)).result().ages

    assert ages("reward_weighted", rewards=[1, 2, 3], ages={0: 0, 1: 4}) == [0, 4, None]
    assert ages("loss_weighted") == [None, None, None]  # No step yet.
    merger = RoundWeights(make_request(2, "loss_weighted"))
    losses = worker_losses(1.0)
    signals, merged = merger.weigh([1], losses)
    merger.record([1], signals, merged, losses)
    assert merger.result().ages == [None, 0]
