"""What one round's merge did, per worker, and the few numbers that summarise it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rllib_weighted.records import metrics

__all__ = ["WorkerRecord", "summarize", "worker_metrics"]


@dataclass(frozen=True)
class WorkerRecord:
    """What one worker brought to the merges of one round, and what it was given there.

    Attributes:
        worker: Number of the worker, 0 to N-1.
        env_runner: Number of the env runner that the worker lives in.
        env_index: Its sub-environment there; None if the worker is a whole env runner.
        seed: Seed of the worker's environment; None if it has none.
        signal: What it was weighed by, mean over the round's steps; None if missing.
        share: Share of the signal, mean over the round's steps.
        weight: Factor on its gradient, mean over the round's steps.
        loss: Its loss, mean over the round's steps; None if missing.
        episode_return: Mean undiscounted return; None if it never finished an episode.
        num_episodes: Episodes that ended in the round.
        dropped: Whether it was left out of the merge.
        drift: How far its own parameters are from the workers' mean; None if all share one set.
    """

    worker: int
    env_runner: int
    env_index: int | None
    seed: int | None
    signal: float | None
    share: float
    weight: float
    loss: float | None
    episode_return: float | None
    num_episodes: int
    dropped: bool
    drift: float | None = None


def summarize(
    records: Sequence[WorkerRecord],
    *,
    num_skipped_steps: int = 0,
    recent_returns: Sequence[float] = (),
    fast_sampling: float = math.nan,
    columns: float = math.nan,
) -> dict[str, float]:
    """Summarise a round's merge over all of its workers.

    Shares and weights are taken over the workers that were not dropped. Without any, the shares'
    smallest, largest and entropy are NaN and the number of effective workers is 0.

    Args:
        records: One record per configured worker, dropped ones included.
        num_skipped_steps: Optimizer steps skipped because every worker was dropped.
        recent_returns: Returns of the episodes that the mean is taken over.
        fast_sampling: Fraction of the env runners that sampled on the fast path.
        columns: Fraction of them that sent columns.

    Returns:
        The metrics directly under `metrics.MERGE`, keyed by their bare names; see
        `metrics.METRICS` for formulas and units.
    """
    kept = [record for record in records if not record.dropped]
    shares = np.array([record.share for record in kept], dtype=np.float64)
    weights = np.array([record.weight for record in kept], dtype=np.float64)
    drifts = [record.drift for record in records if record.drift is not None]
    return {
        metrics.SHARE_MIN: float(shares.min()) if kept else math.nan,
        metrics.SHARE_MAX: float(shares.max()) if kept else math.nan,
        metrics.SHARE_ENTROPY: _entropy(shares) if kept else math.nan,
        metrics.EFFECTIVE_WORKERS: _effective_number(weights),
        metrics.NUM_WORKERS: float(len(records)),
        metrics.NUM_DROPPED: float(len(records) - len(kept)),
        metrics.NUM_SKIPPED_STEPS: float(num_skipped_steps),
        metrics.EPISODE_RETURN_MEAN: float(np.mean(recent_returns)) if recent_returns else math.nan,
        metrics.FAST_SAMPLING: fast_sampling,
        metrics.COLUMNS: columns,
        **({metrics.DRIFT_MEAN: float(np.mean(drifts))} if drifts else {}),
    }


def worker_metrics(records: Sequence[WorkerRecord]) -> dict[str, dict[str, float]]:
    """Return the per-worker metrics of a round, to lie under `metrics.WORKERS`.

    Args:
        records: One record per configured worker.

    Returns:
        For each worker's number, as a string, its metrics by their bare names, with NaN for what
        is missing. Empty with more than `metrics.MAX_WORKERS_IN_METRICS` workers: result dicts
        and event files would outgrow the training results; the merge history still has them.
    """
    if len(records) > metrics.MAX_WORKERS_IN_METRICS:
        return {}
    return {
        str(record.worker): {
            metrics.SIGNAL: _or_nan(record.signal),
            metrics.SHARE: float(record.share),
            metrics.WEIGHT: float(record.weight),
            metrics.LOSS: _or_nan(record.loss),
            metrics.EPISODE_RETURN: _or_nan(record.episode_return),
            metrics.NUM_EPISODES: float(record.num_episodes),
            **({} if record.drift is None else {metrics.DRIFT: record.drift}),
        }
        for record in records
    }


def _entropy(shares: np.ndarray) -> float:
    """Return ``-sum p ln p`` in nats, with ``0 ln 0 = 0``; NaN if a share is NaN."""
    occupied = shares[shares != 0]
    return 0.0 - float((occupied * np.log(occupied)).sum())  # 0.0 -: never -0.0


def _effective_number(weights: np.ndarray) -> float:
    """Return ``(sum w)^2 / sum w^2``; 0 if there are no weights or all are 0."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares != 0 else 0.0


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
