"""What is written down of a round: a record per worker, and who was dropped and why."""

from __future__ import annotations

import logging
import math

import numpy as np

from rllib_weighted.core.level_table import EndedPlay
from rllib_weighted.core.messages import UpdateResult
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.core.workers import WorkerLayout
from rllib_weighted.records import metrics as names
from rllib_weighted.records.metrics import WorkerRecord
from rllib_weighted.sampling.collect import Rollouts

logger = logging.getLogger(__name__)


def worker_records(
    rollouts: Rollouts,
    result: UpdateResult | None,
    drops: dict[int, str],
    *,
    layout: WorkerLayout,
    root_seed: int,
    ended: list[EndedPlay] | None = None,
) -> list[WorkerRecord]:
    """Returns a record per configured worker.

    Args:
        rollouts: What the env runners sampled.
        result: What the merges did; None if there was nothing to learn from.
        drops: The workers that were dropped; see `worker_drops`.
        layout: Numbering of the workers.
        root_seed: The run's root seed.
        ended: The episodes that ended, if episodes are of levels.
    """
    records = []
    measured = result.gradient_signals if result else {}
    for worker in range(layout.num_workers):
        returns = rollouts.returns.get(worker, [])
        plays = None if ended is None else [play for play in ended if play.worker == worker]
        records.append(
            WorkerRecord(
                worker=worker,
                env_runner=layout.env_runner(worker),
                env_index=layout.env_index(worker),
                # Of its first episode ("fixed": of all of them); levels belong to no worker.
                seed=None
                if plays is not None
                else environment_seed(
                    root_seed,
                    slot=layout.first_slot(worker),
                    num_slots=layout.num_slots,
                    evaluation=False,
                    counters=(0,),
                ),
                signal=result.signals[worker] if result else None,
                share=result.shares[worker] if result else 0.0,
                weight=result.weights[worker] if result else 0.0,
                loss=result.losses[worker] if result else None,
                episode_return=float(np.mean(returns)) if returns else None,
                num_episodes=len(returns),
                dropped=worker in drops,
                drift=result.drifts[worker] if result and result.drifts else None,
                signal_age=result.ages[worker] if result and result.ages else None,
                gradient_noise=measured.get(names.GRADIENT_NOISE, {}).get(worker),
                gradient_agreement=measured.get(names.GRADIENT_AGREEMENT, {}).get(worker),
                levels=None if plays is None else [play.level for play in plays],
                level_returns=None if plays is None else [play.episode_return for play in plays],
            )
        )
    return records


def worker_drops(
    rollouts: Rollouts, result: UpdateResult | None, layout: WorkerLayout
) -> dict[int, str]:
    """Returns the workers that were left out of a merge of the round, and why."""
    sampled = rollouts.workers
    drops = {}
    for worker in range(layout.num_workers):
        reason = result.drops[worker] if result else None
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


def drops_text(drops: dict[int, str]) -> str:
    """Returns the first reason for a drop, and whose it is, as one line."""
    reason = next(iter(drops.values()))
    workers = [str(worker) for worker, why in drops.items() if why == reason]
    others = f" (and {len(drops) - len(workers)} more)" if len(workers) < len(drops) else ""
    return (
        f"worker{'s' * (len(workers) > 1)} {', '.join(workers)}{others}: {' '.join(reason.split())}"
    )


def sampling_path(rollouts: Rollouts) -> dict[str, float]:
    """Returns the metrics that say which way the round's steps came; NaN if none came."""
    count = len(rollouts.metrics)
    shares = {names.FAST_SAMPLING: rollouts.num_fast, names.COLUMNS: len(rollouts.columns)}
    return {name: number / count if count else math.nan for name, number in shares.items()}
