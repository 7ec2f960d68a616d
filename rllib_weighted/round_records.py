"""What is written down of each worker after a round."""

from __future__ import annotations

import logging
import math

import numpy as np

from rllib_weighted.learning.orders import MergeReport
from rllib_weighted.records import metrics as names
from rllib_weighted.records.summary import WorkerRecord
from rllib_weighted.sampling.collect import Rollouts
from rllib_weighted.seeding import environment_seed
from rllib_weighted.workers import WorkerLayout

logger = logging.getLogger(__name__)


def worker_records(
    rollouts: Rollouts,
    report: MergeReport | None,
    drops: dict[int, str],
    *,
    layout: WorkerLayout,
    root_seed: int,
) -> list[WorkerRecord]:
    """Returns a record per configured worker.

    Args:
        rollouts: What the env runners sampled.
        report: What the merges did; None if there was nothing to learn from.
        drops: The workers that were dropped; see `worker_drops`.
        layout: Numbering of the workers.
        root_seed: The run's root seed.
    """
    records = []
    for worker in range(layout.num_workers):
        returns = rollouts.returns.get(worker, [])
        records.append(
            WorkerRecord(
                worker=worker,
                env_runner=layout.env_runner(worker),
                env_index=layout.env_index(worker),
                seed=_first_seed(worker, layout, root_seed),
                signal=report.signals[worker] if report else None,
                share=report.shares[worker] if report else 0.0,
                weight=report.weights[worker] if report else 0.0,
                loss=report.losses[worker] if report else None,
                episode_return=float(np.mean(returns)) if returns else None,
                num_episodes=len(returns),
                dropped=worker in drops,
                drift=report.drifts[worker] if report and report.drifts else None,
            )
        )
    return records


def worker_drops(
    rollouts: Rollouts, report: MergeReport | None, layout: WorkerLayout
) -> dict[int, str]:
    """Returns the workers that were left out of a merge of the round, and why."""
    sampled = rollouts.workers
    drops = {}
    for worker in range(layout.num_workers):
        reason = report.drops[worker] if report else None
        if worker not in sampled:
            reason = rollouts.absent.get(layout.env_runner(worker), "it sent nothing")
        if reason is not None:
            drops[worker] = reason
    return drops


def log_drops(round: int, drops: dict[int, str], before: dict[int, str]) -> None:
    """Says who is dropped and why; once, for as long as it stays so.

    Args:
        round: Number of the round.
        drops: Who is dropped in this round.
        before: Who was in the round before.
    """
    news = {worker: why for worker, why in drops.items() if before.get(worker) != why}
    for reason in dict.fromkeys(news.values()):
        workers = [worker for worker, why in news.items() if why == reason]
        logger.warning("Round %d: dropped worker(s) %s: %s", round, workers, reason)
    if back := sorted(before.keys() - drops.keys()):
        logger.warning("Round %d: worker(s) %s take part again", round, back)


def sampling_path(rollouts: Rollouts) -> dict[str, float]:
    """Returns the metrics that say which way the round's steps came; NaN if none came."""
    count = rollouts.num_results
    shares = {names.FAST_SAMPLING: rollouts.num_fast, names.COLUMNS: len(rollouts.columns)}
    return {name: number / count if count else math.nan for name, number in shares.items()}


def _first_seed(worker: int, layout: WorkerLayout, root_seed: int) -> int:
    """Returns the environment seed of a worker's first episode ("fixed": of all of them)."""
    return environment_seed(
        root_seed,
        slot=layout.first_slot(worker),
        num_slots=layout.num_slots,
        evaluation=False,
        counters=(0,),
    )
