"""Metrics of a merge: their names, what each means, and how they follow from the workers' records.

In a result dict they lie under ``result["merge"]``; TensorBoard and the documentation join the
levels by ``/``, as in ``merge/share_min`` and ``merge/workers/0/signal``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rllib_weighted.merging import Diagnostics

MERGE = "merge"
"""Key of the result dict under which all of these metrics lie."""

SHARE_MIN = "share_min"
SHARE_MAX = "share_max"
SHARE_ENTROPY = "share_entropy"
EFFECTIVE_WORKERS = "effective_workers"
NUM_WORKERS = "num_workers"
NUM_DROPPED = "num_dropped"
NUM_SKIPPED_STEPS = "num_skipped_steps"
NUM_REPLACED = "num_replaced"
EPISODE_RETURN_MEAN = "episode_return_mean"
DRIFT_MEAN = "drift_mean"
SIGNAL_AGE_MEAN = "signal_age_mean"
FAST_SAMPLING = "fast_sampling"
COLUMNS = "columns"

DROP_CAUSE = "drop_cause"
"""Key under `MERGE` of a text, only in rounds with dropped workers: who was dropped, and why."""
DIAGNOSTICS = "diagnostics"
"""Key under `MERGE` of what the workers' gradients say of the merge; see `diagnostic_metrics`."""
LEVELS = "levels"
"""Key under `MERGE` of the metrics of levels, where episodes are drawn from them."""

WORKERS = "workers"
"""Key under `MERGE` of the per-worker metrics: one dict per worker, keyed by its number."""

SIGNAL = "signal"
SHARE = "share"
WEIGHT = "weight"
LOSS = "loss"
EPISODE_RETURN = "episode_return"
NUM_EPISODES = "num_episodes"
DRIFT = "drift"
SIGNAL_AGE = "signal_age"
GRADIENT_NOISE = "gradient_noise"
GRADIENT_AGREEMENT = "gradient_agreement"

_WHERE_MEASURED = (DRIFT, SIGNAL_AGE, GRADIENT_NOISE, GRADIENT_AGREEMENT)

MAX_WORKERS_IN_METRICS = 32
"""With more workers than this, the per-worker values are in the merge history only."""


@dataclass(frozen=True)
class WorkerRecord:
    """One worker in one round: what it reported, and the share and weight that it got.

    Attributes:
        worker: Number of the worker, 0 to N-1.
        env_runner: Number of the env runner that the worker lives in.
        env_index: Its sub-environment there; None if the worker is a whole env runner.
        seed: Seed of the worker's environment; None if it has none.
        signal: What its weight follows from, mean over the round's steps; None if missing.
        share: Share of the signal, mean over the round's steps.
        weight: Factor on its gradient, mean over the round's steps.
        loss: Its loss, mean over the round's steps; None if missing.
        episode_return: Mean undiscounted return; None if it never finished an episode.
        num_episodes: Episodes that ended in the round.
        dropped: Whether it was left out of the merge.
        drift: How far its own parameters are from the workers' mean; None if all share one set.
        signal_age: Rounds since its signal was measured; None if it has none.
        gradient_noise: sigma_i^2 of its gradient, as last measured; None if it never was.
        gradient_agreement: Cosine of its gradient and the mean of the others', likewise.
        levels: The levels of its episodes that ended, in their order; None if there are no levels.
        level_returns: Their returns; NaN where one is not known.
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
    signal_age: int | None = None
    gradient_noise: float | None = None
    gradient_agreement: float | None = None
    levels: list[int] | None = None
    level_returns: list[float] | None = None


class MetricInfo(NamedTuple):
    """One row of the documentation's table of metrics.

    Attributes:
        name: The metric with its levels joined by ``/``; ``<i>`` stands for a worker's number.
        formula: How the value is computed, with ``p`` the shares and ``w`` the weights of the
            workers that were not dropped.
        unit: Unit of the value.
        description: What the value tells, in one sentence.
    """

    name: str
    formula: str
    unit: str
    description: str


def _merge(name: str, formula: str, unit: str, description: str) -> MetricInfo:
    return MetricInfo(f"{MERGE}/{name}", formula, unit, description)


def _level(name: str, formula: str, unit: str, description: str) -> MetricInfo:
    meaning = f'{description} Only with `env_seeding="prioritized"`.'
    return MetricInfo(f"{MERGE}/{LEVELS}/{name}", formula, unit, meaning)


def _worker(name: str, formula: str, unit: str, description: str) -> MetricInfo:
    return MetricInfo(f"{MERGE}/{WORKERS}/<i>/{name}", formula, unit, description)


METRICS: tuple[MetricInfo, ...] = (
    _merge(SHARE_MIN, "min p", "fraction", "Smallest share of a worker."),
    _merge(SHARE_MAX, "max p", "fraction", "Largest share of a worker."),
    _merge(
        SHARE_ENTROPY,
        "-sum p ln p",
        "nats",
        "Evenness of the shares: ln N when all are equal, 0 when one worker has everything.",
    ),
    _merge(
        EFFECTIVE_WORKERS,
        "(sum w)^2 / sum w^2",
        "workers",
        "How many equally weighted workers would average out as much noise.",
    ),
    _merge(NUM_WORKERS, "N", "workers", "Configured workers, dropped ones included."),
    _merge(
        NUM_DROPPED,
        "number of workers dropped",
        "workers",
        "Workers that sent nothing, or whose loss or gradient was not finite.",
    ),
    _merge(
        NUM_SKIPPED_STEPS,
        "number of steps without a worker",
        "optimizer steps",
        "Steps of the round that were skipped because every worker was dropped.",
    ),
    _merge(
        DROP_CAUSE,
        "worker: why, of the first",
        "text",
        "Who was dropped, and why; only in rounds in which a worker was.",
    ),
    _merge(
        NUM_REPLACED,
        "number of env runners replaced so far",
        "env runners",
        "Env runners that were killed and started anew because they had missed "
        "`max_missed_rounds` rounds in a row.",
    ),
    _merge(
        EPISODE_RETURN_MEAN,
        "mean over the last 100 episodes",
        "reward",
        "Undiscounted return of all workers' episodes, over `metrics_num_episodes_for_smoothing` "
        "of them (RLlib's own mean has this round's only); NaN before the first has ended, which "
        "Tune's max, min and means leave out.",
    ),
    _merge(
        FAST_SAMPLING,
        "env runners on the fast path / those that sampled",
        "fraction",
        "Whether sampling took the fast vector path; the env runners' log says why it did not.",
    ),
    _merge(
        COLUMNS,
        "env runners that sent columns / those that sampled",
        "fraction",
        "Whether steps went to the learners as columns, without episodes; the log says why not.",
    ),
    _merge(
        DRIFT_MEAN,
        "mean over i of ||θ_i - θ̄|| / ||θ̄||",
        "fraction",
        "How far the workers' own parameters are from their mean after the round; only with "
        "`actor_average` and `actor_sum`.",
    ),
    _merge(
        SIGNAL_AGE_MEAN,
        "mean over i of the rounds since s_i was measured",
        "rounds",
        "How stale the signals are; 0: all are of this round. NaN before there is one.",
    ),
    _merge(
        f"{DIAGNOSTICS}/signal_norm",
        "G^2 = mean over i != j of g_i . g_j",
        "squared gradient",
        "Squared norm of the gradient without its noise, unbiased; below 0 where noise hides it. "
        "This and what follows: with `merge_diagnostics_interval`, as last measured; under "
        "`policy/` and `value/` of that part of the loss.",
    ),
    _merge(
        f"{DIAGNOSTICS}/noise_scale",
        "mean (sigma_i^2 + tau^2) / (N G^2)",
        "1",
        "Noise over signal of the average of the workers' gradients; low: weights change little.",
    ),
    _merge(
        f"{DIAGNOSTICS}/heterogeneity",
        "tau^2 / mean sigma_i^2",
        "1",
        "Spread between workers over the noise within them; 0: they differ by chance only.",
    ),
    _merge(
        f"{DIAGNOSTICS}/agreement",
        "mean over i of cos(g_i, mean of the others)",
        "1",
        "Whether the workers' gradients point the same way.",
    ),
    _merge(
        f"{DIAGNOSTICS}/speed/<strategy>",
        "(1 + rho) / (1 + rho N sum w_i^2 v_i / mean v)",
        "1",
        "Predicted speed of the strategy's weights against the average, if all workers' expected "
        "gradients are equal; rho is the noise scale, v_i = sigma_i^2 + tau^2. "
        "`advantage_scaled_inverse`: `advantage_scaled` with exponent -1.",
    ),
    _merge(
        f"{DIAGNOSTICS}/gain/<strategy>",
        "progress of sum w_i g_a on mean g_b over its noise, by that of the average",
        "1",
        "Measured one-step gain against the average, also where expected gradients differ.",
    ),
    _level("seen", "number of levels played so far", "levels", "How much of the pool is known."),
    _level("played", "number of levels played in the round", "levels", "Variety of the round."),
    _level(
        "effective",
        "1 / sum P^2",
        "levels",
        "How many equally likely levels would make replays as various; P of the next round.",
    ),
    _level(
        "score_mean",
        "mean S over the levels that have one",
        "that of the score",
        "How much there is left to learn, if the score says so; NaN before the first is known.",
    ),
    _worker(
        SIGNAL,
        "s_i, mean over the round's steps",
        "that of the return or the loss",
        "What the strategy weighs the worker by; NaN if it has none.",
    ),
    _worker(SHARE, "p_i, mean over the round's steps", "fraction", "Share of the signal."),
    _worker(
        WEIGHT, "w_i, mean over the round's steps", "1", "Factor on the worker's own gradient."
    ),
    _worker(
        LOSS,
        "mean over the round's steps",
        "that of the loss",
        "The worker's loss over its own samples; NaN if it has none.",
    ),
    _worker(
        EPISODE_RETURN,
        "mean over the episodes ended in the round",
        "reward",
        "Undiscounted return; NaN if none ended.",
    ),
    _worker(NUM_EPISODES, "number of episodes ended in the round", "episodes", "Ended episodes."),
    _worker(
        DRIFT,
        "||θ_i - θ̄|| / ||θ̄||",
        "fraction",
        "Drift of the worker's own parameters; only with `actor_average` and `actor_sum`.",
    ),
    _worker(
        SIGNAL_AGE, "rounds since s_i was measured", "rounds", "0: in this round; absent: never."
    ),
    _worker(
        GRADIENT_NOISE,
        "sigma_i^2 = |g_a - g_b|^2 / 4",
        "squared gradient",
        "Noise of its gradient within its batch, from two half-batches; as last measured.",
    ),
    _worker(
        GRADIENT_AGREEMENT,
        "cos(g_i, mean of the others)",
        "1",
        "Whether its gradient points where the others' do; as last measured.",
    ),
)
"""Every metric of a merge, in the order of the documentation's table."""


def summarize(
    records: Sequence[WorkerRecord],
    *,
    num_skipped_steps: int = 0,
    num_replaced: int = 0,
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
        num_replaced: Env runners replaced so far.
        recent_returns: Returns of the episodes that the mean is taken over.
        fast_sampling: Fraction of the env runners that sampled on the fast path.
        columns: Fraction of them that sent columns.

    Returns:
        The metrics directly under `MERGE`, keyed by their bare names; see
        `METRICS` for formulas and units.
    """
    kept = [record for record in records if not record.dropped]
    shares = np.array([record.share for record in kept], dtype=np.float64)
    weights = np.array([record.weight for record in kept], dtype=np.float64)
    drifts = [record.drift for record in records if record.drift is not None]
    ages = [record.signal_age for record in records if record.signal_age is not None]
    return {
        SHARE_MIN: float(shares.min()) if kept else math.nan,
        SHARE_MAX: float(shares.max()) if kept else math.nan,
        SHARE_ENTROPY: _entropy(shares) if kept else math.nan,
        EFFECTIVE_WORKERS: _effective_number(weights),
        NUM_WORKERS: float(len(records)),
        NUM_DROPPED: float(len(records) - len(kept)),
        NUM_SKIPPED_STEPS: float(num_skipped_steps),
        NUM_REPLACED: float(num_replaced),
        EPISODE_RETURN_MEAN: float(np.mean(recent_returns)) if recent_returns else math.nan,
        FAST_SAMPLING: fast_sampling,
        COLUMNS: columns,
        SIGNAL_AGE_MEAN: float(np.mean(ages)) if ages else math.nan,
        **({DRIFT_MEAN: float(np.mean(drifts))} if drifts else {}),
    }


def for_tune(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary as Tune can take it: a mean return that is not known yet is no number.

    Tune's own mean of a metric never gets over a NaN: with `scope="avg"` it finds no best trial.
    It cannot be left out, as RLlib (2.60) leaves out its own: where a scheduler or a search is to
    go by it, Tune then ends the experiment. An array without dimensions is neither: Tune's max,
    min and means pass over what is no `Number`, and whoever calculates with it finds NaN.
    """
    value = summary[EPISODE_RETURN_MEAN]
    if isinstance(value, float) and math.isnan(value):
        return {**summary, EPISODE_RETURN_MEAN: np.array(value)}
    return summary


def worker_metrics(records: Sequence[WorkerRecord]) -> dict[str, dict[str, float]]:
    """Return the per-worker metrics of a round, to lie under `WORKERS`.

    Args:
        records: One record per configured worker.

    Returns:
        For each worker's number, as a string, its metrics by their bare names, with NaN for what
        is missing. Empty with more than `MAX_WORKERS_IN_METRICS` workers: result dicts
        and event files would outgrow the training results; the merge history still has them.
    """
    if len(records) > MAX_WORKERS_IN_METRICS:
        return {}
    names = (SIGNAL, SHARE, WEIGHT, LOSS, EPISODE_RETURN, NUM_EPISODES)
    return {
        str(record.worker): {
            **{name: _or_nan(getattr(record, name)) for name in names},
            **{
                name: float(value)
                for name in _WHERE_MEASURED
                if (value := getattr(record, name)) is not None
            },
        }
        for record in records
    }


def diagnostic_metrics(found: Diagnostics) -> dict[str, float]:
    """Return the metrics under `DIAGNOSTICS`, levels joined by ``/``."""
    estimates = ("signal_norm", "noise_scale", "heterogeneity", "agreement")
    metrics = {name: float(getattr(found, name)) for name in estimates}
    for kind in ("speed", "gain"):
        metrics |= {f"{kind}/{name}": value for name, value in getattr(found, kind).items()}
    for part, of_part in found.parts.items():
        metrics |= {f"{part}/{name}": value for name, value in diagnostic_metrics(of_part).items()}
    return metrics


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


def metrics_table() -> str:
    """Return the table of all metrics as Markdown: name, formula, unit, description.

    Returns:
        The lines of the table, joined and ended by a line break.
    """
    rows = [("Metric", "Formula", "Unit", "Meaning"), ("---",) * 4]
    for metric in METRICS:
        rows.append((f"`{metric.name}`", f"`{metric.formula}`", metric.unit, metric.description))
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
