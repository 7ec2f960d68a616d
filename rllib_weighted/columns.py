"""Rollouts as arrays: what the fast vector path hands to the learners instead of episodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted.workers import ENV_INDEX_KEY, WORKER_KEY

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
        rows = _ranges(starts, lengths)
        return RolloutColumns(
            self.obs[_ranges(starts + chunks, lengths + 1)],
            {name: column[rows] for name, column in self.steps.items()},
            self.chunks[chunks],
        )

    def of_workers(self, num_shards: int, shard: int) -> RolloutColumns:
        """Returns the chunks of the workers whose number modulo `num_shards` is `shard`."""
        return self.take(np.flatnonzero(self.chunks["worker"] % num_shards == shard))

    def by_worker(self) -> RolloutColumns:
        """Returns the same, worker after worker; each one's chunks stay in their order."""
        return self.take(np.argsort(self.chunks["worker"], kind="stable"))

    def joined(self, kept: Collection[bytes]) -> RolloutColumns:
        """Joins the chunks of each episode, in the order in which they lie here.

        Args:
            kept: Ids of the episodes that are wanted; the others are left out.

        Returns:
            One chunk per episode, in the order of their last chunks here.
        """
        ids = self.chunks["id"].tolist()
        last = {id_: index for index, id_ in enumerate(ids)}
        found = sorted((last[id_], index) for index, id_ in enumerate(ids) if id_ in kept)
        pieces = np.array([index for _, index in found], np.int64)
        is_last = np.array([index == end for end, index in found], np.bool_)
        is_first = np.concatenate([[True], is_last])[:-1]
        starts, lengths = self.starts[pieces], self.chunks["length"][pieces]
        rows = _ranges(starts, lengths)
        chunks = self.chunks[pieces[is_last]]
        chunks["t_started"] = self.chunks["t_started"][pieces[is_first]]
        chunks["length"] = np.diff(np.concatenate([[0], np.cumsum(lengths)[is_last]]))
        return RolloutColumns(
            # A piece's last observation is the next one's first.
            self.obs[_ranges(starts + pieces, lengths + is_last)],
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


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, … for each start, as many as its length, as one array."""
    offsets = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(starts - offsets, lengths) + np.arange(lengths.sum()))
