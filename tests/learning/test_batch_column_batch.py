"""The batch from columns is the batch that RLlib's connectors make from episodes, bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_weighted import ScaleRewards
from rllib_weighted.core.rollouts import CHUNK, RolloutColumns
from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.advantages import chunk_advantages
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import (
    ColumnTrainingData,
    WorkerTrainingData,
    group_by_worker,
)
from tests.learning.helpers import (
    build_group,
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    pooled_group,
    small_config,
)

LENGTHS = [[9, 14, 1], [23], [8, 5, 7]]
BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


def to_columns(episodes: list[Any]) -> RolloutColumns:
    """The steps of some episodes, in their order."""
    chunks = np.zeros(len(episodes), CHUNK)
    for chunk, episode in zip(chunks, episodes, strict=True):
        chunk["id"] = episode.id_.encode()
        chunk["worker"] = episode.custom_data[WORKER_KEY]
        chunk["length"] = len(episode)
        chunk["terminated"] = episode.is_terminated
        chunk["truncated"] = episode.is_truncated
    steps = {
        Columns.ACTIONS: [e.get_actions() for e in episodes],
        Columns.REWARDS: [e.get_rewards() for e in episodes],
        Columns.ACTION_LOGP: [e.get_extra_model_outputs(Columns.ACTION_LOGP) for e in episodes],
        Columns.ACTION_DIST_INPUTS: [
            e.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS) for e in episodes
        ],
    }
    return RolloutColumns(
        np.concatenate([e.get_observations() for e in episodes]),
        {name: np.concatenate(parts) for name, parts in steps.items()},
        chunks,
    )


def column_data(episodes: list[Any]) -> ColumnTrainingData:
    return ColumnTrainingData.from_rollouts([to_columns(episodes)], num_workers=3)


def shuffled(episodes: list[Any]) -> list[Any]:
    order = np.random.default_rng(3).permutation(len(episodes))
    return [episodes[i] for i in order]


def batches(group: Any, **kwargs: Any) -> tuple[Any, Any]:
    """(From columns, from episodes), of the same rollouts."""
    learner = learner_of(group)
    made = shuffled(make_episodes(LENGTHS, **kwargs))
    columns = column_data(made)
    data = WorkerTrainingData.from_workers(group_by_worker(made, num_workers=3))
    return learner._round_batch(columns)[1], learner._round_batch(data)[1]


def assert_equal(found: Any, expected: Any) -> None:
    assert list(found.rows) == list(expected.rows)
    for worker, rows in expected.rows.items():
        np.testing.assert_array_equal(found.rows[worker], rows)
    assert found.is_sequences == expected.is_sequences
    assert set(found.columns) == set(expected.columns)
    for name, column in expected.columns.items():
        assert found.columns[name].dtype == column.dtype, name
        assert torch.equal(found.columns[name], column), name


@pytest.mark.parametrize("action_space", [None, BOX], ids=["discrete", "continuous"])
def test_columns_and_episodes_make_the_same_batch(action_space: Any) -> None:
    kwargs = {} if action_space is None else {"action_space": action_space}
    group = pooled_group(3, **kwargs)
    found, expected = batches(group, **kwargs)
    assert_equal(found, expected)
    assert found.columns[Postprocessing.ADVANTAGES].abs().max() > 0


def test_scaled_rewards_and_own_parameters() -> None:
    config = small_config(3).training(
        merge_strategy="actor_average",
        learner_connector=lambda obs, act: ScaleRewards(0.3),
    )
    group = build_group(config)
    for worker, stack in enumerate(learner_of(group).per_worker.stacked.values()):
        stack.data.mul_(1 + worker / 10)
    assert learner_of(group).why_not_columns() is None
    found, expected = batches(group)
    for name, column in expected.columns.items():
        torch.testing.assert_close(found.columns[name], column, rtol=1e-6, atol=1e-6)
    assert found.columns[Columns.REWARDS].abs().max() > 0


class Appended(WeightedPPOLearner):
    def build(self) -> None:
        super().build()
        self._learner_connector.append(ScaleRewards(1.0))  # Not where RLlib puts a user's.


def test_with_other_connectors_episodes_are_needed() -> None:
    assert learner_of(pooled_group(3)).why_not_columns() is None
    assert learner_of(pooled_group(3, Appended)).why_not_columns() == "custom learner connectors"


def test_a_group_takes_columns_and_episodes_alike() -> None:
    request = make_request(3, "reward_weighted", rewards=[2.0, -1.0, 4.0])
    results = []
    for kind in ("episodes", "columns"):
        group = pooled_group(3)
        made = make_episodes(LENGTHS)
        data: dict[str, Any] = {"episodes": made}
        if kind == "columns":
            data = {"columns": [to_columns(made[:4]), to_columns(made[4:])]}
        group.update(**data, merge=request, num_epochs=2, minibatch_size=20)
        results.append(flat_parameters(group))
    assert torch.equal(results[0], results[1])


def test_shards_hold_whole_workers() -> None:
    data = column_data(shuffled(make_episodes(LENGTHS)))
    found = [shard.columns for shard, _ in data.shard(2)]
    assert [each.workers for each in found] == [{0, 2}, {1}]
    assert sum(each.num_steps for each in found) == sum(map(sum, LENGTHS))


def test_returns_are_those_of_the_episodes_that_ended() -> None:
    made = make_episodes(LENGTHS)
    columns = column_data(made).finished_returns()
    episodes = WorkerTrainingData.from_workers(
        group_by_worker(made, num_workers=3)
    ).finished_returns()
    assert columns == {w: pytest.approx(values) for w, values in episodes.items()}


def test_advantages_of_many_chunks_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([1, 7, 3, 12, 1])
    terminated = np.array([True, False, True, True, False])
    rewards = rng.normal(size=lengths.sum())
    values = rng.normal(size=lengths.sum() + len(lengths)).astype(np.float32)
    rewards[2] = np.nan  # In the second chunk.
    found = chunk_advantages(
        rewards, values, lengths, terminated=terminated, gamma=0.9, lambda_=0.8
    )
    start = 0
    for index, length in enumerate(lengths):
        alone = chunk_advantages(
            rewards[start : start + length],
            values[start + index : start + index + length + 1],
            lengths[index : index + 1],
            terminated=terminated[index : index + 1],
            gamma=0.9,
            lambda_=0.8,
        )
        np.testing.assert_array_equal(found[start : start + length], alone)
        start += length
    assert np.isnan(found).any()
    assert np.isfinite(found[8:]).all()  # It stays in its chunk.
