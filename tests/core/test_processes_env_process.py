from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.debug import update_global_seed_if_necessary

from rllib_weighted.core import processes as threads
from rllib_weighted.core.processes import prepare_process, seed_process
from tests.sampling.helpers import SEED, make_config, make_runner


def _draws() -> list[float]:
    return [random.random(), np.random.random(), torch.rand(1).item()]


def test_seeds_are_those_that_rllib_would_set() -> None:
    update_global_seed_if_necessary("torch", SEED)
    expected = _draws(), torch.get_deterministic_debug_mode()
    seed_process(SEED + 1)
    assert _draws() != expected[0]
    torch.set_deterministic_debug_mode("default")
    seed_process(SEED)
    assert (_draws(), torch.get_deterministic_debug_mode()) == expected


@pytest.mark.parametrize(("index", "in_evaluation"), [(0, False), (2, False), (1, True)])
def test_each_env_runner_has_its_own_seed_and_fills_no_memory(
    index: int, in_evaluation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    config = make_config(num_env_runners=2)
    config.in_evaluation = in_evaluation
    before = torch.get_num_threads()
    with threads.computing_with(before):
        seedless = prepare_process(config, index)
    torch.set_num_threads(before)
    # The local one's process is the user's.
    assert torch.utils.deterministic.fill_uninitialized_memory is (index == 0)
    drawn = _draws()
    # RLlib's own rule: seed + worker_index + 1e6 in evaluation.
    seed_process(SEED + index + (1_000_000 if in_evaluation else 0))
    assert drawn == _draws()
    assert (seedless.seed, config.seed) == (None, SEED)


class SeedOfTheConfig(RLlibCallback):
    seen: list[int]

    def on_environment_created(self, *, env_runner: Any, **kwargs: Any) -> None:
        type(self).seen.append(env_runner.config.seed)


def test_the_config_of_an_env_runner_keeps_its_seed() -> None:
    SeedOfTheConfig.seen = []
    runner = make_runner(make_config().callbacks(SeedOfTheConfig))
    assert SeedOfTheConfig.seen == [SEED]
    assert runner.config.seed == SEED


NOT_NEEDED = [
    "matplotlib",
    "rllib_weighted.cli",
    "rllib_weighted.report",
    "scipy.signal",
    "scipy.stats",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_env_runners_process_loads_no_more_than_it_needs() -> None:
    """Each of them takes megabytes, in every env runner; seeds and threads are set all the same."""

    def look(runner: Any) -> tuple[list[str], int, int]:
        loaded = [name for name in NOT_NEEDED if name in sys.modules]
        return loaded, torch.get_num_threads(), torch.get_deterministic_debug_mode()

    algorithm = make_config(num_env_runners=2, num_cpus_per_env_runner=1.5).build_algo()
    try:
        algorithm.train()
        found = algorithm.env_runner_group.foreach_env_runner(look, local_env_runner=False)
    finally:
        algorithm.stop()
    own = threads.num_threads(1.5, cores=threads.cores_at_hand())
    deterministic = 2 if torch.version.cuda is None else 0
    assert found == [([], own, deterministic)] * 2
