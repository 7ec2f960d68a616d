"""The table of levels: what a run knows of each, their scores, and the draws that follow.

The algorithm holds it and sends its `LevelDraws` with each round's request; what comes back of the
episodes, and the learners' value errors, update it. It is part of checkpoints.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rllib_weighted.core.contexts import users_traceback
from rllib_weighted.core.levels import LevelDraws, LevelOptions, LevelPlay, LevelPool

logger = logging.getLogger(__name__)

ValueErrors = Mapping[str, tuple[float, int]]
"""Episode's id -> sum of |GAE advantage| over its steps of a round, and their number."""


@dataclass(frozen=True)
class LevelRecords:
    """What is known of M levels: what a score function gets.

    The arrays of [M, K] hold the level's K latest episodes that ended, the newest first, NaN where
    there are fewer or the value is not known. Not to be written to.

    Args:
        returns: [M, K] undiscounted returns.
        value_errors: [M, K] means of |GAE advantage| over an episode's steps, with the rewards that
            the learner sees.
        lengths: [M, K] steps.
        successes: [M, K] 1 where the episode succeeded, 0 where not.
        num_episodes: [M] episodes that ended so far.
        ages: [M] episodes (of all levels) since the level was last played; -1: it never was.
        lowest_return: The lowest return of all levels so far; infinite before the first.
        highest_return: The highest.
    """

    returns: np.ndarray
    value_errors: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray
    num_episodes: np.ndarray
    ages: np.ndarray
    lowest_return: float
    highest_return: float


def value_error_scores(levels: LevelRecords) -> np.ndarray:
    """Returns each level's latest known mean |GAE advantage|, [M]; NaN: none is known."""
    return _latest(levels.value_errors)


def return_scores(levels: LevelRecords) -> np.ndarray:
    """Returns each level's mean return, [M]; NaN: none is known."""
    return _mean(levels.returns)


def learnability_scores(levels: LevelRecords) -> np.ndarray:
    """Returns q (1 - q), or the returns' relative variance where no success is known, [M]."""
    known = np.isfinite(levels.successes)
    if known.any():
        successes = np.where(known, levels.successes, 0.0).sum(axis=1)
        q = (successes + 1) / (known.sum(axis=1) + 2)
        return np.where(levels.num_episodes > 0, q * (1 - q), np.nan)
    spread = levels.highest_return - levels.lowest_return
    mean = _mean(levels.returns)
    if not 0 < spread < math.inf:
        return np.where(np.isfinite(mean), 0.0, np.nan)
    return _mean(((levels.returns - mean[:, None]) / spread) ** 2)


SCORES = {
    "value_error": value_error_scores,
    "learnability": learnability_scores,
    "return": return_scores,
}


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=1))


def _latest(values: np.ndarray) -> np.ndarray:
    """Returns the first number of each row that is not NaN; NaN without one."""
    first = np.argmax(np.isfinite(values), axis=1)
    return np.asarray(values[np.arange(len(values)), first])


def compute_scores(options: LevelOptions, levels: LevelRecords) -> np.ndarray:
    """Returns the levels' scores, [M] float64.

    Raises:
        ValueError: If a user's function raises, or returns something else.
    """
    if isinstance(options.score, str):
        return SCORES[options.score](levels)
    size = len(levels.ages)
    name = getattr(options.score, "__name__", repr(options.score))
    try:
        scores = np.asarray(options.score(levels), np.float64)
    except Exception as error:
        raise ValueError(
            f"`score` of `level_options` ({name}) should return a number for each of {size} "
            f"levels, but raised: mend the function\n{users_traceback(error)}"
        ) from error
    if scores.shape != (size,):
        raise ValueError(
            f"`score` of `level_options` ({name}) should return an array of {(size,)}, a number "
            f"for each level, found shape {scores.shape}: change the function"
        )
    return scores


def score_problem(options: LevelOptions, size: int) -> str | None:
    """Returns what is wrong with a user's score function, tried on made-up levels; None if nothing.

    Args:
        options: The options.
        size: M.
    """
    table = LevelTable(LevelPool(size), options)
    plays = [
        LevelPlay(str(n), 0, 0, n, n % size, 0, 10 + n, float(n), True, n % 2 == 0)
        for n in range(2 * size)
    ]
    table.update(plays, {play.id_: (float(play.steps), play.steps) for play in plays})
    try:
        compute_scores(options, table.records())
    except ValueError as error:
        return str(error)
    return None


class EndedPlay(NamedTuple):
    """An episode that ended in a round: its worker, level and return (NaN: not known)."""

    worker: int
    level: int
    episode_return: float


@dataclass
class _Sums:
    """What is known so far of an episode that goes on."""

    rewards: float = 0.0
    steps: int = 0
    error: float = 0.0
    error_steps: int = 0


class LevelTable:
    """The levels of a run and what is known of them.

    Args:
        pool: The levels.
        options: How they are scored and drawn.
    """

    def __init__(self, pool: LevelPool, options: LevelOptions) -> None:
        self._pool = pool
        self._options = options
        shape = pool.size, options.window
        self._returns, self._value_errors, self._lengths, self._successes = (
            np.full(shape, np.nan) for _ in range(4)
        )
        self._num_episodes = np.zeros(pool.size, np.int64)
        self._last_played = np.full(pool.size, -1, np.int64)
        self._count = 0
        self._lowest, self._highest = math.inf, -math.inf
        self._num_played = 0
        self._ongoing: dict[str, _Sums] = {}

    def records(self) -> LevelRecords:
        """Returns what is known of the levels."""
        return LevelRecords(
            self._returns,
            self._value_errors,
            self._lengths,
            self._successes,
            self._num_episodes,
            np.where(self._last_played < 0, -1, self._count - self._last_played),
            self._lowest,
            self._highest,
        )

    def draws(self) -> LevelDraws:
        """Returns what the draws of the next round follow from.

        P(l) = (1 - c) rank(S_l)^(-1 / beta) / Z + c (t - t_l) / Z' over the levels played so far.
        Equal scores share their ranks. A level whose score is not known yet has the second part.
        """
        seen = self._last_played >= 0
        if not seen.any():
            return LevelDraws.at_first(self._pool.size)
        scores = compute_scores(self._options, self.records())
        by_score = np.zeros(self._pool.size)
        known = seen & np.isfinite(scores)
        if known.any():
            logs = -np.log(_ranks(scores[known])) / self._options.beta
            by_score[known] = np.exp(logs - logs.max())
        ages = np.where(seen, self._count - self._last_played, 0.0)
        c = self._options.staleness
        probabilities = (1 - c) * _shares(by_score, seen) + c * _shares(ages, seen)
        return LevelDraws(probabilities, np.flatnonzero(~seen))

    def update(self, plays: Iterable[LevelPlay], value_errors: ValueErrors) -> list[EndedPlay]:
        """Takes in a round.

        Args:
            plays: What the round holds of each episode, in any order.
            value_errors: What the learners measured; an episode may be missing.

        Returns:
            The episodes that ended, by sub-environment and in the order of time.
        """
        going_on: dict[str, _Sums] = {}
        ended, played = [], set()
        for play in sorted(plays, key=lambda play: (play.slot, play.episode)):
            # Without its beginning (an env runner came too late), its return is not known.
            unknown = _Sums(rewards=math.nan if play.start else 0.0, steps=play.start)
            sums = self._ongoing.get(play.id_, unknown)
            sums.rewards += play.rewards
            sums.steps += play.steps
            error, error_steps = value_errors.get(play.id_, (0.0, 0))
            sums.error += error
            sums.error_steps += error_steps
            played.add(play.level)
            if play.is_done:
                self._add(play, sums)
                ended.append(EndedPlay(play.worker, play.level, sums.rewards))
            else:
                going_on[play.id_] = sums
        self._ongoing = going_on
        self._count += len(ended)
        self._last_played[list(played)] = self._count
        self._num_played = len(played)
        return ended

    def _add(self, play: LevelPlay, sums: _Sums) -> None:
        """Puts an episode that has ended before the others of its level."""
        success = math.nan if play.success is None else float(play.success)
        if self._options.success_return is not None:
            success = float(sums.rewards >= self._options.success_return)
            success = success if math.isfinite(sums.rewards) else math.nan
        error = sums.error / sums.error_steps if sums.error_steps else math.nan
        for row, value in (
            (self._returns[play.level], sums.rewards),
            (self._value_errors[play.level], error),
            (self._lengths[play.level], sums.steps),
            (self._successes[play.level], success),
        ):
            row[1:] = row[:-1].copy()
            row[0] = value if math.isfinite(value) else math.nan
        self._num_episodes[play.level] += 1
        if math.isfinite(sums.rewards):
            self._lowest = min(self._lowest, sums.rewards)
            self._highest = max(self._highest, sums.rewards)

    def summary(self) -> dict[str, float]:
        """Returns the metrics under `merge/levels`, by their bare names."""
        draws = self.draws()
        scores = compute_scores(self._options, self.records())
        known = np.isfinite(scores) & (self._last_played >= 0)
        return {
            "seen": float((self._last_played >= 0).sum()),
            "played": float(self._num_played),
            "effective": float(1 / np.square(draws.probabilities).sum()),
            "score_mean": float(scores[known].mean()) if known.any() else math.nan,
        }

    # Checkpoints

    _ARRAYS = ("returns", "value_errors", "lengths", "successes", "num_episodes", "last_played")

    def get_state(self) -> dict[str, Any]:
        """Returns the table for a checkpoint."""
        state: dict[str, Any] = {name: getattr(self, f"_{name}").copy() for name in self._ARRAYS}
        return state | {
            "pool": repr(self._pool),
            "count": self._count,
            "range": (self._lowest, self._highest),
        }

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Takes a table from a checkpoint; if it is of other levels, all are unseen again.

        Episodes that were going on are forgotten: env runners start over.
        """
        fresh = LevelTable(self._pool, self._options).get_state()
        fits = state is not None and state["pool"] == fresh["pool"]
        if not fits:
            logger.warning(
                "The checkpoint %s: all levels count as unseen.",
                "has no table of levels" if state is None else "has other levels in its pool",
            )
        saved = state if state is not None and fits else fresh
        window = min(self._options.window, saved["returns"].shape[1])
        for name in self._ARRAYS:
            values, before = fresh[name], saved[name]
            if values.ndim == 2:
                values[:, :window] = before[:, :window]
            else:
                values[:] = before
            setattr(self, f"_{name}", values)
        self._count = saved["count"]
        self._lowest, self._highest = saved["range"]
        self._ongoing = {}


def _shares(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns values over their sum; equal shares of the levels that were played if it is 0."""
    values = values if values.sum() > 0 else seen.astype(np.float64)
    return np.asarray(values / values.sum())


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Returns the rank of each score, 1 for the highest; equal ones share the mean of theirs."""
    _, which, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[which])
