"""One run: trains an arm with a seed, and returns the row that is kept of it."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import ScaleRewards, WeightedPPOConfig
from rllib_weighted.report.measures import first_sustained
from studies import envs, oracle  # noqa: F401 (registers its strategy)
from studies.design import Arm, Task, digest, task_of
from studies.held_out import context_returns, held_out_returns
from studies.tried import LEARNERS

MOST_POINTS = 100
"""Points of a curve that are kept; what is counted uses every round."""

_RECENT_EPISODES = 10
"""Episodes of a worker that its recent return is the mean of, at least."""

_SCORED_EPISODES = 100
"""Episodes that the score of one of RLlib's own algorithms is the mean of, as ours."""


_STOCK: dict[str, tuple[type[AlgorithmConfig], tuple[str, ...]]] = {
    "PPO": (PPOConfig, ()),
    "APPO": (APPOConfig, ("lambda_", "clip_param")),
    "IMPALA": (IMPALAConfig, ()),
}
"""RLlib's own algorithms, and what they have of a task's settings beside `_COMMON`; PPO: all."""

_COMMON = ("lr", "gamma", "grad_clip", "grad_clip_by", "vf_loss_coeff", "entropy_coeff")


def config_of(task: Task, arm: Arm, seed: int) -> AlgorithmConfig:
    """Returns the config of a run: one process, without workers of its own."""
    task = task_of(task, arm)
    envs.register()
    runners: dict[str, Any] = dict(arm.env_runners)
    if task.normalize_observations:
        runners["env_to_module_connector"] = lambda env, spaces, device: MeanStdFilter()
    learners: dict[str, Any] = {"num_learners": 0}
    if task.reward_scale != 1.0:
        scale = task.reward_scale
        learners["learner_connector"] = lambda obs_space, action_space: ScaleRewards(scale)
    if arm.learner:
        learners["learner_class"] = LEARNERS[arm.learner]
    if arm.algorithm == "WeightedPPO":
        config = WeightedPPOConfig().training(merge_unit="env", **{**task.training, **arm.training})
        runners["env_backend"] = task.env_backend
        if task.contexts and runners.get("env_seeding") != "prioritized":
            count = len(task.contexts)
            runners["worker_env_config"] = [
                dict(task.contexts[worker % count]) for worker in range(task.num_workers)
            ]
    else:
        config = _stock(task, arm)
    model = DefaultModelConfig(
        fcnet_hiddens=list(task.hidden),
        vf_share_layers=task.vf_share_layers,
        free_log_std=envs.has_continuous_actions(task.env),
    )
    return (
        config.environment(task.env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=task.num_workers, **runners)
        .learners(**learners)
        .rl_module(model_config=model)
        .debugging(seed=seed)
    )


def _stock(task: Task, arm: Arm) -> AlgorithmConfig:
    """Returns the config of one of RLlib's own algorithms, with what it has of the settings."""
    kind, more = _STOCK[arm.algorithm]
    settings = dict(task.training)
    settings["train_batch_size_per_learner"] = settings.pop("train_batch_size")
    if kind is not PPOConfig:
        settings = {name: settings[name] for name in (*_COMMON, *more) if name in settings}
    # APPO and IMPALA would report by the clock.
    return (
        kind()
        .training(**{**settings, **arm.training})
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=1000)
    )


def train(task: Task, arm: Arm, seed: int) -> dict[str, Any]:
    """Trains to the end of the task's budget; returns the columns of `store.SCHEMA` that follow."""
    started = time.monotonic()
    algorithm = config_of(task, arm, seed).build_algo()
    try:
        own = task_of(task, arm)
        curve, measured = _curve(algorithm, own)
        row = summary(curve, own)
        row["diagnostics"] = json.dumps(measured) if measured else None
        row["held_out"] = held_out_returns(algorithm, own)
    finally:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir, ignore_errors=True)
    return {**row, "digest": digest(task, arm), "seconds": time.monotonic() - started}


def _curve(algorithm: Algorithm, task: Task) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Trains to the end.

    Returns:
        env_steps, score and worst of every round, `[rounds]`; diagnostics as means over the rounds.
    """
    workers, everybody = RecentReturns(task.num_workers), RecentReturns(1, _SCORED_EPISODES)
    rows: list[tuple[float, float, float]] = []
    measured: list[dict[str, float]] = []
    returns: list[float] = []
    steps = 0
    while steps < task.total_steps:
        result = algorithm.train()
        steps = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
        if "merge" in result:
            workers.add(result["merge"]["workers"])
            score = result["merge"]["episode_return_mean"]
            measured.append(flat_diagnostics(result["merge"].get("diagnostics", {})))
        else:
            found = result["env_runners"]
            means = {"episode_return": found.get("episode_return_mean", math.nan)}
            everybody.add({"0": {**means, "num_episodes": found.get("num_episodes", 0)}})
            score = everybody.mean()
        worst = workers.worst if task.contexts else math.nan
        if task.score == "workers":
            score = workers.mean()
        elif task.score == "first context":
            score = workers.mean(every=len(task.contexts))
        elif task.score == "greedy":
            if len(rows) % task.greedy_interval == 0:
                returns = context_returns(algorithm, task, task.contexts, task.greedy_episodes)
            score, worst = float(np.mean(returns)), min(returns)
        rows.append((steps, score, worst))
    env_steps, scores, worst = np.array(rows, dtype=np.float64).T
    curve = {"env_steps": env_steps, "score": scores, "worst": worst}
    return curve, mean_diagnostics(measured)


_KEPT_DIAGNOSTICS = ("noise_scale", "heterogeneity", "agreement", "speed", "gain")


def flat_diagnostics(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns what is kept of a round's diagnostics, levels joined by "/"."""
    kept = {}
    for name in _KEPT_DIAGNOSTICS:
        value = found.get(name, {})
        levels = value if isinstance(value, Mapping) else {"": value}
        kept |= {f"{name}/{key}".rstrip("/"): float(number) for key, number in levels.items()}
    return kept


def mean_diagnostics(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Returns the means over the rounds that have each finite; geometric ones of speeds."""
    found = {}
    for name in sorted({name for one in rounds for name in one}):
        values = np.array([one[name] for one in rounds if math.isfinite(one.get(name, math.nan))])
        if values.size and name.startswith("speed/"):
            found[name] = float(np.exp(np.mean(np.log(values))))
        elif values.size:
            found[name] = float(values.mean())
    return found


class RecentReturns:
    """The mean return of each worker's last episodes.

    Args:
        num_workers: Number of workers.
        num_episodes: How many episodes at least, as far as there are as many; older ones count as
            long as they share a round with one of these.
    """

    def __init__(self, num_workers: int, num_episodes: int = _RECENT_EPISODES) -> None:
        self._rounds: list[deque[tuple[float, int]]] = [deque() for _ in range(num_workers)]
        self._least = num_episodes

    def add(self, workers: Mapping[str, Mapping[str, float]]) -> None:
        """Takes a round's metrics of the workers, by their numbers."""
        for worker, values in workers.items():
            rounds, count = self._rounds[int(worker)], int(values["num_episodes"])
            if count:
                rounds.append((values["episode_return"], count))
            while len(rounds) > 1 and sum(n for _, n in rounds) - rounds[0][1] >= self._least:
                rounds.popleft()

    @property
    def _means(self) -> list[float]:
        return [
            sum(mean * count for mean, count in rounds) / sum(count for _, count in rounds)
            if rounds
            else math.nan
            for rounds in self._rounds
        ]

    def mean(self, every: int = 1) -> float:
        """Returns the mean over the first worker and every so many; NaN until each has a return."""
        return float(np.mean(self._means[::every]))

    @property
    def worst(self) -> float:
        """The lowest of the workers'; NaN until each has ended an episode."""
        return float(np.min(self._means))


def summary(curve: Mapping[str, np.ndarray], task: Task) -> dict[str, Any]:
    """Returns what is kept of a curve.

    Args:
        curve: env_steps, score and worst, `[rounds]`.
        task: Says the threshold.
    """
    steps, score = curve["env_steps"], curve["score"]
    found = first_sustained(score, task.threshold, task.hold, stopped_early=False)
    late = steps > 0.9 * steps[-1]
    kept = np.unique(np.linspace(0, steps.size - 1, min(MOST_POINTS, steps.size)).round())
    points = kept.astype(np.int64)
    return {
        "num_steps": int(steps[-1]),
        "steps_to_threshold": None if found is None else int(steps[found]),
        "mean_score": float(np.nanmean(score)),
        "final_score": float(np.nanmean(score[late])),
        "env_steps": steps[points].astype(np.int64).tolist(),
        "score": score[points].tolist(),
        "worst": curve["worst"][points].tolist() if task.contexts else [],
    }
