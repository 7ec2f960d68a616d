from __future__ import annotations

import numpy as np
import pytest

from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from tests.learning.helpers import make_episode


def episode(worker, length=3, seed=0):
    return make_episode(worker, length, seed=seed)


def test_episodes_are_grouped_by_identity_not_by_position():
    episodes = [episode(w, seed=i) for i, w in enumerate([2, 0, 2, 1, 0])]
    groups = group_by_worker(episodes, num_workers=3)
    assert {w: [e.id_ for e in group] for w, group in groups.items()} == {
        2: [episodes[0].id_, episodes[2].id_],
        0: [episodes[1].id_, episodes[4].id_],
        1: [episodes[3].id_],
    }


def test_numpy_indices_are_the_same_workers():
    groups = group_by_worker([episode(np.int64(1)), episode(1)], num_workers=2)
    assert list(groups) == [1]
    assert len(groups[1]) == 2


def test_a_single_worker_owns_episodes_without_identity():
    assert len(group_by_worker([episode(None)], num_workers=1)[0]) == 1


@pytest.mark.parametrize("worker", [None, -1, 3, 1.0, "1", True])
def test_unknown_workers_are_refused_with_the_remedy(worker):
    bad = episode(None)
    if worker is not None:
        bad.custom_data[WORKER_KEY] = worker
    with pytest.raises(ValueError, match=r"workers 0 … 2.*found .*WeightedEnvRunner") as error:
        group_by_worker([episode(0), bad], num_workers=3)
    assert bad.id_ in str(error.value)
    assert f"found {worker!r}" in str(error.value)


def test_episodes_without_a_step_are_left_out():
    empty = episode(1)
    empty = empty[0:0]
    empty.custom_data[WORKER_KEY] = 1
    assert len(empty) == 0
    assert list(group_by_worker([episode(0), empty], num_workers=2)) == [0]


def test_training_data_holds_worker_after_worker():
    workers = {2: [episode(2, seed=1)], 0: [episode(0, seed=2), episode(0, seed=3)]}
    data = WorkerTrainingData.from_workers(workers)
    data.validate()  # RLlib's own check: exactly one kind of data
    assert list(data.workers) == [0, 2]
    assert data.episodes == [*workers[0], *workers[2]]


@pytest.mark.parametrize(
    ("num_shards", "expected"),
    [(1, [[0, 1, 2, 3, 4]]), (2, [[0, 2, 4], [1, 3]]), (3, [[0, 3], [1, 4], [2]])],
)
def test_shards_are_whole_workers(num_shards, expected):
    workers = {w: [episode(w, length=w + 1, seed=w), episode(w, seed=9)] for w in range(5)}
    data = WorkerTrainingData.from_workers(workers)
    shards = data.shard(num_shards=num_shards, len_lookback_buffer=0, minibatch_size=4)
    assert [list(shard.workers) for shard, _ in shards] == expected
    for shard, extra in shards:
        assert extra == {}
        assert shard.episodes == [e for group in shard.workers.values() for e in group]
        assert all(shard.workers[w] == workers[w] for w in shard.workers)  # uncut
