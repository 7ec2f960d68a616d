"""What a training round costs, recorded on this machine: the inputs of cluster_model.py."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import ray
from cluster_model import Costs, fit_line
from contenders import rllib_config
from synthetic import make_learner, make_rollouts, update_seconds

ENVIRONMENT = "CartPole-v1"
ENVS = 8  # Sub-environments per env runner.
EPOCHS = 10


def start_ray() -> None:
    """Starts a Ray of this script's own that takes more env runners than there are cores."""
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, configure_logging=False)


def build(environment: str, num_env_runners: int, steps_per_env: int) -> Any:
    """Builds an algorithm with env runners of 8 sub-environments."""
    config = rllib_config("average", environment)
    config.env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=ENVS)
    batch = max(1, num_env_runners) * ENVS * steps_per_env
    config.training(train_batch_size=batch, minibatch_size=None)
    return config.build_algo()


def sample_seconds(algorithm: Any, rounds: int) -> list[float]:
    """Returns the driver's seconds of some sampling phases, after three that do not count."""
    seconds = []
    for number in range(rounds + 3):
        started = time.perf_counter()
        algorithm._sample()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return seconds


def sampling_speeds(repeats: int, *, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns environment steps per second, a record per environment, env runners and repeat."""
    records = []
    start_ray()
    try:
        for environment in (ENVIRONMENT, "BipedalWalker-v3"):
            for count in (0, 1, 2, 4):
                algorithm = build(environment, count, 256)
                steps = max(1, count) * ENVS * 256
                for repeat, seconds in enumerate(sample_seconds(algorithm, repeats)):
                    speed = steps / seconds
                    records.append(
                        {
                            "x": str(count),
                            "series": environment,
                            "repeat": repeat + 1,
                            "seconds": seconds,
                            "steps_per_s": speed,
                        }
                    )
                algorithm.stop()
                log(f"{environment}, {count} env runners: {speed:,.0f} steps/s")
    finally:
        ray.shutdown()
    return records


def record_costs(repeats: int) -> tuple[Costs, str]:
    """Returns the costs, and as Markdown how each was taken."""
    start_ray()
    try:
        sampled = _sampling_costs(repeats)
    finally:
        ray.shutdown()
    learned = _learner_costs(repeats)
    costs = Costs(**sampled, **learned)
    rows = "\n".join(
        f"| {name} | {value:.3g} | {_HOW[name]} |" for name, value in vars(costs).items()
    )
    how = (
        f"Recorded on {ENVIRONMENT} with 64-64, in seconds and bytes. The network is an "
        "assumption: 1.25 GB/s at the driver, nothing lost.\n\n"
        "| cost | value | taken from |\n|---|---|---|\n"
    )
    return costs, how + rows


_HOW = {
    "sample": "an env runner's own time per step, alone on the machine",
    "sample_spread": "standard deviation of its logarithm over rounds",
    "collect": "slope of the driver's time over 1, 2, 4, 8 env runners with 8 steps each",
    "take_in": "unpickling rollouts, and the learner's update without optimizer steps, per step",
    "step": "intercept of the learner's time per step over minibatches of 256, 1024, 4096 rows",
    "row": "slope of the same",
    "worker": "slope of the learner's time per step over 8, 64, 256 workers",
    "step_bytes": "pickled rollouts of a round / its steps",
    "order_bytes": "pickled order of a round",
    "parameter_bytes": "policy and value network",
}


def _sampling_costs(repeats: int) -> dict[str, float]:
    steps = 128
    algorithm = build(ENVIRONMENT, 1, steps)
    sample_seconds(algorithm, 1)
    own = np.array(sample_seconds(algorithm, max(20, 4 * repeats)))
    rollouts = pickle.dumps(algorithm._sample(), protocol=5)
    loading = []
    for _ in range(5):
        started = time.perf_counter()
        pickle.loads(rollouts)
        loading.append(time.perf_counter() - started)
    order = pickle.dumps((algorithm._runner_state, algorithm._actor_parameters), protocol=5)
    algorithm.stop()
    counts, tiny = (1, 2, 4, 8), []
    for count in counts:
        algorithm = build(ENVIRONMENT, count, 1)
        tiny.append(median(sample_seconds(algorithm, max(20, 4 * repeats))))
        algorithm.stop()
    _, collect = fit_line(counts, tiny)
    per_round = ENVS * steps
    return {
        "sample": float(np.median(own)) / per_round,
        "sample_spread": float(np.log(own).std()),
        "collect": collect,
        "step_bytes": len(rollouts) / per_round,
        "order_bytes": float(len(order)),
        "take_in": median(loading) / per_round + _batch_seconds(repeats),
    }


def _batch_seconds(repeats: int) -> float:
    """The learner's seconds per environment step outside its optimizer steps."""
    learner = make_learner("average", 8)
    batch = 16384
    seconds = []
    for repeat in range(repeats + 1):
        data = make_rollouts(8, batch, repeat)
        wall, _ = update_seconds(
            learner, "average", data, num_workers=8, round=repeat + 1, minibatch=batch, epochs=1
        )
        seconds.append(wall)
    return median(seconds[1:]) / batch


def _learner_costs(repeats: int) -> dict[str, float]:
    def per_step(num_workers: int, minibatch: int) -> float:
        learner = make_learner("reward_weighted", num_workers)
        found = []
        for repeat in range(repeats + 1):
            data = make_rollouts(num_workers, 16384, repeat)
            wall, _ = update_seconds(
                learner,
                "reward_weighted",
                data,
                num_workers=num_workers,
                round=repeat + 1,
                minibatch=minibatch,
                epochs=EPOCHS,
            )
            found.append(wall)
        return median(found[1:]) / (EPOCHS * (16384 // minibatch))

    sizes = (256, 1024, 4096)
    step, row = fit_line(sizes, [per_step(8, size) for size in sizes])
    counts = (8, 64, 256)
    _, worker = fit_line(counts, [per_step(count, 256) for count in counts])
    (module,) = make_learner("reward_weighted", 8).module.values()
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    return {"step": step, "row": row, "worker": worker, "parameter_bytes": float(size)}
