from __future__ import annotations

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from rllib_weighted.learning.advantages import MIN_STD, chunk_advantages, moments, standardize
from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from tests.learning.helpers import (
    learner_of,
    make_episode,
    make_episodes,
    module_of,
    pooled_group,
)

REWARDS = np.array([1.0, 2.0, 3.0])
VALUES = np.array([1.0, 2.0, 3.0, 4.0])


def episode_advantages(rewards, values, *, terminated, **kwargs):
    """Those of a single chunk."""
    ends = {"terminated": np.array([terminated]), **kwargs}
    return chunk_advantages(rewards, values, np.array([len(rewards)]), **ends)


def slow_advantages(rewards, values, terminated, gamma, lambda_):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, as the paper writes it."""
    length = len(rewards)
    advantages = []
    for t in range(length):
        total = 0.0
        for k in range(t, length):
            bootstrap = 0.0 if terminated and k == length - 1 else values[k + 1]
            total += (gamma * lambda_) ** (k - t) * (rewards[k] + gamma * bootstrap - values[k])
        advantages.append(total)
    return np.array(advantages)


# gamma = lambda = 1/2. Residuals: 1 + 2/2 - 1 = 1; 2 + 3/2 - 2 = 1.5; 3 + 4/2 - 3 = 2.
# A_2 = 2; A_1 = 1.5 + 2/4 = 2; A_0 = 1 + 2/4 = 1.5.
# Terminated: the last residual is 3 - 3 = 0; A_1 = 1.5; A_0 = 1 + 1.5/4 = 1.375.
@pytest.mark.parametrize(
    ("terminated", "expected"), [(False, [1.5, 2.0, 2.0]), (True, [1.375, 1.5, 0.0])]
)
def test_advantages_by_hand(terminated, expected):
    found = episode_advantages(REWARDS, VALUES, terminated=terminated, gamma=0.5, lambda_=0.5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_a_wrong_decay_is_seen():
    found = episode_advantages(REWARDS, VALUES, terminated=False, gamma=0.5, lambda_=0.4)
    assert not np.allclose(found, [1.5, 2.0, 2.0])


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize("length", [1, 2, 50])
def test_advantages_equal_the_slow_sum(terminated, gamma, lambda_, length):
    rng = np.random.default_rng(length)
    rewards, values = rng.normal(size=length), rng.normal(size=length + 1)
    kwargs = {"terminated": terminated, "gamma": gamma, "lambda_": lambda_}
    before = rewards.copy(), values.copy()
    found = episode_advantages(rewards, values, **kwargs)
    np.testing.assert_allclose(
        found, slow_advantages(rewards, values, **kwargs), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal((rewards, values[:-1]), (before[0], before[1][:-1]))
    assert np.abs(found).max() > 1e-3


def columns_of(episodes, num_workers):
    """What the learner connectors make of the episodes, phantom rows included."""
    group = pooled_group(num_workers)
    learner = learner_of(group)
    data = WorkerTrainingData.from_workers(group_by_worker(episodes, num_workers=num_workers))
    columns = learner._learner_connector(
        rl_module=learner.module,
        batch={},
        episodes=data.episodes,
        shared_data={},
        metrics=learner.metrics,
    )["default_policy"]
    return group, columns


def test_the_connector_agrees_with_rllibs_value_targets_on_all_real_rows():
    episodes = make_episodes([[5, 4, 6], [1, 7]])
    group, columns = columns_of(episodes, 2)
    config = group.config
    with torch.no_grad():
        values = module_of(group).compute_values(columns).numpy()
    numpy_columns = {
        key: columns[key].numpy()
        for key in (Columns.REWARDS, Columns.TERMINATEDS, Columns.TRUNCATEDS, Columns.LOSS_MASK)
    }
    expected = compute_value_targets(
        values=values,
        rewards=numpy_columns[Columns.REWARDS],
        terminateds=numpy_columns[Columns.TERMINATEDS].astype(np.float32),
        truncateds=numpy_columns[Columns.TRUNCATEDS].astype(np.float32),
        gamma=config.gamma,
        lambda_=config.lambda_,
    )
    real = numpy_columns[Columns.LOSS_MASK]
    assert real.sum() == 5 + 4 + 6 + 1 + 7
    assert len(real) == real.sum() + 5  # One phantom row per episode.
    targets = columns[Postprocessing.VALUE_TARGETS].numpy()
    advantages = columns[Postprocessing.ADVANTAGES].numpy()
    np.testing.assert_allclose(targets[real], expected[real], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantages[real], (expected - values)[real], rtol=1e-5, atol=1e-6)
    assert np.abs(advantages[real]).max() > 0.1


def test_phantom_rows_have_no_advantage():
    _, columns = columns_of(make_episodes([[5, 4], [3]]), 2)
    phantom = ~columns[Columns.LOSS_MASK]
    assert phantom.sum() == 3
    assert (columns[Postprocessing.ADVANTAGES][phantom] == 0).all()


def test_the_observation_after_a_terminal_step_is_not_looked_at():
    plain = make_episode(0, 5, seed=1, terminated=True)
    garbage = make_episode(0, 5, seed=1, terminated=True)
    garbage.observations.data[-1] = 1e6
    results = [columns_of([episode], 1)[1] for episode in (plain, garbage)]
    first, second = (
        {key: c[key][c[Columns.LOSS_MASK]] for key in (Postprocessing.ADVANTAGES, "obs")}
        for c in results
    )
    assert torch.equal(first["obs"], second["obs"])
    assert torch.equal(first[Postprocessing.ADVANTAGES], second[Postprocessing.ADVANTAGES])
    # Negative control: at a truncation the same observation is bootstrapped from.
    cut = [make_episode(0, 5, seed=1, truncated=True) for _ in range(2)]
    cut[1].observations.data[-1] = 1e6
    first, second = (columns_of([episode], 1)[1][Postprocessing.ADVANTAGES] for episode in cut)
    assert not torch.equal(first, second)


# Mean 2, population variance (1 + 0 + 1) / 3 -> deviation sqrt(2/3).
def test_standardize_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0])
    ((count, mean, squares),) = moments(values)
    assert (count, mean, squares) == (3, 2, 2)
    result = standardize(values, mean, squares / count)
    assert result.dtype == torch.float32
    edge = (3 / 2) ** 0.5
    torch.testing.assert_close(result, torch.tensor([-edge, 0.0, edge]))


def test_small_spreads_are_not_blown_up():
    zero = torch.zeros((), dtype=torch.float64)
    assert standardize(torch.tensor([4.0, 4.0]), zero + 4, zero).tolist() == [0.0, 0.0]
    spread = torch.tensor([MIN_STD / 10], dtype=torch.float64)
    assert standardize(spread, zero, (spread / 2).square()).item() == pytest.approx(0.1)


def test_moments_of_groups_are_those_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator) + 1e3
    owner = torch.randint(0, 4, (50,), generator=generator)
    owner[owner == 2] = 3  # Group 2 is empty.
    found = moments(values, owner, num_groups=4)
    assert found[2].tolist() == [0, 0, 0]
    for group in (0, 1, 3):
        own = values[owner == group].double().numpy()
        assert found[group, 0] == len(own)
        assert found[group, 1].item() == pytest.approx(own.mean(), rel=1e-14)
        assert found[group, 2].item() == pytest.approx(own.var() * len(own), rel=1e-9)
        assert torch.equal(found[group], moments(values[owner == group])[0])  # to the last bit
