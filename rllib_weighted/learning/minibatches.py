"""Each step merges the k-th minibatch of every worker: who contributes which rows to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rllib_weighted.core.seeding import Stream, stream


@dataclass(frozen=True)
class Minibatch:
    """Rows of one optimizer step, worker after worker.

    Args:
        workers: The workers that have rows in it.
        sizes: Rows of each of them, at least one.
        order: Rows of all steps of the epoch, step after step: indices into the round's batch.
        start: Where those of this step begin in `order`.
    """

    workers: tuple[int, ...]
    sizes: tuple[int, ...]
    order: np.ndarray
    start: int = 0

    @classmethod
    def of(cls, parts: Mapping[int, np.ndarray]) -> Minibatch:
        """Builds the only minibatch of an epoch from worker -> rows."""
        sizes = tuple(len(rows) for rows in parts.values())
        return cls(tuple(parts), sizes, np.concatenate([np.empty(0, np.int64), *parts.values()]))

    @property
    def stop(self) -> int:
        """Where the rows of this step end in `order`."""
        return self.start + sum(self.sizes)

    @cached_property
    def parts(self) -> dict[int, np.ndarray]:
        """Worker -> its rows."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        *parts, _ = np.split(self.order[self.start : self.stop], ends)
        return dict(zip(self.workers, parts, strict=True))

    def rows(self, workers: Sequence[int]) -> np.ndarray:
        """Returns the rows of the given workers, one after the other."""
        if tuple(workers) == self.workers:
            return self.order[self.start : self.stop]
        return np.concatenate([self.parts[worker] for worker in workers])


def num_minibatches(num_rows: Iterable[int], num_steps: int, minibatch_size: int | None) -> int:
    """Returns the number of minibatches per epoch, the same for every worker.

    Args:
        num_rows: Rows of each worker; a row may be a whole sequence of a recurrent model.
        num_steps: Environment steps in all rows of all workers.
        minibatch_size: Environment steps per minibatch over all workers; None: one minibatch.
    """
    wanted = 1 if minibatch_size is None else num_steps // minibatch_size
    return max(1, min(wanted, max(num_rows, default=1)))


def minibatches(
    rows: Mapping[int, np.ndarray],
    *,
    per_epoch: int,
    num_epochs: int,
    shuffle: bool,
    seed: int,
    round: int,
) -> Iterator[Minibatch]:
    """Yields `num_epochs * per_epoch` minibatches.

    A worker's rows of an epoch are split as evenly as they go (sizes differ by one at most). A
    worker with fewer rows than minibatches repeats them, so that it is part of every merge. Without
    any worker, as many empty ones are yielded: another learner has them.

    Args:
        rows: Worker -> row indices.
        per_epoch: Minibatches per epoch.
        num_epochs: Passes over the data.
        shuffle: Whether each worker's rows are shuffled in every epoch.
        seed: The run's root seed. A shuffle is drawn from (seed, worker, round, epoch).
        round: Number of the round.
    """
    table = _Table(rows, per_epoch)
    keys = None
    if shuffle and per_epoch > 1:
        keys = shuffle_keys(list(rows), seed=seed, round=round, num_epochs=num_epochs)
    order = table.order(None)
    for epoch in range(num_epochs):
        if keys is not None:
            order = table.order(keys[:, epoch])
        for k in range(per_epoch):
            yield Minibatch(table.workers, table.sizes[k], order, table.starts[k])


def shuffle_keys(workers: Sequence[int], *, seed: int, round: int, num_epochs: int) -> np.ndarray:
    """Returns the seeds of the shuffles, [workers, epochs] uint64, each of its own stream.

    A worker's keys depend on nobody else's, and not on the number of epochs.
    """
    keys = [
        stream(seed, Stream.SHUFFLE, worker, round).generate_state(num_epochs, np.uint64)
        for worker in workers
    ]
    return np.array(keys, np.uint64).reshape(len(workers), num_epochs)


def ranks(keys: np.ndarray, length: int) -> np.ndarray:
    """Returns a random number for each of some items, drawn from their owner's key.

    SplitMix64 (Steele, Lea & Flood 2014): item j is the j-th number of the generator with that
    seed. For all owners at once, because a generator object for each takes longer than training.

    Args:
        keys: [n] uint64.
        length: Items per owner.

    Returns:
        [n, length] uint64.
    """
    golden, first, second = (
        np.uint64(constant)
        for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    )
    mixed = keys[:, None] + np.arange(1, length + 1, dtype=np.uint64) * golden
    mixed = (mixed ^ (mixed >> np.uint64(30))) * first
    mixed = (mixed ^ (mixed >> np.uint64(27))) * second
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


class _Table:
    """Rows of all workers in one rectangle, and how its entries are dealt to the minibatches."""

    def __init__(self, rows: Mapping[int, np.ndarray], per_epoch: int) -> None:
        self.workers = tuple(rows)
        self._lengths = np.array([len(own) for own in rows.values()], np.int64)
        self._width = max([*self._lengths.tolist(), 0])
        self._rows = np.zeros((len(rows), self._width), np.int64)
        for line, own in zip(self._rows, rows.values(), strict=True):
            line[: len(own)] = own
        used = np.maximum(self._lengths, per_epoch)  # Repeated, where there are too few.
        owner = np.repeat(np.arange(len(rows)), used)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(used) - used, used)
        size, num_longer = np.divmod(used, per_epoch)
        # The first `num_longer` minibatches of a worker have one row more than the others.
        edge = (num_longer * (size + 1))[owner]
        step = np.where(
            place < edge,
            place // (size + 1)[owner],
            num_longer[owner] + (place - edge) // size[owner],
        )
        by_step = np.argsort(step, kind="stable")
        self._owner = owner[by_step]
        self._place = (place % self._lengths[owner])[by_step]
        sizes = size[None, :] + (np.arange(per_epoch)[:, None] < num_longer[None, :])
        self.sizes = [tuple(line) for line in sizes.tolist()]
        totals = sizes.sum(axis=1)
        self.starts = (np.cumsum(totals) - totals).tolist()

    def order(self, keys: np.ndarray | None) -> np.ndarray:
        """Returns the rows of all steps of an epoch; None: without a shuffle."""
        rows = self._rows
        if keys is not None:
            drawn = ranks(keys, self._width)
            # Entries that stand for no row come last, and are never asked for.
            drawn[np.arange(self._width) >= self._lengths[:, None]] = np.iinfo(np.uint64).max
            rows = np.take_along_axis(rows, np.argsort(drawn, axis=1, kind="stable"), axis=1)
        return np.asarray(rows[self._owner, self._place])
