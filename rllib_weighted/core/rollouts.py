"""Rollouts as arrays, and the returns of their episodes.

The fast sampler produces `RolloutColumns`; RLlib's own loop produces `SingleAgentEpisode`s. Both
can hold *chunks*: pieces of an episode that was cut at the end of a round. `EpisodeStats` is what
the rest of sampling needs of a chunk, whichever form it has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted._private import set_duration
from rllib_weighted.core.episode_signals import success_of
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
        ("success", np.int8),
        (WEIGHTS_SEQ_NO, np.int64),
        ("seconds", np.float64),
    ]
)
"""One row per chunk: its episode's id, sub-environment and worker, the steps in it and before it,
how it ended (neither: the episode goes on), whether it succeeded (1, 0; -1: unknown), the version
of the weights that acted, and the time that it took."""


@dataclass(eq=False)
class RolloutColumns:
    """The steps of C chunks, one after the other.

    Args:
        obs: [steps + C, …] as the module sees them: each chunk has one more than steps, the last
            one for the bootstrap.
        steps: Name -> [steps, …]: actions, rewards and the policy's outputs.
        chunks: [C] of `CHUNK`, each of one step or more.
        infos: [steps + C] of dicts, one per observation; None if nobody asked for them.
    """

    obs: np.ndarray
    steps: dict[str, np.ndarray]
    chunks: np.ndarray
    infos: np.ndarray | None = None

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
        """[C]: each chunk's first row in `steps`; its first row in `obs` is `starts[c] + c`."""
        return np.asarray(np.cumsum(self.chunks["length"]) - self.chunks["length"])

    def returns(self) -> np.ndarray:
        """[C]: the chunks' undiscounted returns, summed in the order of time as RLlib does."""
        rewards, starts = self.steps[Columns.REWARDS], self.starts.tolist()
        ends = [*starts[1:], len(rewards)]
        sums = [np.add.accumulate(rewards[a:b])[-1] for a, b in zip(starts, ends, strict=True)]
        return np.array(sums, np.float64)

    def take_nonfinite_rewards(self) -> dict[str, float]:
        """Puts 0 in the place of NaN and infinite rewards: a learner is given none.

        Returns:
            Episode's id -> the sum of those that were replaced in its chunk.
        """
        rewards = self.steps[Columns.REWARDS]
        bad = np.flatnonzero(~np.isfinite(rewards))
        if not len(bad):
            return {}
        ids, found = self.ids, dict[str, float]()
        chunks = np.searchsorted(self.starts, bad, side="right") - 1
        for chunk, reward in zip(chunks.tolist(), rewards[bad].tolist(), strict=True):
            found[ids[chunk]] = found.get(ids[chunk], 0.0) + reward
        rewards[bad] = 0.0
        return found

    def take(self, chunks: np.ndarray) -> RolloutColumns:
        """Returns some chunks, in the order of their indices in `chunks`."""
        chunks = np.asarray(chunks, np.int64)
        if np.array_equal(chunks, np.arange(len(self.chunks))):
            return self
        starts, lengths = self.starts[chunks], self.chunks["length"][chunks]
        return self._select(
            ranges(starts + chunks, lengths + 1), ranges(starts, lengths), self.chunks[chunks]
        )

    def of_workers(self, num_shards: int, shard: int) -> RolloutColumns:
        """Returns the chunks of the workers whose number modulo `num_shards` is `shard`."""
        return self.take(np.flatnonzero(self.chunks["worker"] % num_shards == shard))

    def by_worker(self) -> RolloutColumns:
        """Returns the same, worker after worker; each one's chunks stay in their order."""
        return self.take(np.argsort(self.chunks["worker"], kind="stable"))

    def joined(self, kept: Collection[str]) -> RolloutColumns:
        """Joins the chunks of each episode; an episode's chunks must lie in the order of time.

        Args:
            kept: Ids of the episodes to return; the others are dropped.

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
        chunks = self.chunks[pieces[is_last]]
        chunks["t_started"] = self.chunks["t_started"][pieces[is_first]]
        firsts = np.flatnonzero(is_first)
        for name in ("length", "seconds"):
            chunks[name] = np.add.reduceat(self.chunks[name][pieces], firsts) if len(firsts) else 0
        # A piece's last observation is the next one's first.
        return self._select(
            ranges(starts + pieces, lengths + is_last), ranges(starts, lengths), chunks
        )

    def _select(
        self, observations: np.ndarray, steps: np.ndarray, chunks: np.ndarray
    ) -> RolloutColumns:
        return RolloutColumns(
            self.obs[observations],
            {name: column[steps] for name, column in self.steps.items()},
            chunks,
            None if self.infos is None else self.infos[observations],
        )

    def to_episodes(
        self,
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
    ) -> list[SingleAgentEpisode]:
        """Returns one numpy episode per chunk, with its worker in `custom_data`.

        Args:
            observation_space: The observation space that the episodes carry.
            action_space: Their action space.
        """
        episodes = []
        for index, (chunk, start) in enumerate(zip(self.chunks, self.starts.tolist(), strict=True)):
            length = int(chunk["length"])
            steps = {name: column[start : start + length] for name, column in self.steps.items()}
            actions, rewards = steps.pop(Columns.ACTIONS), steps.pop(Columns.REWARDS)
            steps[WEIGHTS_SEQ_NO] = np.full(length, chunk[WEIGHTS_SEQ_NO])
            observations = slice(start + index, start + index + length + 1)
            no_infos: list[dict[str, Any]] = [{} for _ in range(length + 1)]
            episode = SingleAgentEpisode(
                id_=chunk["id"].decode(),
                observations=self.obs[observations],
                observation_space=observation_space,
                infos=no_infos if self.infos is None else list(self.infos[observations]),
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
            set_duration(episode, float(chunk["seconds"]))
            episodes.append(episode.to_numpy())
        return episodes


def concatenated(parts: Sequence[RolloutColumns]) -> RolloutColumns:
    """Puts one or more rollouts one after the other; all of them have infos, or none."""
    if len(parts) == 1:
        return parts[0]
    infos = [part.infos for part in parts if part.infos is not None]
    return RolloutColumns(
        np.concatenate([part.obs for part in parts]),
        {name: np.concatenate([part.steps[name] for part in parts]) for name in parts[0].steps},
        np.concatenate([part.chunks for part in parts]),
        np.concatenate(infos) if infos else None,
    )


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, … for each start, as many as its length, as one array."""
    offsets = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(starts - offsets, lengths) + np.arange(lengths.sum()))


@dataclass(frozen=True)
class EpisodeStats:
    """Length and return of one chunk.

    The methods are those that RLlib's `get_metrics` calls on an episode.

    Args:
        id_: The episode's id.
        env_index: The sub-environment, inside its env runner.
        worker: The worker.
        length: Steps in the chunk.
        undiscounted_return: Sum of the chunk's rewards.
        is_done: Whether the chunk ends its episode.
        success: Whether it succeeded; None if it goes on, or its last info says nothing.
        seconds: The time that it took.
    """

    id_: str
    env_index: int
    worker: int
    length: int
    undiscounted_return: float
    is_done: bool
    success: bool | None = None
    seconds: float = 0.0

    def __len__(self) -> int:
        return self.length

    def get_return(self) -> float:  # noqa: D102 (RLlib's names)
        return self.undiscounted_return

    def get_duration_s(self) -> float:  # noqa: D102
        return self.seconds


def episode_stats(rollout: RolloutColumns | Iterable[SingleAgentEpisode]) -> list[EpisodeStats]:
    """Returns the stats of every chunk, in the order in which the rollout holds them."""
    if isinstance(rollout, RolloutColumns):
        named = (rollout.chunks[name].tolist() for name in ("env_index", "worker", "length"))
        returns, is_done = rollout.returns().tolist(), rollout.is_done.tolist()
        success = [{1: True, 0: False}.get(code) for code in rollout.chunks["success"].tolist()]
        seconds = rollout.chunks["seconds"].tolist()
        rows = zip(rollout.ids, *named, returns, is_done, success, seconds, strict=True)
        return [EpisodeStats(*row) for row in rows]
    return [
        EpisodeStats(
            episode.id_,
            episode.custom_data[ENV_INDEX_KEY],
            episode.custom_data[WORKER_KEY],
            len(episode),
            float(episode.get_return()),
            episode.is_done,
            success_of(episode.get_infos(-1)) if episode.is_done else None,
            episode.get_duration_s(),
        )
        for episode in rollout
    ]


def with_episodes(
    chunks: Sequence[EpisodeStats], episodes: Iterable[SingleAgentEpisode]
) -> list[EpisodeStats | SingleAgentEpisode]:
    """Puts episodes in the place of the chunks that they are made of: of each one's last chunk.

    Args:
        chunks: The stats of chunks, in the order of time.
        episodes: Some of their episodes, or all.
    """
    made = {episode.id_: episode for episode in episodes}
    last = {chunk.id_: index for index, chunk in enumerate(chunks)}
    return [
        made.get(chunk.id_, chunk)
        for index, chunk in enumerate(chunks)
        if chunk.id_ not in made or last[chunk.id_] == index
    ]


def finished_successes(chunks: Iterable[EpisodeStats]) -> dict[int, list[bool]]:
    """Returns worker -> whether its episodes that ended succeeded, those that say so."""
    found: dict[int, list[bool]] = {}
    for chunk in chunks:
        if chunk.is_done and chunk.success is not None:
            found.setdefault(chunk.worker, []).append(chunk.success)
    return found


class Quotas:
    """Chooses the episodes of a round: per sub-environment, whole ones until they fill a quota.

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

    def add(self, chunks: Iterable[EpisodeStats]) -> None:
        """Counts chunks, in the order in which they were sampled."""
        for chunk in chunks:
            length = self._lengths.get(chunk.id_, 0) + chunk.length
            self._lengths[chunk.id_] = length
            if chunk.is_done and self._missing[chunk.env_index] > 0:
                self._missing[chunk.env_index] -= length
                self.kept.add(chunk.id_)


class CarriedReturns:
    """Adds up the returns of episodes whose chunks lie in several rounds."""

    def __init__(self) -> None:
        self._carried: dict[str, float] = {}

    def finished(
        self, chunks: Iterable[EpisodeStats], invalid: Mapping[int, str]
    ) -> dict[int, list[float]]:
        """Returns worker -> returns of its episodes that ended in this round.

        Args:
            chunks: The round's chunks.
            invalid: Workers whose rewards are partly unknown; their open episodes never count.
        """
        finished: dict[int, list[float]] = {}
        carried: dict[str, float] = {}
        for chunk in chunks:
            so_far = self._carried.pop(chunk.id_, 0.0) + chunk.undiscounted_return
            if chunk.worker in invalid:
                so_far = math.nan
            if not chunk.is_done:
                carried[chunk.id_] = so_far
            elif math.isfinite(so_far):
                finished.setdefault(chunk.worker, []).append(so_far)
        self._carried = carried
        return finished
