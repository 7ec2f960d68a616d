from __future__ import annotations

import numpy as np
import pytest

from rllib_weighted.core.seeding import Stream
from rllib_weighted.learning.minibatches import (
    Minibatch,
    minibatches,
    num_minibatches,
    ranks,
    shuffle_keys,
)


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


# The test vector on Rosetta Code, "Pseudo-random numbers/Splitmix64".
SEED = 1234567
SPLITMIX64 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator in whole numbers, step after step, as its authors write it."""
    mask, state, drawn = (1 << 64) - 1, seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        drawn.append(z ^ (z >> 31))
    return drawn


def test_ranks_are_the_published_numbers():
    assert splitmix64(SEED, 5) == SPLITMIX64
    assert ranks(np.array([SEED], np.uint64), 5).tolist() == [SPLITMIX64]


def test_ranks_of_many_owners_with_keys_of_all_sizes():
    keys = [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    found = ranks(np.array(keys, np.uint64), 40)
    assert found.dtype == np.uint64
    assert found.tolist() == [splitmix64(key, 40) for key in keys]
    assert ranks(np.empty(0, np.uint64), 3).shape == (0, 3)


def test_keys_are_of_seed_worker_and_round():
    def keys(workers, num_epochs=3, **kwargs):
        return shuffle_keys(workers, num_epochs=num_epochs, **{"seed": 3, "round": 1, **kwargs})

    found = keys([0, 4, 2])
    expected = [
        np.random.SeedSequence(entropy=3, spawn_key=(2, worker, 1)).generate_state(3, np.uint64)
        for worker in (0, 4, 2)
    ]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(keys([2], num_epochs=2), found[2:, :2])
    for other in ({"seed": 4}, {"round": 2}):
        assert not set(keys([0, 4, 2], **other).ravel()) & set(found.ravel())


def test_a_shuffle_sorts_the_rows_by_their_numbers():
    rows = {0: np.arange(40), 3: np.arange(40, 63)}
    batches = run(rows, 4, 2)
    for worker, own in rows.items():
        keys = np.random.SeedSequence(3, spawn_key=(int(Stream.SHUFFLE), worker, 1))
        for epoch, key in enumerate(keys.generate_state(2, np.uint64).tolist()):
            drawn = splitmix64(key, len(own))
            expected = [own[j] for j in sorted(range(len(own)), key=drawn.__getitem__)]
            chunk = batches[4 * epoch : 4 * epoch + 4]
            found = np.concatenate([batch.parts[worker] for batch in chunk])
            assert found.tolist() == expected != own.tolist()


def test_every_worker_round_and_epoch_has_its_own_order():
    rows = {worker: np.arange(30) for worker in range(6)}
    orders = [
        tuple(np.concatenate([b.parts[worker] for b in batches[2 * epoch : 2 * epoch + 2]]))
        for round in range(1, 6)
        for batches in [run(rows, 2, 4, round=round)]
        for worker in rows
        for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders) == 6 * 5 * 4


def positions_of(orders):
    """How often each item came to each place, [items, places]."""
    counts = np.zeros((orders.shape[1], orders.shape[1]))
    for place, items in enumerate(orders.T):
        counts[:, place] = np.bincount(items, minlength=orders.shape[1])
    return counts


def test_shuffles_are_uniform():
    """Every item comes to every place equally often, and so does each pair of neighbours."""
    num_epochs, width = 3000, 8
    batches = run({0: np.arange(width)}, 2, num_epochs)
    orders = np.array([batch.parts[0] for batch in batches]).reshape(num_epochs, width)
    counts = positions_of(orders)
    expected = num_epochs / width
    statistic = ((counts - expected) ** 2 / expected).sum()
    # 49 degrees of freedom: rows and columns add up. Beyond these bounds in 2 of 1000 cases.
    assert 23.98 < statistic < 85.35
    pairs = np.zeros((width, width))
    np.add.at(pairs, (orders[:, :-1].ravel(), orders[:, 1:].ravel()), 1)
    assert pairs.trace() == 0
    expected = num_epochs * (width - 1) / (width * (width - 1))
    others = pairs[~np.eye(width, dtype=bool)]
    assert np.abs(others / expected - 1).max() < 0.25  # 5 standard deviations
    # Negative control: orders that are only rotated fill all places equally, but not as a draw.
    rotated = (np.arange(width) + np.arange(num_epochs)[:, None]) % width
    assert ((positions_of(rotated) - num_epochs / width) ** 2).sum() == 0


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


def test_minibatches_of_an_epoch_are_cuts_of_one_order():
    """Which the learner gathers at once."""
    rows = rows_of(9, 4, 1)
    for batches in (run(rows, 3, 2), run(rows, 3, 2, shuffle=False)):
        for epoch in (batches[:3], batches[3:]):
            assert all(batch.order is epoch[0].order for batch in epoch)
            assert [batch.start for batch in epoch] == [0, 3 + 2 + 1, 3 + 2 + 1 + 3 + 1 + 1]
            assert epoch[-1].stop == len(epoch[0].order) == 9 + 4 + 3  # one row, three times
            for batch in epoch:
                assert batch.rows(batch.workers).tolist() == [
                    row for part in batch.parts.values() for row in part
                ]
                assert batch.sizes == tuple(len(part) for part in batch.parts.values())


def test_without_workers_there_are_as_many_empty_minibatches():
    batches = run({}, 3, 2)
    assert len(batches) == 6
    assert all(batch.workers == batch.sizes == () for batch in batches)
    assert all(batch.rows([]).tolist() == [] for batch in batches)
