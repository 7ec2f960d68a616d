"""What a training round costs, recorded on this machine: the inputs of cluster_model.py."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from cluster_model import Costs, fit_line
from contenders import rllib_config
from synthetic import make_learner, make_rollouts, update_seconds

from rllib_weighted.core.rollouts import RolloutColumns
from rllib_weighted.learning.learner_group import ColumnTrainingData

ENVIRONMENT = "CartPole-v1"
ENVIRONMENTS = (ENVIRONMENT, "BipedalWalker-v3")
ENVS = 8  # Sub-environments per env runner.
STEPS = 128  # Per sub-environment and round.
BATCH = 16384  # Of the learner.
EPOCHS = (1, 5)  # What they differ by is optimizer steps and nothing else.


@contextmanager
def own_ray() -> Iterator[None]:
    """A Ray of this script's own that takes more env runners than there are cores."""
    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(address="local", num_cpus=16, **options)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Sampled:
    """A sampling phase, seen by the driver.

    Args:
        wall: Its seconds.
        cpu: The driver's own seconds on all cores.
        columns: What each env runner sampled.
    """

    wall: float
    cpu: float
    columns: list[RolloutColumns]

    @property
    def steps_per_s(self) -> float:
        """Environment steps per second."""
        return sum(part.num_steps for part in self.columns) / self.wall


def _config(environment: str, num_env_runners: int) -> Any:
    """The benchmarks' config, with networks of their own for policy and value."""
    config = rllib_config("average", environment)
    model = {**config.model_config, "vf_share_layers": False}
    config.env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=ENVS)
    return config.rl_module(model_config=model)


def sample(environment: str, num_env_runners: int, steps: int, rounds: int) -> list[Sampled]:
    """Returns some sampling phases of a new algorithm, after three that do not count.

    Args:
        environment: A gymnasium id.
        num_env_runners: Env runners of 8 sub-environments; 0: one in this process.
        steps: Steps of every sub-environment per round.
        rounds: Phases to return.

    Raises:
        RuntimeError: An env runner did not take the fast path.
    """
    config = _config(environment, num_env_runners)
    batch = max(1, num_env_runners) * ENVS * steps
    config.training(train_batch_size=batch, minibatch_size=None)
    algorithm = config.build_algo()
    found = []
    try:
        for _ in range(rounds + 3):
            wall, cpu = time.perf_counter(), time.process_time()
            rollouts = algorithm._sample()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if not rollouts.columns or rollouts.num_fast != max(1, num_env_runners):
                raise RuntimeError(
                    f"All {max(1, num_env_runners)} env runners should sample on the fast path, "
                    f"found {rollouts.num_fast}; absent: {rollouts.absent}"
                )
            found.append(Sampled(wall, cpu, rollouts.columns))
    finally:
        algorithm.stop()
    return found[3:]


def sampling_speeds(repeats: int, *, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns environment steps per second, a record per environment, env runners and repeat."""
    torch.set_num_threads(1)
    records = []
    with own_ray():
        for environment in ENVIRONMENTS:
            try:
                gym.make(environment).close()
            except gym.error.DependencyNotInstalled as error:
                log(f"Leaving out {environment}: {error}")
                continue
            for count in (0, 1, 2, 4):
                found = sample(environment, count, 256, repeats)
                for repeat, each in enumerate(found, start=1):
                    record = {"x": str(count), "series": environment, "repeat": repeat}
                    record |= {"seconds": each.wall, "cpu_seconds": each.cpu}
                    records.append({**record, "steps_per_s": each.steps_per_s})
                speed = median(each.steps_per_s for each in found)
                log(f"{environment}, {count} env runners: {speed:,.0f} steps/s")
    return records


_HOW = {
    "sample": "driver's time for one env runner, rounds of 128 vector steps less rounds of 1",
    "sample_spread": "standard deviation of the logarithm of the former over rounds",
    "collect": "slope of the driver's CPU time over 1, 2, 4, 8 env runners of 1 vector step",
    "read": "unpickling four env runners' columns and sorting them by worker, per step",
    "build": "learner's CPU time for 1 epoch less its optimizer steps, per environment step",
    "step": "intercept of the CPU time per optimizer step over minibatches of 64 … 4096",
    "row": "slope of the same",
    "worker": "slope of the same over 8, 64, 256 workers, minibatches of 256",
    "step_bytes": "pickled columns of a round / its steps",
    "order_bytes": "pickled weights and state of a round's order",
    "parameter_bytes": "policy and value network",
}


def record_costs(repeats: int) -> tuple[Costs, str]:
    """Returns the costs, and as Markdown how each was taken."""
    with own_ray():
        sampled, note = _sampling_costs(max(20, 4 * repeats))
    learned, misfit = _learner_costs(repeats)
    costs = Costs(**sampled, **learned)
    rows = [f"| {name} | {value:.3g} | {_HOW[name]} |" for name, value in vars(costs).items()]
    how = (
        f"Recorded on {ENVIRONMENT}, 8 sub-environments per env runner, `reward_weighted`, policy "
        f"and value 64-64 each, 1 torch thread; seconds and bytes. {note} The "
        f"line over minibatches misses its points by up to {misfit:.0%}.\n\n"
        "| cost | value | taken from |\n|---|---|---|"
    )
    return costs, "\n".join([how, *rows])


def _sampling_costs(rounds: int) -> tuple[dict[str, float], str]:
    torch.set_num_threads(1)
    counts = (1, 2, 4, 8)
    tiny = {count: sample(ENVIRONMENT, count, 1, rounds) for count in counts}
    long = sample(ENVIRONMENT, 1, STEPS, rounds)
    walls = {count: median(each.wall for each in found) for count, found in tiny.items()}
    _, collect = fit_line(counts, [median(each.cpu for each in tiny[c]) for c in counts])
    _, waited = fit_line(counts, [walls[count] for count in counts])
    own = np.array([each.wall for each in long])
    read, step_bytes = _reading([each.columns[0] for each in long[-4:]])
    costs = {
        "sample": max(0.0, float(np.median(own)) - walls[1]) / (ENVS * (STEPS - 1)),
        "sample_spread": float(np.log(own).std()),
        "collect": collect,
        "read": read,
        "step_bytes": step_bytes,
        "order_bytes": _order_bytes(),
    }
    note = (
        f"{rounds} rounds of each number of env runners. On the wall, an env runner more costs "
        f"{waited:.3g} s, which is not the driver's alone: all of them share this machine's cores."
    )
    return costs, note


def _reading(parts: Sequence[RolloutColumns]) -> tuple[float, float]:
    """Returns seconds per step to read env runners' columns as Ray does, and bytes per step."""
    steps = sum(part.num_steps for part in parts)
    buffers: list[list[pickle.PickleBuffer]] = [[] for _ in parts]
    packed = [
        pickle.dumps(part, protocol=5, buffer_callback=own.append)
        for part, own in zip(parts, buffers, strict=True)
    ]
    num_bytes = sum(len(each) for each in packed)
    num_bytes += sum(buffer.raw().nbytes for own in buffers for buffer in own)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        columns = [
            pickle.loads(each, buffers=own) for each, own in zip(packed, buffers, strict=True)
        ]
        ColumnTrainingData.from_rollouts(columns, num_workers=ENVS)
        seconds.append(time.perf_counter() - started)
    return median(seconds) / steps, num_bytes / steps


def _order_bytes() -> float:
    """Returns the bytes of the state that every env runner is sent."""
    algorithm = _config(ENVIRONMENT, 0).build_algo()
    try:
        algorithm._sample()  # Fetches the state first.
        return float(len(pickle.dumps(algorithm._runner_state, protocol=5)))
    finally:
        algorithm.stop()


def _learner_costs(repeats: int) -> tuple[dict[str, float], float]:
    torch.set_num_threads(1)  # CPU time counts all of them.
    sizes, counts = (64, 256, 1024, 4096), (8, 64, 256)
    learners = {
        count: make_learner("reward_weighted", count, shares_layers=False) for count in counts
    }
    per_step, build = {}, []
    for setting in dict.fromkeys([*((8, size) for size in sizes), *((n, 256) for n in counts)]):
        num_workers, minibatch = setting
        short, long = _epochs_seconds(learners[num_workers], num_workers, minibatch, repeats)
        steps = BATCH // minibatch
        per_step[setting] = (long - short) / (steps * (EPOCHS[1] - EPOCHS[0]))
        build.append((short - steps * EPOCHS[0] * per_step[setting]) / BATCH)
    step, row = fit_line(sizes, [per_step[8, size] for size in sizes], relative=True)
    misfit = max(abs((step + row * size) / per_step[8, size] - 1) for size in sizes)
    _, worker = fit_line(counts, [per_step[count, 256] for count in counts])
    (module,) = learners[8].module.values()
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    costs = {
        "build": max(0.0, median(build)),
        # The line was taken with 8 workers, whose part is counted apart.
        "step": max(0.0, step - 8 * worker),
        "row": row,
        "worker": worker,
        "parameter_bytes": float(size),
    }
    return costs, misfit


def _epochs_seconds(
    learner: Any, num_workers: int, minibatch: int, repeats: int
) -> tuple[float, float]:
    """Returns the CPU seconds of an update of few and of many epochs, medians."""
    seconds: dict[int, list[float]] = {epochs: [] for epochs in EPOCHS}
    for repeat in range(repeats + 1):
        data = make_rollouts(num_workers, BATCH, repeat)
        for epochs in EPOCHS if repeat % 2 else EPOCHS[::-1]:
            _, cpu = update_seconds(
                learner,
                "reward_weighted",
                data,
                num_workers=num_workers,
                round=repeat + 1,
                minibatch=minibatch,
                epochs=epochs,
            )
            seconds[epochs].append(cpu)
    few, many = (median(seconds[epochs][1:]) for epochs in EPOCHS)
    return few, many
