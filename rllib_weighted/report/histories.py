"""Reduces a trial's merge history to what a report shows of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rllib_weighted.records.reading import read_folder
from rllib_weighted.report.locate import Trial
from rllib_weighted.report.progress import Progress

COLUMNS = [
    "trial_id",
    "round",
    "worker",
    "env_steps",
    "share",
    "weight",
    "episode_return",
    "num_episodes",
    "dropped",
]
NUM_BINS = 100
NUM_EPISODES = 100
"""Episodes that the mean return is taken over, as RLlib's default is."""


@dataclass
class WorkerRounds:
    """A merge history as arrays.

    Attributes:
        rounds: Number of each recorded round, [R].
        env_steps: Environment steps up to its end, [R].
        starts: Where each round's rows begin, [R].
        columns: The history's columns, a value per (round, worker).
    """

    rounds: np.ndarray
    env_steps: np.ndarray
    starts: np.ndarray
    columns: dict[str, np.ndarray]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum over the workers of each round, [R]."""
        return np.add.reduceat(values, self.starts)


def read_worker_rounds(trial: Trial) -> tuple[WorkerRounds | None, str, list[str]]:
    """Reads a trial's merge history.

    Returns:
        The history or None, the trial's id in it or "", and a sentence on each file left out.
    """
    if trial.history is None:
        return None, "", []
    tables, problems = read_folder(trial.history, COLUMNS)
    if not tables:
        return None, "", problems
    if len(tables) > 1:
        problems = [*problems, f"{trial.history.path} holds {len(tables)} trials: took the longest"]
    table = max(tables, key=lambda table: table.num_rows)
    return _arrays(table), table["trial_id"][0].as_py(), problems


def _arrays(table: pa.Table) -> WorkerRounds:
    columns = {name: table[name].to_numpy() for name in COLUMNS if name != "trial_id"}
    rounds = columns.pop("round")
    starts = np.flatnonzero(np.diff(rounds, prepend=rounds[0] - 1))
    env_steps = columns.pop("env_steps")[starts]
    return WorkerRounds(rounds[starts], env_steps, starts, columns)


def progress_from_history(history: WorkerRounds, metric: str) -> Progress:
    """Derives a trial's mean return from its merge history, for want of anything better.

    The mean is over the last rounds that together hold at least `NUM_EPISODES` episodes; without
    as many, over all. It has no times.

    Args:
        history: The history.
        metric: Name under which the mean return is put.
    """
    episodes = history.columns["num_episodes"].astype(np.float64)
    returns = np.where(episodes > 0, history.columns["episode_return"], 0.0)
    total = np.concatenate([[0.0], np.cumsum(history.sum(np.nan_to_num(returns) * episodes))])
    count = np.concatenate([[0.0], np.cumsum(history.sum(episodes))])
    since = np.searchsorted(count, count[1:] - NUM_EPISODES, side="right") - 1
    since = np.maximum(since, 0)
    in_window = count[1:] - count[since]
    values = np.full(history.rounds.size, np.nan)
    np.divide(total[1:] - total[since], in_window, out=values, where=in_window > 0)
    return Progress(
        rounds=history.rounds.astype(np.int64),
        env_steps=history.env_steps,
        time_s=np.full(history.rounds.size, np.nan),
        values={metric: values},
        source="merge history",
    )


def summarize_weights(history: WorkerRounds, last_round: int) -> dict[str, np.ndarray]:
    """Returns what the weights did, as means over up to `NUM_BINS` equal ranges of rounds.

    Args:
        history: The history.
        last_round: The last round of the longest trial that this one is shown beside.

    Returns:
        Arrays of equal length: `round` and `env_steps` (at the end of the range, as far as the
        trial came), `effective_workers` (``(sum w)^2 / sum w^2``, dropped workers left out),
        `share_min`, `share_max`, `num_dropped` (sum), `num_worker_rounds` (sum).
    """
    kept = ~history.columns["dropped"]
    weights = np.where(kept, history.columns["weight"], 0.0)
    squares = history.sum(weights**2)
    effective = np.zeros(history.rounds.size)
    np.divide(history.sum(weights) ** 2, squares, out=effective, where=squares > 0)
    shares = history.columns["share"]
    lowest = np.minimum.reduceat(np.where(kept, shares, np.inf), history.starts)
    highest = np.maximum.reduceat(np.where(kept, shares, -np.inf), history.starts)
    workers = history.sum(np.ones(kept.size))
    bins = round_bins(history.rounds, last_round)
    first = np.flatnonzero(np.diff(bins, prepend=-1))
    last = np.append(first[1:], bins.size) - 1
    with np.errstate(invalid="ignore"):
        return {
            "round": history.rounds[last],
            "env_steps": history.env_steps[last],
            "effective_workers": _bin_means(effective, first),
            "share_min": _bin_means(np.where(np.isfinite(lowest), lowest, np.nan), first),
            "share_max": _bin_means(np.where(np.isfinite(highest), highest, np.nan), first),
            "num_dropped": np.add.reduceat(history.sum(~kept), first).astype(np.int64),
            "num_worker_rounds": np.add.reduceat(workers, first).astype(np.int64),
        }


def worker_shares(history: WorkerRounds, last_round: int) -> dict[str, np.ndarray]:
    """Returns each worker's share, as means over up to `NUM_BINS` equal ranges of rounds.

    Returns:
        Arrays with a value per (range, worker): `round` (the range's last), `worker`, `share`
        (NaN where the worker was dropped throughout).
    """
    sizes = np.diff(np.append(history.starts, history.columns["worker"].size))
    bins = np.repeat(round_bins(history.rounds, last_round), sizes)
    workers = history.columns["worker"]
    num_workers = int(workers.max()) + 1
    cells = bins * num_workers + workers
    kept = ~history.columns["dropped"]
    length = (int(bins.max()) + 1) * num_workers
    total = np.bincount(cells[kept], weights=history.columns["share"][kept], minlength=length)
    count = np.bincount(cells[kept], minlength=length)
    shares = np.full(length, np.nan)
    np.divide(total, count, out=shares, where=count > 0)
    width = bin_width(last_round)
    return {
        "round": (np.arange(length) // num_workers + 1) * width,
        "worker": np.arange(length) % num_workers,
        "share": shares,
    }


def bin_width(last_round: int) -> int:
    """Returns how many rounds are shown as one."""
    return max(1, -(-last_round // NUM_BINS))


def round_bins(rounds: np.ndarray, last_round: int) -> np.ndarray:
    """Returns the range, from 0, that each round (from 1) falls into."""
    return np.maximum(rounds - 1, 0) // bin_width(last_round)


def _bin_means(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns the mean over each range of the values that are not NaN."""
    known = ~np.isnan(values)
    total = np.add.reduceat(np.where(known, values, 0.0), first)
    count = np.add.reduceat(known.astype(np.float64), first)
    means = np.full(first.size, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return means
