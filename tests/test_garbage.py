"""What a round has computed is freed at once, not at the next full garbage collection.

A full collection comes when a quarter more objects have piled up, after thousands of rounds: the
tensors of a cycle would lie there meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.sampling.rollout_policy import RolloutPolicy
from tests.sampling.envs import ImageEnv
from tests.sampling.helpers import make_config

pytestmark = pytest.mark.usefixtures("ray_session")


def _images() -> WeightedPPOConfig:
    return make_config(ImageEnv).rl_module(
        model_config={"conv_filters": [[4, 4, 2]], "head_fcnet_hiddens": [8]}
    )


_CONFIGS: dict[str, Callable[[], WeightedPPOConfig]] = {
    "discrete": lambda: make_config("CartPole-v1"),
    "continuous": lambda: make_config("Pendulum-v1"),
    "images": _images,
    "EnvPool": lambda: make_config("envpool:CartPole-v1"),
    "levels": lambda: make_config(env_seeding="prioritized"),
    "own parameters": lambda: make_config().training(merge_strategy="actor_average"),
    "diagnostics": lambda: make_config().training(merge_diagnostics_interval=1),
    "general learner": lambda: make_config().learners(fast_learner=False),
    "RLlib's loop": lambda: make_config(fast_sampling=False),
    "complete episodes": lambda: make_config(batch_mode="complete_episodes"),
}


def _garbage(function: Callable[[], object]) -> list[object]:
    """Calls a function; returns what only the garbage collector could free after it."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        function()
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_round_leaves_no_tensors_to_the_garbage_collector(name: str) -> None:
    algorithm = _CONFIGS[name]().build_algo()
    try:
        algorithm.train()  # The first one fills caches.
        garbage = _garbage(algorithm.train)
    finally:
        algorithm.stop()
    kept = [item for item in garbage if isinstance(item, torch.Tensor | RolloutPolicy)]
    assert not kept


def test_the_check_sees_a_cycle() -> None:
    def leave_a_cycle() -> None:
        cycle: list[object] = [torch.zeros(3)]
        cycle.append(cycle)

    assert any(isinstance(item, torch.Tensor) for item in _garbage(leave_a_cycle))
