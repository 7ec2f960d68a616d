"""Rollouts as arrays: what the fast vector path hands to the learners instead of episodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted.core.workers import ENV_INDEX_KEY, WORKER_KEY

CHUNK = np.dtype(
    [
        ("id", "S32"),
        ("env_index", np.int64),
        ("worker", np.int64),
        ("length", np.int64),
        ("t_started", np.int64),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
        (WEIGHTS_SEQ_NO, np.int64),
    ]
)
"""One row per episode or chunk of one: its id, sub-environment and worker, steps in it and before
it, how it ended (neither: it goes on), and the version of the weights that acted."""


@dataclass(eq=False)
class RolloutColumns:
    """The steps of C chunks, one after the other.

    Args:
        obs: [steps + C, …] as the module sees them: of each chunk one more than it has steps, the
            last one for the bootstrap.
        steps: Name -> [steps, …]: actions, rewards and the policy's outputs.
        chunks: [C] of `CHUNK`, each of one step or more.
    """

    obs: np.ndarray
    steps: dict[str, np.ndarray]
    chunks: np.ndarray

    @property
    def num_steps(self) -> int:
        """Environment steps."""
        return int(self.chunks["length"].sum())

    @property
    def workers(self) -> set[int]:
        """The workers that the chunks belong to."""
        return set(self.chunks["worker"].tolist())

    @property
    def ids(self) -> list[str]:
        """[C]: the ids of the chunks' episodes."""
        return [id_.decode() for id_ in self.chunks["id"].tolist()]

    @property
    def is_done(self) -> np.ndarray:
        """[C]: whether the chunk ends its episode."""
        return np.asarray(self.chunks["terminated"] | self.chunks["truncated"])

    @property
    def starts(self) -> np.ndarray:
        """[C]: each chunk's first row in `steps`; in `obs` it is that many chunks further on."""
        return np.asarray(np.cumsum(self.chunks["length"]) - self.chunks["length"])

    def returns(self) -> np.ndarray:
        """[C]: the chunks' undiscounted returns, summed in the order of time as RLlib does."""
        rewards, starts = self.steps[Columns.REWARDS], self.starts.tolist()
        ends = [*starts[1:], len(rewards)]
        sums = [np.add.accumulate(rewards[a:b])[-1] for a, b in zip(starts, ends, strict=True)]
        return np.array(sums, np.float64)

    def take(self, chunks: np.ndarray) -> RolloutColumns:
        """Returns some chunks, in the order of their indices in `chunks`."""
        chunks = np.asarray(chunks, np.int64)
        if np.array_equal(chunks, np.arange(len(self.chunks))):
            return self
        starts, lengths = self.starts[chunks], self.chunks["length"][chunks]
        rows = ranges(starts, lengths)
        return RolloutColumns(
            self.obs[ranges(starts + chunks, lengths + 1)],
            {name: column[rows] for name, column in self.steps.items()},
            self.chunks[chunks],
        )

    def of_workers(self, num_shards: int, shard: int) -> RolloutColumns:
        """Returns the chunks of the workers whose number modulo `num_shards` is `shard`."""
        return self.take(np.flatnonzero(self.chunks["worker"] % num_shards == shard))

    def by_worker(self) -> RolloutColumns:
        """Returns the same, worker after worker; each one's chunks stay in their order."""
        return self.take(np.argsort(self.chunks["worker"], kind="stable"))

    def joined(self, kept: Collection[str]) -> RolloutColumns:
        """Joins the chunks of each episode, in the order in which they lie here.

        Args:
            kept: Ids of the episodes that are wanted; the others are left out.

        Returns:
            One chunk per episode, in the order of their last chunks here.
        """
        ids = self.ids
        last = {id_: index for index, id_ in enumerate(ids)}
        found = sorted((last[id_], index) for index, id_ in enumerate(ids) if id_ in kept)
        pieces = np.array([index for _, index in found], np.int64)
        is_last = np.array([index == end for end, index in found], np.bool_)
        is_first = np.concatenate([[True], is_last])[:-1]
        starts, lengths = self.starts[pieces], self.chunks["length"][pieces]
        rows = ranges(starts, lengths)
        chunks = self.chunks[pieces[is_last]]
        chunks["t_started"] = self.chunks["t_started"][pieces[is_first]]
        chunks["length"] = np.diff(np.concatenate([[0], np.cumsum(lengths)[is_last]]))
        return RolloutColumns(
            # A piece's last observation is the next one's first.
            self.obs[ranges(starts + pieces, lengths + is_last)],
            {name: column[rows] for name, column in self.steps.items()},
            chunks,
        )

    def to_episodes(
        self,
        observation_space: Any = None,
        action_space: Any = None,
        infos: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[SingleAgentEpisode]:
        """Returns one numpy episode per chunk, with its worker in `custom_data`.

        Args:
            observation_space: The spaces that the episodes carry.
            action_space: Likewise.
            infos: Of each chunk, as many as observations; None: empty ones.
        """
        return [
            self._episode(index, start, observation_space, action_space, infos and infos[index])
            for index, start in enumerate(self.starts.tolist())
        ]

    def _episode(
        self, index: int, start: int, observation_space: Any, action_space: Any, infos: Any
    ) -> SingleAgentEpisode:
        chunk = self.chunks[index]
        length = int(chunk["length"])
        steps = {name: column[start : start + length] for name, column in self.steps.items()}
        actions, rewards = steps.pop(Columns.ACTIONS), steps.pop(Columns.REWARDS)
        steps[WEIGHTS_SEQ_NO] = np.full(length, chunk[WEIGHTS_SEQ_NO])
        episode = SingleAgentEpisode(
            id_=chunk["id"].decode(),
            observations=self.obs[start + index : start + index + length + 1],
            observation_space=observation_space,
            infos=infos or [{} for _ in range(length + 1)],
            actions=actions,
            action_space=action_space,
            rewards=rewards,
            terminated=bool(chunk["terminated"]),
            truncated=bool(chunk["truncated"]),
            extra_model_outputs=steps,
            t_started=int(chunk["t_started"]),
            len_lookback_buffer=0,
        )
        episode.custom_data[ENV_INDEX_KEY] = int(chunk["env_index"])
        episode.custom_data[WORKER_KEY] = int(chunk["worker"])
        return episode.to_numpy()


def concatenated(parts: Sequence[RolloutColumns]) -> RolloutColumns:
    """Puts rollouts one after the other; there should be one or more."""
    if len(parts) == 1:
        return parts[0]
    return RolloutColumns(
        np.concatenate([part.obs for part in parts]),
        {name: np.concatenate([part.steps[name] for part in parts]) for name in parts[0].steps},
        np.concatenate([part.chunks for part in parts]),
    )


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, … for each start, as many as its length, as one array."""
    offsets = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(starts - offsets, lengths) + np.arange(lengths.sum()))


# Episodes and their chunks: who they belong to, which are kept, joining them again


@dataclass(frozen=True)
class EpisodeStats:
    """What RLlib's `get_metrics` asks of an episode or chunk, without the episode.

    Args:
        id_: The episode's id.
        length: Steps in the chunk.
        undiscounted_return: Its return.
        is_done: Whether it ends the episode.
    """

    id_: str
    length: int
    undiscounted_return: float
    is_done: bool

    def __len__(self) -> int:
        return self.length

    def get_return(self) -> float:  # noqa: D102 (RLlib's names)
        return self.undiscounted_return

    def get_duration_s(self) -> float:  # noqa: D102
        return 0.0  # As of an episode that is made from arrays.


class Quotas:
    """Which episodes are kept: per sub-environment, whole ones until they hold enough steps.

    Args:
        num_envs: Number of sub-environments.
        quota: Steps that each of them owes.
    """

    def __init__(self, num_envs: int, quota: int) -> None:
        self._missing = [quota] * num_envs
        self._lengths: dict[str, int] = {}
        self.kept: set[str] = set()

    @property
    def met(self) -> bool:
        """Whether every sub-environment has enough."""
        return all(missing <= 0 for missing in self._missing)

    def add(self, chunks: Iterable[SingleAgentEpisode] | RolloutColumns) -> None:
        """Counts chunks, in the order in which they were sampled."""
        for id_, index, steps, is_done in _table(chunks):
            length = self._lengths.get(id_, 0) + steps
            self._lengths[id_] = length
            if is_done and self._missing[index] > 0:
                self._missing[index] -= length
                self.kept.add(id_)


def _table(
    chunks: Iterable[SingleAgentEpisode] | RolloutColumns,
) -> Iterable[tuple[str, int, int, bool]]:
    if isinstance(chunks, RolloutColumns):
        table = (chunks.chunks[name].tolist() for name in ("env_index", "length"))
        return zip(chunks.ids, *table, chunks.is_done.tolist(), strict=True)
    return [
        (chunk.id_, chunk.custom_data[ENV_INDEX_KEY], len(chunk), chunk.is_done) for chunk in chunks
    ]


def log_episode_metrics(env_runner: Any, columns: RolloutColumns) -> None:
    """Tells an env runner what RLlib's `get_metrics` will ask (private; tested with Ray 2.60)."""
    lengths, returns = columns.chunks["length"].tolist(), columns.returns().tolist()
    done = columns.is_done.tolist()
    for row in zip(columns.ids, lengths, returns, done, strict=True):
        chunk = EpisodeStats(*row)
        if chunk.is_done:
            env_runner._done_episodes_for_metrics.append(chunk)
        else:
            env_runner._ongoing_episodes_for_metrics[chunk.id_].append(chunk)
    env_runner._increase_sampled_metrics(columns.num_steps, sum(done))


def join_chunks(chunks: Iterable[SingleAgentEpisode]) -> list[SingleAgentEpisode]:
    """Joins chunks of the same episode (same `id_`), in the order in which they are given.

    Args:
        chunks: Numpy-ized chunks; those of one episode follow each other in time.

    Returns:
        One episode per `id_`, in the order of their last chunks.
    """
    by_id: dict[str, list[SingleAgentEpisode]] = {}
    for chunk in chunks:
        by_id[chunk.id_] = [*by_id.pop(chunk.id_, []), chunk]
    return [parts[0] if len(parts) == 1 else _join(parts) for parts in by_id.values()]


def _join(parts: list[SingleAgentEpisode]) -> SingleAgentEpisode:
    first, last = parts[0], parts[-1]
    observations = [first.get_observations()]
    observations += [
        tree.map_structure(lambda x: x[1:], part.get_observations()) for part in parts[1:]
    ]
    infos = list(first.get_infos()) + [i for part in parts[1:] for i in part.get_infos()[1:]]
    joined = SingleAgentEpisode(
        id_=first.id_,
        observations=_concatenate(observations),
        observation_space=first.observation_space,
        infos=infos,
        actions=_concatenate([part.get_actions() for part in parts]),
        action_space=first.action_space,
        rewards=_concatenate([part.get_rewards() for part in parts]),
        terminated=last.is_terminated,
        truncated=last.is_truncated,
        extra_model_outputs={
            key: _concatenate([part.get_extra_model_outputs(key) for part in parts])
            for key in first.extra_model_outputs
        },
        t_started=first.t_started,
        len_lookback_buffer=0,
        agent_id=first.agent_id,
        module_id=first.module_id,
    )
    joined.custom_data.update(last.custom_data)
    return joined.to_numpy()


def _concatenate(values: list[Any]) -> Any:
    return tree.map_structure(lambda *arrays: np.concatenate(arrays), *values)


# The returns of episodes that span several rounds


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
        self, chunks: Iterable[ChunkReturn], invalid: Mapping[int, str]
    ) -> dict[int, list[float]]:
        """Returns worker -> returns of its episodes that ended in this round.

        Args:
            chunks: What the round brought.
            invalid: Workers whose rewards are partly unknown; their open episodes never count.
        """
        finished: dict[int, list[float]] = {}
        carried: dict[str, float] = {}
        for chunk in chunks:
            so_far = self._carried.pop(chunk.id_, 0.0) + chunk.value
            if chunk.worker in invalid:
                so_far = math.nan
            if not chunk.is_done:
                carried[chunk.id_] = so_far
            elif math.isfinite(so_far):
                finished.setdefault(chunk.worker, []).append(so_far)
        self._carried = carried
        return finished
