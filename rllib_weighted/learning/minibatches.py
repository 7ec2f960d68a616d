"""Each step merges the k-th minibatch of every worker: who contributes which rows to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rllib_weighted.seeding import Stream, generator


@dataclass(frozen=True)
class Minibatch:
    """Rows of one optimizer step, worker after worker.

    Args:
        parts: Worker -> row indices into the round's batch, int64, at least one each.
    """

    parts: dict[int, np.ndarray]

    def rows(self, workers: Sequence[int]) -> np.ndarray:
        """Returns the rows of the given workers, one after the other."""
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
    rows: dict[int, np.ndarray],
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
    for epoch in range(num_epochs):
        parts = {
            worker: np.array_split(
                _order(indices, per_epoch, shuffle, (seed, worker, round, epoch)), per_epoch
            )
            for worker, indices in rows.items()
        }
        for k in range(per_epoch):
            yield Minibatch({worker: split[k] for worker, split in parts.items()})


def _order(
    indices: np.ndarray, per_epoch: int, shuffle: bool, counters: tuple[int, int, int, int]
) -> np.ndarray:
    if shuffle and per_epoch > 1:
        seed, *names = counters
        indices = generator(seed, Stream.SHUFFLE, *names).permutation(indices)
    return np.resize(indices, per_epoch) if len(indices) < per_epoch else indices
