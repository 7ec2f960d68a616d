"""Training data that is handed on worker by worker, never cut by steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.columns import RolloutColumns, concatenated
from rllib_weighted.workers import WORKER_KEY


@dataclass
class WorkerTrainingData(TrainingData):
    """Episodes grouped by worker.

    RLlib's own sharding sorts episodes by length and cuts them where a shard is full, which also
    loses their `custom_data`. Here a learner gets whole workers.

    Args:
        workers: Worker -> its episodes; `episodes` holds the same, worker after worker.
    """

    workers: dict[int, list[SingleAgentEpisode]] = field(default_factory=dict)

    @classmethod
    def from_workers(cls, workers: dict[int, list[SingleAgentEpisode]]) -> WorkerTrainingData:
        """Builds the training data of some workers, in the order of their indices."""
        ordered = {worker: workers[worker] for worker in sorted(workers)}
        return cls(episodes=[e for group in ordered.values() for e in group], workers=ordered)

    @property
    def is_empty(self) -> bool:
        """Whether there is no step."""
        return not self.episodes

    def finished_returns(self) -> dict[int, list[float]]:
        """Returns worker -> what the data show of the returns of its episodes that ended."""
        return {
            worker: [e.get_return() for e in episodes if e.is_done]
            for worker, episodes in self.workers.items()
        }

    def shard(
        self, num_shards: int, len_lookback_buffer: int | None = None, **kwargs: Any
    ) -> list[tuple[TrainingData, dict[str, Any]]]:
        """Gives worker i to learner i modulo `num_shards`, whoever else has sent something.

        Counts differ by one at most; by more where workers have sent nothing. A worker's own
        parameters (actor strategies) so stay where they are for the whole run.
        """
        return [
            (self.from_workers({w: e for w, e in self.workers.items() if w % num_shards == i}), {})
            for i in range(num_shards)
        ]


@dataclass
class ColumnTrainingData(TrainingData):
    """The same as columns.

    Args:
        columns: The workers' steps, worker after worker.
    """

    columns: Any = None

    @classmethod
    def from_rollouts(
        cls, rollouts: Sequence[RolloutColumns], *, num_workers: int
    ) -> ColumnTrainingData:
        """Builds the training data of what some env runners sampled; there should be one or more.

        Raises:
            ValueError: If a chunk is of a worker that there is not.
        """
        columns = concatenated(rollouts).by_worker()
        if strangers := sorted(columns.workers - set(range(num_workers))):
            raise ValueError(
                f"Columns should be of the workers 0 … {num_workers - 1}, found {strangers}: "
                "sample with env runners of the same config."
            )
        return cls(columns=columns)

    @property
    def is_empty(self) -> bool:
        """Whether there is no step."""
        return self.columns is None or not len(self.columns.chunks)

    def finished_returns(self) -> dict[int, list[float]]:
        """See `WorkerTrainingData.finished_returns`."""
        found: dict[int, list[float]] = {}
        if self.columns is not None:
            workers, done = self.columns.chunks["worker"].tolist(), self.columns.is_done.tolist()
            for worker, is_done, value in zip(
                workers, done, self.columns.returns().tolist(), strict=True
            ):
                if is_done:
                    found.setdefault(worker, []).append(value)
        return found

    def validate(self) -> None:
        """Nothing to check: there is one kind of data."""

    def solve_refs(self) -> None:
        """There are no references."""

    def shard(
        self, num_shards: int, len_lookback_buffer: int | None = None, **kwargs: Any
    ) -> list[tuple[TrainingData, dict[str, Any]]]:
        """Gives worker i to learner i modulo `num_shards`; see `WorkerTrainingData.shard`."""
        return [
            (ColumnTrainingData(columns=self.columns.of_workers(num_shards, i)), {})
            for i in range(num_shards)
        ]


Data = WorkerTrainingData | ColumnTrainingData


def group_by_worker(
    episodes: Sequence[SingleAgentEpisode], *, num_workers: int
) -> dict[int, list[SingleAgentEpisode]]:
    """Groups episodes by the worker that they carry in `custom_data`.

    Args:
        episodes: Episodes and chunks of episodes.
        num_workers: N. With a single worker, episodes without identity are its own.

    Raises:
        ValueError: If an episode says of no worker, or of one that there is not.
    """
    workers: dict[int, list[SingleAgentEpisode]] = {}
    for episode in episodes:
        worker = episode.custom_data.get(WORKER_KEY, 0 if num_workers == 1 else None)
        is_index = isinstance(worker, Integral) and not isinstance(worker, bool)
        if not is_index or not 0 <= worker < num_workers:
            raise ValueError(
                f"Episode {episode.id_} should carry one of the workers 0 … {num_workers - 1} in "
                f'`custom_data["{WORKER_KEY}"]`, found {worker!r}. Sample with '
                "rllib_weighted's `WeightedEnvRunner` (the default `env_runner_cls`), or set it."
            )
        if len(episode):
            workers.setdefault(int(worker), []).append(episode)
    return workers
