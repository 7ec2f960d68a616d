"""The processes of a trial and of its env runners: PyTorch's threads and the global seeds.

The number of threads depends on the config, the machine and `OMP_NUM_THREADS` alone: with another
one, sums may round differently, and the same seed would not give the same parameters twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

VARIABLE = "OMP_NUM_THREADS"
MAX_THREADS = 8  # Unasked: PPO's minibatches are too small to keep more of them busy.
SMALL = 50_000  # Parameters; 64-64 networks have 10,000, 256-256 networks 150,000.

_DETERMINISTIC: Any = torch.utils.deterministic  # Its property is unknown to the stubs.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # Of a container, under version 2 of control groups.
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu")  # Under version 1.
_ENVIRONMENT = Path("/proc/self/environ")


def num_threads(num_cpus: float, *, cores: float, asked: str | None = None) -> int:
    """Returns the threads for what reserves `num_cpus` of Ray: as many, as far as there are cores.

    Args:
        num_cpus: CPUs that Ray counts; the fraction of one is dropped.
        cores: Cores that the process may use; the fraction of one is dropped.
        asked: What the user has set `OMP_NUM_THREADS` to: a number there is the answer.

    Returns:
        1 … `MAX_THREADS`, or what the user has asked for.
    """
    first = (asked or "").split(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first)
    return max(1, math.floor(min(num_cpus, cores, MAX_THREADS)))


def trial_cpus(config: AlgorithmConfig) -> float:
    """Returns the CPUs that sampling and learning of a trial reserve, without its evaluation's.

    Args:
        config: An `AlgorithmConfig`.
    """
    learner = config.num_cpus_per_learner
    if learner == "auto":  # As RLlib (2.60) has it.
        learner = 0 if config.num_gpus_per_learner else 1
    if config.num_learners:
        learner = 0
    main = max(learner, config.num_cpus_for_main_process)
    return float(main + config.num_env_runners * config.num_cpus_per_env_runner)


def round_threads(config: AlgorithmConfig, *, num_parameters: int | None = None) -> int | None:
    """Returns with how many threads a trial's own process works during a round.

    Its env runners wait while it learns, so their CPUs are its own then. Ray (2.60) gives it one
    thread, whatever there is. In a process of the user's, which Ray has not started, the number
    that torch has there is the most.

    Args:
        config: An `AlgorithmConfig`.
        num_parameters: Size of the module, if known. Below `SMALL` it takes one thread unasked:
            more gain next to nothing, and where the cores have other work besides, threads that
            wait for each other at every operation make a round many times slower.

    Returns:
        None where the learners are processes of their own: Ray gives those their CPUs' threads.
    """
    if config.num_learners:
        return None
    cores: float = cores_at_hand()
    if not _is_ray_worker():
        cores = min(cores, torch.get_num_threads())
    if num_parameters is not None and num_parameters < SMALL:
        cores = 1
    return num_threads(trial_cpus(config), cores=cores, asked=asked_for_threads())


@contextlib.contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Lets torch use that many threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def unfilled_memory() -> Iterator[None]:
    """Lets torch hand out new tensors as they are inside the block.

    With its deterministic algorithms, which come with a seed, it fills each with NaN first, so that
    what reads a value that it never wrote does so twice alike. Nothing here does, and with large
    activations the filling is 8 % of a learner's round.
    """
    before = _DETERMINISTIC.fill_uninitialized_memory
    _DETERMINISTIC.fill_uninitialized_memory = False
    try:
        yield
    finally:
        _DETERMINISTIC.fill_uninitialized_memory = before


def cores_at_hand() -> float:
    """Returns the cores that this process may use, by its affinity and its container's quota."""
    return min(len(os.sched_getaffinity(0)), _quota())


def asked_for_threads() -> str | None:
    """Returns the user's `OMP_NUM_THREADS`.

    Ray (2.60) sets the variable in its workers where the user has not, after they have started:
    there, the variables count that the process was started with.
    """
    if not _is_ray_worker():
        return os.environ.get(VARIABLE)
    with contextlib.suppress(OSError):
        for entry in _ENVIRONMENT.read_text(errors="surrogateescape").split("\0"):
            if entry.startswith(f"{VARIABLE}="):
                return entry.partition("=")[2]
    return None


def _is_ray_worker() -> bool:
    """Whether Ray has started this process for a task or an actor (`worker.mode`: Ray 2.60)."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _quota() -> float:
    """Returns how many cores' time the container of this process has; infinity if all."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = (_OLD_QUOTA / "cpu.cfs_quota_us").read_text()
        period = (_OLD_QUOTA / "cpu.cfs_period_us").read_text()
        return math.inf if int(quota) <= 0 else int(quota) / int(period)
    return math.inf


def prepare_process(config: AlgorithmConfig, index: int) -> AlgorithmConfig:
    """Sets threads and seeds of an env runner's process.

    RLlib (2.60) seeds through `torch.use_deterministic_algorithms`, which loads PyTorch's compiler
    (torch 2.13, builds for CPUs): 800 modules, a second of CPU time and 64 MiB in every env runner.
    `set_deterministic_debug_mode` sets the same flag without. This can go when either of them no
    longer loads it.

    Args:
        config: That of the env runner; it is not changed.
        index: The env runner's `worker_index`; the local one (0) keeps the threads of its process.

    Returns:
        The config for RLlib's constructor. Where the seeds are set here, it has none.
    """
    if index:
        # `OMP_NUM_THREADS` is not asked: with a batch of one row per sub-environment, a second
        # thread on the same CPU makes sampling ten times slower.
        torch.set_num_threads(num_threads(config.num_cpus_per_env_runner, cores=cores_at_hand()))
        _DETERMINISTIC.fill_uninitialized_memory = False  # See `unfilled_memory`.
    if config.seed is None or torch.version.cuda is not None or config.torch_compile_worker:
        return config
    seed_process(config.seed + index + 1_000_000 * config.in_evaluation)
    seedless = config.copy(copy_frozen=False)
    seedless.seed = None
    return seedless


def seed_process(seed: int) -> None:
    """Does what RLlib's `update_global_seed_if_necessary` does, for a torch on CPUs."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
