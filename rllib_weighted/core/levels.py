"""Levels: the pool that episodes are drawn from, and how (`env_seeding="prioritized"`).

After Prioritized Level Replay (Jiang et al. 2021, arXiv 2010.03934). A level: a seed or a context.
Every sub-environment draws for itself, at each of its resets. All draws of a round follow from the
table as it stood at the round's start (`LevelDraws`) and from a counted stream (seed,
sub-environment, episode), so that nothing depends on which env runner comes first, or on where a
sub-environment lives. The table itself is in `level_table.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from rllib_weighted.core.contexts import Context, key_problems
from rllib_weighted.core.seeding import MAX_ENVIRONMENT_SEED, Stream, environment_seed, generator
from rllib_weighted.merging.registry import option_types, type_problem
from rllib_weighted.suggest import nearest

SCORE_NAMES = ("value_error", "learnability", "return")
POOL_PER_WORKER = 8  # Levels for each worker, unless the pool is given.


@dataclass(frozen=True)
class LevelOptions:
    """The options in `level_options`.

    Args:
        pool: The levels: a number M of them, with seeds that follow from the run's; a list of
            seeds; or a list of contexts, dicts that are merged into `env_config` (their episodes
            are seeded as with "stream"). None: 8 levels per worker.
        score: What a level's priority follows from. "value_error": mean |GAE advantage| over the
            steps of its latest episode. "learnability": q (1 - q), q = (k + 1) / (n + 2) for k
            successes in its n latest episodes; while nothing says what a success is, the variance
            of their returns over the squared range of all returns. "return": their mean return.
            Or a function of `LevelRecords` that returns a score per level, [M]; NaN: not known.
        beta: Temperature: a level is replayed in proportion to rank^(-1 / beta).
        staleness: Part c of the draws that goes by how long ago a level was played.
        window: Number of a level's latest episodes that are kept.
        success_return: An episode with this return or more is a success; None: as
            `info["is_success"]` or `info["success"]` says.
    """

    pool: Any = None
    score: Literal["value_error", "learnability", "return"] | Callable[..., Any] = "value_error"
    beta: PositiveFloat = 0.1
    staleness: Annotated[float, Field(ge=0, le=1)] = 0.1
    window: PositiveInt = 10
    success_return: float | None = None


@dataclass(frozen=True)
class LevelPool:
    """The levels of a run, 0 … M - 1.

    Args:
        size: M.
        seeds: Their seeds; None: they follow from the run's root seed.
        contexts: Their contexts, instead of seeds.
    """

    size: int
    seeds: tuple[int, ...] | None = None
    contexts: tuple[Context, ...] | None = None

    @classmethod
    def of(cls, pool: Any, num_workers: int) -> LevelPool:
        """Returns the pool that the option of this name describes, checked by `level_problems`."""
        if pool is None or _is_whole(pool):
            return cls(POOL_PER_WORKER * num_workers if pool is None else int(pool))
        if isinstance(pool[0], Mapping):
            return cls(len(pool), contexts=tuple(map(dict, pool)))
        return cls(len(pool), seeds=tuple(map(int, pool)))

    def seed(self, root_seed: int, level: int) -> int | None:
        """Returns the seed of a level's episodes; None if each has its own, as with contexts."""
        if self.contexts is not None:
            return None
        if self.seeds is not None:
            return self.seeds[level]
        # Even, as all of training: none is one of evaluation's.
        return environment_seed(root_seed, slot=0, num_slots=1, evaluation=False, counters=(level,))


@dataclass(frozen=True)
class LevelDraws:
    """What all draws of one round follow from.

    Args:
        probabilities: [M], sum 1: of a replay.
        unseen: [U] the levels that were never played. They come first, dealt out one by one, so
            that no two episodes of the round get the same.
    """

    probabilities: np.ndarray
    unseen: np.ndarray

    @classmethod
    def at_first(cls, size: int) -> LevelDraws:
        """Returns the draws from M levels of which none was played."""
        return cls(np.full(size, 1 / size), np.arange(size))

    def level(self, root_seed: int, *, slot: int, num_slots: int, episode: int, count: int) -> int:
        """Returns the level of an episode.

        Args:
            root_seed: The run's root seed.
            slot: Index of the sub-environment over all env runners.
            num_slots: Number of sub-environments.
            episode: Resets of the sub-environment before this one.
            count: Those of them in this round.
        """
        dealt = slot + count * num_slots
        if dealt < len(self.unseen):
            return int(self.unseen[dealt])
        drawn = generator(root_seed, Stream.LEVELS, slot, episode).random()
        return int(self._cumulative.searchsorted(drawn, side="right"))

    @functools.cached_property
    def _cumulative(self) -> np.ndarray:
        """[M], the last one exactly 1: no draw comes out beyond a level that has a probability."""
        sums = np.cumsum(self.probabilities)
        return np.asarray(sums / sums[-1])


class LevelPlay(NamedTuple):
    """What a round holds of one episode.

    Attributes:
        id_: The episode's id.
        worker: Its worker.
        slot: Its sub-environment, over all env runners.
        episode: Resets of that sub-environment before it.
        level: Its level.
        start: Its steps before this round.
        steps: Its steps in this round.
        rewards: Their undiscounted sum; NaN if that is not known.
        is_done: Whether it ended.
        success: Whether it succeeded, if that is known.
    """

    id_: str
    worker: int
    slot: int
    episode: int
    level: int
    start: int
    steps: int
    rewards: float
    is_done: bool
    success: bool | None


def resolve_level_options(options: Mapping[str, Any]) -> LevelOptions:
    """Returns the options, checked by `level_problems`."""
    return LevelOptions(**options)


def level_problems(options: Any, *, num_workers: int, env: Any, backend: str) -> Iterator[str]:
    """What is wrong with `level_options`, a sentence each.

    Args:
        options: The setting.
        num_workers: N.
        env: What the config holds as `env`.
        backend: The setting `env_backend`.
    """
    if not isinstance(options, Mapping):
        yield (
            f"`level_options` should be a dict of option names and values, found {options!r}: "
            'write {"pool": 64}, or leave it out'
        )
        return
    types = option_types(LevelOptions)
    for name, value in options.items():
        if name not in types:
            yield (
                f"`level_options` should be among {', '.join(map(repr, types))}, found unknown "
                f"option {name!r}: rename or remove it{nearest(name, types)}"
            )
        elif name == "score" and isinstance(value, str) and value not in SCORE_NAMES:
            yield (
                f"`score` of `level_options` should be one of {', '.join(map(repr, SCORE_NAMES))}, "
                f"or a function, found {value!r}: use one of them{nearest(value, SCORE_NAMES)}"
            )
        elif name != "pool" and (should_be := type_problem(types[name], value)):
            yield (
                f"`{name}` of `level_options` should be {should_be}, found {value!r}: change it, "
                f"or leave it out for the default {getattr(LevelOptions, name)!r}"
            )
    yield from _pool_problems(options.get("pool"), num_workers, env, backend)


def _pool_problems(pool: Any, num_workers: int, env: Any, backend: str) -> Iterator[str]:
    setting = "pool` of `level_options"  # Between backquotes.
    is_list = isinstance(pool, (list, tuple)) and len(pool) > 0
    if pool is None:
        return
    if not (is_list or _is_whole(pool)):
        yield (
            f"`{setting}` should be a number of levels, a list of seeds or a list of context "
            f"dicts, found {pool!r}: leave it out for {POOL_PER_WORKER} levels per worker"
        )
        return
    size = len(pool) if is_list else pool
    if size < num_workers:
        yield (
            f"`{setting}` should hold {num_workers} levels or more, one for each worker, found "
            f"{size}: enlarge it, or use fewer workers"
        )
    if not is_list:
        return
    if any(isinstance(level, Mapping) for level in pool):
        yield from key_problems(setting, pool, "level", env=env, backend=backend)
        return
    bad = [seed for seed in pool if not (_is_whole(seed) and 0 <= seed <= MAX_ENVIRONMENT_SEED)]
    if bad:
        yield (
            f"`{setting}` should hold seeds, whole numbers from 0 to {MAX_ENVIRONMENT_SEED}, or "
            f"context dicts, found {bad[0]!r}: change or remove it"
        )
    elif len(set(pool)) < len(pool):
        twice = next(seed for seed in pool if list(pool).count(seed) > 1)
        yield f"`{setting}` should hold each seed once, found {twice} twice: remove one"


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
