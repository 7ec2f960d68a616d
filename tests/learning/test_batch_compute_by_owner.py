"""A module that rewrites its batch, as RLlib's action masking does, with parameters per worker."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from rllib_weighted.learning.batch import compute_by_owner
from tests.sampling.helpers import make_config


def test_what_is_written_is_put_together_in_the_order_of_the_rows() -> None:
    columns: dict[str, Any] = {
        "obs": {"mask": torch.arange(5) * 10, "seen": torch.arange(5)},
        "kept": torch.arange(5) * 2,
        "infos": [{"row": row} for row in range(5)],
    }
    kept = columns["kept"]

    def compute(owner: int, part: dict[str, Any]) -> torch.Tensor:
        part["mask"] = part["obs"].pop("mask")
        part["obs"] = part["obs"].pop("seen")
        assert [info["row"] for info in part["infos"]] == part["obs"].tolist()
        return part["obs"] + 100 * owner

    found = compute_by_owner(compute, columns, torch.tensor([1, 0, 1, 0, 1]))
    assert found.tolist() == [100, 1, 102, 3, 104]
    assert columns["mask"].tolist() == [0, 10, 20, 30, 40]
    assert columns["obs"].tolist() == [0, 1, 2, 3, 4]
    assert columns["kept"] is kept
    assert len(columns["infos"]) == 5


def test_what_is_taken_out_of_a_nest_or_of_the_columns_is_gone() -> None:
    columns: dict[str, Any] = {
        "obs": {"a": torch.arange(3), "b": torch.ones(3)},
        "c": torch.ones(3),
    }

    def compute(owner: int, part: dict[str, Any]) -> torch.Tensor:
        del part["c"]
        return part["obs"].pop("a")

    compute_by_owner(compute, columns, torch.tensor([0, 1, 1]))
    assert columns.keys() == {"obs"}
    assert columns["obs"].keys() == {"b"}


class MaskedEnv(gym.Env):
    """One action at a time is forbidden, and ends the run."""

    def __init__(self, context: Any = None) -> None:
        self.action_space = gym.spaces.Discrete(3)
        self.observation_space = gym.spaces.Dict(
            {
                "action_mask": gym.spaces.Box(0.0, 1.0, (3,)),
                "observations": gym.spaces.Box(-1.0, 1.0, (2,)),
            }
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        assert action != self.forbidden
        self.t += 1
        return self._observation(), float(action), self.t == 6, False, {}

    def _observation(self) -> dict[str, np.ndarray]:
        self.forbidden = int(self.np_random.integers(3))
        mask = 1 - np.eye(3, dtype=np.float32)[self.forbidden]
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"action_mask": mask, "observations": obs}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("strategy", ["actor_average", "actor_sum", "average"])
def test_rllibs_action_masking_module_trains(strategy: str) -> None:
    config = make_config(MaskedEnv).training(merge_strategy=strategy, num_epochs=2, lr=0.01)
    config.rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=ActionMaskingTorchRLModule,
            model_config={"head_fcnet_hiddens": [8], "fcnet_hiddens": [8]},
        )
    )
    algorithm = config.build_algo()
    try:
        before = algorithm.get_module().get_state()
        before = {name: value.copy() for name, value in before.items()}
        results = [algorithm.train() for _ in range(2)]
        after = algorithm.get_module().get_state()
    finally:
        algorithm.stop()
    for result in results:
        assert result["merge"]["num_dropped"] == 0
    assert any(not np.array_equal(after[name], before[name]) for name in before)
