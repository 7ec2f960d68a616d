"""One backward pass gives the merged gradient: against N passes in float64, and by its meaning."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.merging import weighted_sum
from tests.learning.helpers import (
    LR,
    SGD,
    copy_parameters,
    flat_gradients,
    flat_parameters,
    hand_weights,
    learner_of,
    make_episodes,
    make_request,
    optimizer_is_finite,
    oracle_gradients,
    oracle_parameters,
    pooled_group,
    run_update,
)

STRATEGIES = ["average", "sum", "reward_weighted", "loss_weighted"]
EQUAL = [[6, 4], [10], [3, 3, 4]]
UNEQUAL = [[6, 4], [17], [6]]
BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
REWARDS = [2.0, -1.0, 4.0]


def sgd_group(num_workers=3, **kwargs):
    return pooled_group(num_workers, SGD, **kwargs)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_one_pass_equals_n_passes(strategy, lengths):
    learner = learner_of(sgd_group())
    data = WorkerTrainingData.from_workers(group_by_worker(make_episodes(lengths), num_workers=3))
    module_id, batch = learner._round_batch(data)
    batch.standardize_advantages("worker")
    workers = list(batch.rows)
    losses = learner.worker_losses(module_id, batch, Minibatch.of(batch.rows), workers)
    merger = RoundWeights(make_request(3, strategy, rewards=REWARDS))
    _, merged = merger.weigh(workers, losses)
    found = flat_gradients(
        learner, learner.loss_gradients(module_id, weighted_sum(losses.total, merged.weights))
    )

    gradients, separate = oracle_gradients(learner, module_id, batch, batch.rows)
    torch.testing.assert_close(losses.total.detach(), separate, rtol=0, atol=1e-12)
    signals = REWARDS if strategy == "reward_weighted" else separate.tolist()
    weights = hand_weights(strategy, signals, None)
    expected = sum(w * g for w, g in zip(weights, gradients, strict=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert expected.abs().max() > 1e-3
    # Negative control: other weights are not within that tolerance.
    wrong = sum(w * g for w, g in zip(reversed(weights), gradients, strict=True))
    if strategy in ("reward_weighted", "loss_weighted"):
        assert not torch.allclose(found, wrong, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("lengths", "size"), [(EQUAL, None), (UNEQUAL, 11), (UNEQUAL, None)])
def test_parameters_after_an_update_equal_the_slow_oracle(strategy, lengths, size):
    request = make_request(3, strategy, rewards=REWARDS, min_weight=0.2)
    group, oracle = sgd_group(), sgd_group()
    before = flat_parameters(group)
    assert torch.equal(before, flat_parameters(oracle))
    settings = {"num_epochs": 2, "minibatch_size": size}
    report = run_update(
        group, make_episodes(lengths), request, shuffle_batch_per_epoch=True, **settings
    )
    expected = oracle_parameters(oracle, make_episodes(lengths), request, strategy, **settings)
    torch.testing.assert_close(flat_parameters(group), expected, rtol=0, atol=1e-10)
    assert (expected - before).abs().max() > 1e-3
    assert report.num_steps == (2 if size is None else 2 * 3)  # 33 steps by 11
    assert report.drops == [None] * 3


def test_continuous_actions():
    request = make_request(3, "loss_weighted")
    group, oracle = sgd_group(action_space=BOX), sgd_group(action_space=BOX)
    before = flat_parameters(group)
    run_update(group, make_episodes(UNEQUAL, action_space=BOX), request)
    expected = oracle_parameters(
        oracle, make_episodes(UNEQUAL, action_space=BOX), request, "loss_weighted"
    )
    torch.testing.assert_close(flat_parameters(group), expected, rtol=0, atol=1e-10)
    assert not torch.equal(expected, before)


def _fixed_weights(*weights):
    from rllib_weighted.merging import Weighting

    class Fixed(Weighting):
        signal = "none"

        def shares(self, signals, *, generator=None):
            return torch.tensor(weights, dtype=torch.float64) / sum(weights)

        def weights(self, shares, *, min_weight=None):
            return torch.tensor(weights, dtype=torch.float64)

    return Fixed()


def test_weight_2_is_two_identical_workers():
    single, double = sgd_group(2), sgd_group(3)
    before = flat_parameters(single)
    run_update(single, make_episodes([[9, 3], [7]]), make_request(2, _fixed_weights(2.0, 1.0)))
    episodes = make_episodes([[9, 3], [7]])
    copies = copy.deepcopy(episodes[:2])
    for episode in copies:
        episode.custom_data[WORKER_KEY] = 2
    run_update(double, [*episodes, *copies], make_request(3, "sum"))
    torch.testing.assert_close(flat_parameters(single), flat_parameters(double), rtol=0, atol=1e-8)
    assert (flat_parameters(single) - before).abs().max() > 1e-3


def test_weight_0_is_no_worker():
    zero, without = sgd_group(2), sgd_group(2)
    run_update(zero, make_episodes([[9, 3], [7]]), make_request(2, _fixed_weights(0.0, 1.0)))
    run_update(without, make_episodes([[9, 3], [7]])[2:], make_request(2, "sum"))
    torch.testing.assert_close(flat_parameters(zero), flat_parameters(without), rtol=0, atol=1e-8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_the_episodes_list_does_not_matter(strategy):
    first, second = sgd_group(), sgd_group()
    request = make_request(3, strategy, rewards=REWARDS)
    settings = {"num_epochs": 2, "minibatch_size": 11, "shuffle_batch_per_epoch": True}
    run_update(first, make_episodes(UNEQUAL), request, **settings)
    episodes = make_episodes(UNEQUAL)
    run_update(second, [episodes[i] for i in (3, 2, 0, 1)], request, **settings)
    assert torch.equal(flat_parameters(first), flat_parameters(second))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_renumbered_workers_give_the_same_merge(strategy):
    first, second = sgd_group(), sgd_group()
    run_update(first, make_episodes(UNEQUAL), make_request(3, strategy, rewards=REWARDS))
    renumbered = {0: 2, 1: 0, 2: 1}
    episodes = make_episodes(UNEQUAL)
    for episode in episodes:
        episode.custom_data[WORKER_KEY] = renumbered[episode.custom_data[WORKER_KEY]]
    rewards = [REWARDS[old] for old in (1, 2, 0)]
    run_update(second, episodes, make_request(3, strategy, rewards=rewards))
    torch.testing.assert_close(flat_parameters(first), flat_parameters(second), rtol=0, atol=1e-8)
    # Negative control: the rewards belong to workers, not to places.
    if strategy == "reward_weighted":
        third = sgd_group()
        run_update(third, make_episodes(UNEQUAL), make_request(3, strategy, rewards=rewards))
        assert not torch.allclose(flat_parameters(first), flat_parameters(third), atol=1e-6)


def test_sum_is_n_times_the_average():
    average, summed = sgd_group(), sgd_group()
    before = flat_parameters(average)
    run_update(average, make_episodes(UNEQUAL), make_request(3, "average"))
    run_update(summed, make_episodes(UNEQUAL), make_request(3, "sum"))
    torch.testing.assert_close(
        flat_parameters(summed) - before,
        3 * (flat_parameters(average) - before),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("option", "rewards"),
    [
        ({"direction": "low"}, [1.0, 5.0, 2.0]),
        ({"offset": "min"}, [1.0, 5.0, 2.0]),
        ({"offset": 3.0}, [1.0, -2.0, 2.0]),
        ({"transform": "softmax", "temperature": 2.0}, [1.0, 5.0, 2.0]),
        ({"transform": "rank"}, [1.0, 5.0, 2.0]),
        ({"transform": "top_k", "top_k": 1}, [1.0, 5.0, 2.0]),
        ({"normalize": True}, [1.0, 5.0, 2.0]),
    ],
)
def test_options_reach_the_gradient(option, rewards):
    """The merge is linear in the weights, so the reported weights must explain the step."""
    group, plain = sgd_group(), sgd_group()
    before = flat_parameters(group)
    request = make_request(3, "reward_weighted", option, rewards=rewards, min_weight=0.1)
    report = run_update(group, make_episodes(UNEQUAL), request)
    learner = learner_of(plain)
    data = WorkerTrainingData.from_workers(group_by_worker(make_episodes(UNEQUAL), num_workers=3))
    module_id, batch = learner._round_batch(data)
    batch.standardize_advantages("worker")
    gradients, _ = oracle_gradients(learner, module_id, batch, batch.rows)
    step = sum(w * g for w, g in zip(report.weights, gradients, strict=True))
    torch.testing.assert_close(flat_parameters(group), before - LR * step, rtol=0, atol=1e-11)
    default = hand_weights("reward_weighted", rewards, 0.1)
    assert report.weights != pytest.approx(default, abs=1e-3)
    total = 1.0 if "normalize" in option else 1.0 + 3 * 0.1
    assert sum(report.weights) == pytest.approx(total)


def test_the_loss_before_the_first_step_is_the_signal_of_the_round():
    request = make_request(3, "loss_weighted", {"scope": "round"}, min_weight=0.0)
    group = sgd_group()
    learner = learner_of(group)
    data = WorkerTrainingData.from_workers(group_by_worker(make_episodes(UNEQUAL), num_workers=3))
    module_id, batch = learner._round_batch(data)
    batch.standardize_advantages("worker")
    _, losses = oracle_gradients(learner, module_id, batch, batch.rows)
    settings = {"num_epochs": 3, "minibatch_size": 11, "shuffle_batch_per_epoch": True}
    report = run_update(group, make_episodes(UNEQUAL), request, **settings)
    assert report.signals == pytest.approx(losses.tolist())
    assert report.weights == pytest.approx(hand_weights("loss_weighted", losses.tolist(), 0.0))
    each_step = run_update(
        sgd_group(), make_episodes(UNEQUAL), make_request(3, "loss_weighted"), **settings
    )
    assert each_step.signals != pytest.approx(losses.tolist(), rel=1e-3)


@pytest.mark.parametrize("part", ["policy", "value"])
def test_a_part_of_the_loss_as_signal(part):
    request = make_request(3, "loss_weighted", {"loss": part, "scope": "round"}, min_weight=0.0)
    group = sgd_group()
    report = run_update(group, make_episodes(UNEQUAL), request, num_epochs=2)
    assert report.signals != pytest.approx(report.losses, rel=1e-3)
    assert all(signal is not None for signal in report.signals)
    assert sum(report.shares) == pytest.approx(1)


def test_without_an_order_the_config_and_the_episodes_decide():
    group = pooled_group(2, merge_strategy="reward_weighted", min_weight=[[0, 0], [100, 1]])
    episodes = make_episodes([[4, 3], [5, 6]])
    returns = [episodes[0].get_return(), episodes[1].get_return()]
    expected = [sum(returns) / 2, (episodes[2].get_return() + episodes[3].get_return()) / 2]
    before = flat_parameters(group)
    report = run_update(group, episodes, None, timesteps={"num_env_steps_sampled_lifetime": 50})
    assert report.signals == pytest.approx(expected)
    assert sum(report.weights) == pytest.approx(1 + 2 * 0.5)  # halfway on the schedule
    assert not torch.equal(before, flat_parameters(group))


def test_the_learner_logs_the_losses_of_the_last_step():
    group = pooled_group(2)
    (results,) = group.update(
        episodes=make_episodes([[4], [6]]), merge=make_request(2), num_epochs=1
    )
    found = {key: stats.peek() for key, stats in results["default_policy"].items()}
    report = group.take_update_result()
    assert found["total_loss"] == pytest.approx(sum(report.losses) / 2)
    assert found["vf_loss"] > 0
    assert 0 < found["entropy"] <= np.log(2) + 1e-6
    assert np.isfinite(found["vf_explained_var"])
    assert results["__all_modules__"]["num_env_steps_trained"].peek() == 10
    assert group.take_update_result() is None  # once


def test_a_round_trip_of_the_state_restores_the_learner():
    first, second = (pooled_group(2, use_kl_loss=True) for _ in range(2))
    for seed in range(3):
        run_update(first, make_episodes([[4], [6]], seed=seed), make_request(2))
    assert not torch.equal(flat_parameters(first), flat_parameters(second))
    learner_of(second).set_state(learner_of(first).get_state())
    assert torch.equal(flat_parameters(first), flat_parameters(second))
    coefficients = [
        float(learner_of(group).curr_kl_coeffs_per_module["default_policy"])
        for group in (first, second)
    ]
    assert coefficients[0] == coefficients[1] != 0.2
    for group in (first, second):
        run_update(group, make_episodes([[4], [6]], seed=9), make_request(2))
    assert torch.equal(flat_parameters(first), flat_parameters(second))


def test_an_update_without_a_step_is_refused():
    group = pooled_group(2)
    with pytest.raises(ValueError, match="one environment step or more, found 0 episodes"):
        group.update(episodes=[], merge=make_request(2), num_epochs=1)


@pytest.mark.parametrize("mode", ["worker", "batch", "none"])
def test_advantage_normalization_reaches_the_loss(mode):
    group = sgd_group(advantage_normalization=mode)
    run_update(group, make_episodes(UNEQUAL), make_request(3))
    others = []
    for other in {"worker", "batch", "none"} - {mode}:
        others.append(sgd_group(advantage_normalization=other))
        run_update(others[-1], make_episodes(UNEQUAL), make_request(3))
    for other in others:
        assert not torch.allclose(flat_parameters(group), flat_parameters(other), atol=1e-6)


class Garbage:
    """Learner connector: fills whatever is no real step with nonsense, after the advantages."""

    def __init__(self, value):
        self.value = value

    def __call__(self, *, batch, **kwargs):
        for columns in batch.values():
            phantom = ~columns["loss_mask"]
            for key in columns:
                if key not in ("loss_mask", "state_in") and columns[key].is_floating_point():
                    columns[key] = columns[key].clone()
                    columns[key][phantom] = self.value
        return batch


class Littered(WeightedPPOLearner):
    """Phantom rows hold garbage."""

    value = float("nan")

    def build(self):
        super().build()
        self._learner_connector.connectors.append(Garbage(self.value))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_phantom_rows_never_matter(strategy):
    groups = [pooled_group(3, cls) for cls in (WeightedPPOLearner, Littered)]
    copy_parameters(*groups)
    before = flat_parameters(groups[0])
    request = make_request(
        3, strategy, {"scope": "round"} if strategy == "loss_weighted" else None, rewards=REWARDS
    )
    reports = [
        run_update(group, make_episodes(UNEQUAL), request, num_epochs=2, minibatch_size=11)
        for group in groups
    ]
    assert reports[0] == reports[1]
    assert torch.equal(*map(flat_parameters, groups))
    assert not torch.equal(before, flat_parameters(groups[0]))
    assert all(map(optimizer_is_finite, groups))
