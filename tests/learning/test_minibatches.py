from __future__ import annotations

import numpy as np
import pytest

from rllib_weighted.learning.minibatches import Minibatch, minibatches, num_minibatches
from rllib_weighted.seeding import Stream, generator


def rows_of(*counts: int) -> dict[int, np.ndarray]:
    """Worker -> its rows, interleaved so that no worker owns a contiguous run."""
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return {w: np.flatnonzero(owners == w) for w in range(len(counts))}


def run(rows, per_epoch, num_epochs=1, *, shuffle=True, seed=3, round=1):
    return list(
        minibatches(
            rows,
            per_epoch=per_epoch,
            num_epochs=num_epochs,
            shuffle=shuffle,
            seed=seed,
            round=round,
        )
    )


@pytest.mark.parametrize(
    ("counts", "num_steps", "size", "expected"),
    [
        ((50, 50), 100, None, 1),
        ((50, 50), 100, 100, 1),
        ((50, 50), 100, 101, 1),
        ((50, 50), 100, 20, 5),
        ((50, 50), 100, 30, 3),  # 3.3: never more steps than whole minibatches
        ((10, 90), 100, 2, 50),
        ((3, 3), 60, 5, 3),  # rows of 10 steps each (sequences): not more minibatches than rows
        ((), 0, 20, 1),
        ((), 0, None, 1),
    ],
)
def test_number_of_minibatches(counts, num_steps, size, expected):
    assert num_minibatches(counts, num_steps, size) == expected


@pytest.mark.parametrize("counts", [(20, 20, 20), (20, 33, 7), (5, 5)])
@pytest.mark.parametrize("per_epoch", [1, 2, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_is_used_once_per_epoch_and_sizes_differ_by_one_at_most(
    counts, per_epoch, shuffle
):
    rows = rows_of(*counts)
    batches = run(rows, per_epoch, 3, shuffle=shuffle)
    assert len(batches) == 3 * per_epoch
    for epoch in range(3):
        chunk = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        for worker, own in rows.items():
            parts = [batch.parts[worker] for batch in chunk]
            assert sorted(np.concatenate(parts)) == own.tolist()
            sizes = [len(part) for part in parts]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= 1


def test_a_worker_with_fewer_rows_than_minibatches_repeats_them_in_turn():
    rows = {0: np.arange(10), 4: np.array([70, 71])}
    batches = run(rows, 5)
    parts = [batch.parts[4].tolist() for batch in batches]
    assert [len(part) for part in parts] == [1] * 5
    used = [row for part in parts for row in part]
    assert used[:2] == used[2:4]
    assert sorted(used[:2]) == [70, 71]
    assert used[4] == used[0]


def test_shuffles_are_drawn_from_seed_worker_round_and_epoch():
    rows = {0: np.arange(40), 1: np.arange(40, 80)}
    for epoch in range(2):
        for worker in rows:
            expected = generator(3, Stream.SHUFFLE, worker, 1, epoch).permutation(rows[worker])
            chunk = run(rows, 4, 2)[4 * epoch : 4 * epoch + 4]
            found = np.concatenate([batch.parts[worker] for batch in chunk])
            np.testing.assert_array_equal(found, expected)
    first = np.concatenate([b.parts[0] for b in run(rows, 4)])
    for other in ({"seed": 4}, {"round": 2}):
        assert not np.array_equal(
            first, np.concatenate([b.parts[0] for b in run(rows, 4, **other)])
        )
    both = run(rows, 4, 2)
    orders = [
        np.concatenate([b.parts[w] - 40 * w for b in both[e : e + 4]])
        for e in (0, 4)
        for w in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4  # each epoch and worker its own


def test_a_worker_shuffles_as_if_the_others_were_not_there():
    rows = rows_of(20, 30, 25)
    alone = run({2: rows[2]}, 5, 2)
    together = run(rows, 5, 2)
    for one, all_ in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.parts[2], all_.parts[2])


def test_without_shuffling_rows_stay_in_order():
    rows = {0: np.arange(10)}
    found = np.concatenate([b.parts[0] for b in run(rows, 3, 2, shuffle=False)])
    assert found.tolist() == [*range(10), *range(10)]


def test_rows_come_worker_after_worker_in_the_order_asked_for():
    batch = Minibatch.of({0: np.array([5, 3]), 2: np.array([9])})
    assert batch.rows([0, 2]).tolist() == [5, 3, 9]
    assert batch.rows([2, 0]).tolist() == [9, 5, 3]
    assert batch.rows([0]).tolist() == [5, 3]


def test_rows_are_not_changed():
    rows = rows_of(9, 4)
    before = {worker: own.copy() for worker, own in rows.items()}
    run(rows, 6, 2)
    assert all(np.array_equal(rows[worker], before[worker]) for worker in rows)
