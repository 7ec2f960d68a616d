"""What the learners of a group tell each other in a round: sums over all of them, never more.

Every learner holds whole workers. What it knows of them travels as rows of a zero-padded matrix,
one row per worker of the run: adding 0 changes no bit, so that all learners read the same numbers
and decide the same, whatever their number is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from rllib_weighted.learning.losses import PART_NAMES, WorkerLosses


class Collectives:
    """The sums over all learners. With a single one, nothing is sent and nothing is copied.

    Every method is collective: all learners call the same ones in the same order, also those
    without a worker.

    Args:
        num_learners: Number of learners; more than one needs an initialised process group.
        num_workers: N, over all learners.
        device: Where the learner computes; NCCL sends from GPUs only.
    """

    def __init__(
        self, num_learners: int, num_workers: int, device: torch.device | str = "cpu"
    ) -> None:
        self.is_solo = num_learners < 2
        self.num_learners = num_learners
        self.num_workers = num_workers
        self.device = device

    @property
    def index(self) -> int:
        """This learner's index among them."""
        return 0 if self.is_solo else dist.get_rank()

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all learners, the same bits on each; same shape."""
        if self.is_solo:
            return values
        values = values.to(self.device).contiguous()
        dist.all_reduce(values)
        return values

    def of_workers(self, own: Sequence[int], rows: Tensor) -> Tensor:
        """Returns what all learners know of their workers.

        Args:
            own: This learner's workers; there may be none.
            rows: Their numbers, [n, width].

        Returns:
            [N, width] float64; 0 for workers that no learner holds.
        """
        shape = self.num_workers, rows.shape[1]
        table = torch.zeros(shape, dtype=torch.float64, device=self.device)
        table[list(own)] = rows.detach().to(table)
        return self.sum(table)

    def losses(
        self, own: Sequence[int], losses: WorkerLosses | None, workers: Sequence[int]
    ) -> WorkerLosses:
        """Returns the losses of all workers that take part in a step, detached.

        Args:
            own: This learner's workers among them.
            losses: Their losses, in the same order; None without any.
            workers: All of them, over all learners.
        """
        if self.is_solo:
            assert losses is not None
            return losses.detached()
        # Every part, and whether it is known.
        rows = torch.zeros(0, 2 * len(PART_NAMES)) if losses is None else _as_rows(losses)
        table = self.of_workers(own, rows)
        values, known = torch.split(table[list(workers)], len(PART_NAMES), dim=1)
        columns = zip(values.unbind(1), known.all(dim=0).tolist(), strict=True)
        parts: list[Any] = [value if is_known else None for value, is_known in columns]
        return WorkerLosses(*parts)

    def gradients(
        self, own: Mapping[Any, Tensor], parameters: Mapping[Any, Tensor]
    ) -> dict[Any, Tensor]:
        """Returns the sum of all learners' gradients, by one flat all-reduce.

        Args:
            own: Parameter reference -> gradient; absent ones add nothing.
            parameters: All parameters, in the same order on every learner.

        Returns:
            The gradients that at least one learner has.
        """
        if self.is_solo:
            return dict(own)
        pieces = [
            own[key].flatten() if key in own else torch.zeros_like(p).flatten()
            for key, p in parameters.items()
        ]
        given = [float(key in own) for key in parameters]
        # Types are promoted: the widest one holds all of them.
        flat = self.sum(torch.cat([*pieces, pieces[0].new_tensor(given)]))
        *summed, counts = torch.split(flat, [*(len(piece) for piece in pieces), len(given)])
        return {
            key: gradient.view_as(p).to(p.dtype)
            for (key, p), gradient, count in zip(
                parameters.items(), summed, counts.tolist(), strict=True
            )
            if count
        }

    def align(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors, in place, with those of the first learner."""
        if self.is_solo:
            return
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def _as_rows(losses: WorkerLosses) -> Tensor:
    """[n, 2 C]: the parts, then 1 for those that are known and 0 for the others."""
    unknown = torch.zeros_like(losses.total)
    values = [unknown if part is None else part for part in losses.parts]
    known = [torch.full_like(unknown, float(part is not None)) for part in losses.parts]
    return torch.stack([*values, *known], dim=1).detach()
