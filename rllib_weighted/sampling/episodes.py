"""Episodes and their chunks: who they belong to, which are kept, joining them again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tree
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.columns import RolloutColumns
from rllib_weighted.workers import ENV_INDEX_KEY


@dataclass(frozen=True)
class ChunkFigures:
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


def note_figures(env_runner: Any, columns: RolloutColumns) -> None:
    """Tells an env runner what RLlib's `get_metrics` will ask (private; tested with Ray 2.60)."""
    lengths, returns = columns.chunks["length"].tolist(), columns.returns().tolist()
    done = columns.is_done.tolist()
    for row in zip(columns.ids, lengths, returns, done, strict=True):
        chunk = ChunkFigures(*row)
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
