"""What is set in the process of an env runner before RLlib builds anything in it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from rllib_weighted.threads import set_env_runner_threads


def prepare_process(config: Any, index: int) -> Any:
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
        set_env_runner_threads(config)
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
