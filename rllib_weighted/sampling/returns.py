"""The returns of episodes that span several rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.columns import RolloutColumns
from rllib_weighted.workers import WORKER_KEY


class ChunkReturn(NamedTuple):
    """The undiscounted return of an episode's chunk, and whether the episode ends with it."""

    id_: str
    worker: int
    value: float
    is_done: bool


def of_episodes(episodes: Iterable[SingleAgentEpisode]) -> Iterator[ChunkReturn]:
    """Returns what a round's episodes brought."""
    for episode in episodes:
        worker, value = episode.custom_data[WORKER_KEY], float(episode.get_return())
        yield ChunkReturn(episode.id_, worker, value, episode.is_done)


def of_columns(columns: RolloutColumns) -> Iterator[ChunkReturn]:
    """The same for columns."""
    for id_, worker, value, is_done in zip(
        columns.ids,
        columns.chunks["worker"].tolist(),
        columns.returns().tolist(),
        columns.is_done.tolist(),
        strict=True,
    ):
        yield ChunkReturn(id_, worker, value, is_done)


class CarriedReturns:
    """Adds up the chunks of every episode, from round to round."""

    def __init__(self) -> None:
        self._carried: dict[str, float] = {}

    def finished(
        self, chunks: Iterable[ChunkReturn], faults: Mapping[int, str]
    ) -> dict[int, list[float]]:
        """Returns worker -> returns of its episodes that ended in this round.

        Args:
            chunks: What the round brought.
            faults: Workers whose rewards are partly unknown; their open episodes never count.
        """
        finished: dict[int, list[float]] = {}
        carried: dict[str, float] = {}
        for chunk in chunks:
            so_far = self._carried.pop(chunk.id_, 0.0) + chunk.value
            if chunk.worker in faults:
                so_far = math.nan
            if not chunk.is_done:
                carried[chunk.id_] = so_far
            elif math.isfinite(so_far):
                finished.setdefault(chunk.worker, []).append(so_far)
        self._carried = carried
        return finished
