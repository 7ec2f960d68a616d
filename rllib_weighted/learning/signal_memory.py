"""What a learner remembers of its workers' signals from round to round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

Values: TypeAlias = dict[int, float]
"""Worker -> number; absent means missing."""


def values_of(workers: Sequence[int], numbers: Tensor) -> Values:
    """Returns worker -> number, without those that are not finite."""
    pairs = zip(workers, numbers.tolist(), strict=True)
    return {worker: number for worker, number in pairs if math.isfinite(number)}


class SignalMemory:
    """What a learner remembers of signals from round to round; part of its checkpoints.

    All learners of a group remember the same.

    Args:
        num_workers: N; the memory of another number of workers is not taken.

    Attributes:
        gradients: Signals of gradients as they were last measured, by name.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self._num_workers = num_workers
        self.gradients: dict[str, Values] = {}
        self._averages: dict[str, Values] = {}
        self._measured: dict[int, int] = {}

    def keep(self, round: int, signals: Mapping[str, Values]) -> None:
        """Keeps the signals of gradients that were measured in a round."""
        for name, values in signals.items():
            self.gradients.setdefault(name, {}).update(values)
        self._measured |= dict.fromkeys((w for values in signals.values() for w in values), round)

    def gradient_ages(self, round: int) -> dict[int, int]:
        """Returns worker -> rounds since its gradients were measured."""
        return {worker: round - measured for worker, measured in self._measured.items()}

    def smoothed(
        self, name: str, values: Values, factor: float, fresh: Iterable[int] | None = None
    ) -> Values:
        """Returns a signal's moving averages, s <- b s_before + (1 - b) s, and keeps them.

        Args:
            name: The signal.
            values: Its values.
            factor: b; with 0, the values themselves.
            fresh: The workers whose value is a new one; None: all.
        """
        if not factor:
            return values
        averages = self._averages.setdefault(name, {})
        for worker in values.keys() if fresh is None else values.keys() & set(fresh):
            before = averages.get(worker, values[worker])
            averages[worker] = factor * before + (1 - factor) * values[worker]
        return {worker: averages.get(worker, value) for worker, value in values.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds."""
        return {
            "num_workers": self._num_workers,
            "gradients": {name: dict(values) for name, values in self.gradients.items()},
            "averages": {name: dict(values) for name, values in self._averages.items()},
            "measured": dict(self._measured),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `get_state` returned, if it is of as many workers."""
        if state["num_workers"] != self._num_workers:
            return
        self.gradients = {name: dict(values) for name, values in state["gradients"].items()}
        self._averages = {name: dict(values) for name, values in state["averages"].items()}
        self._measured = dict(state["measured"])
