"""Whole numbers as observations: floats only inside the module, with their values as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.modules import StackedForward, dense_layers, read_networks
from rllib_weighted.core.observations import CastingPPOModule
from tests.sampling.envs import ImageEnv
from tests.sampling.helpers import make_config

_SPACES = {
    "bytes": gym.spaces.Box(0, 255, (6,), np.uint8),
    "images": gym.spaces.Box(0, 255, (10, 10, 4), np.uint8),
    "int64": gym.spaces.Box(-9, 9, (6,), np.int64),
    "bool": gym.spaces.Box(0, 1, (6,), np.bool_),
    "half": gym.spaces.Box(-1, 1, (6,), np.float16),
}


def _module(space: gym.Space[Any], config: WeightedPPOConfig | None = None) -> Any:
    spaces = {"default_policy": (space, gym.spaces.Discrete(3))}
    torch.manual_seed(0)
    spec = (config or make_config()).get_multi_rl_module_spec(spaces=spaces)
    return spec.rl_module_specs["default_policy"].build()


def _batch(space: Any, dtype: Any = None) -> dict[str, torch.Tensor]:
    space.seed(3)
    obs = np.stack([space.sample() for _ in range(5)])
    return {Columns.OBS: torch.from_numpy(obs if dtype is None else obs.astype(dtype))}


def test_kernels_keep_their_channels_last() -> None:
    """Else every forward pass copies them; a state that comes without must not undo it."""
    module = _module(_SPACES["images"])
    other = {name: p.detach().numpy().copy(order="C") for name, p in module.named_parameters()}
    module.set_state({name: values + 1 for name, values in other.items()})
    kernels = {name: p for name, p in module.named_parameters() if p.dim() == 4}
    assert kernels
    for name, kernel in kernels.items():
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert not kernel.is_contiguous()
        np.testing.assert_array_equal(kernel.detach().numpy(), other[name] + 1)


@pytest.mark.parametrize("name", _SPACES)
def test_it_computes_what_rllibs_own_module_computes_of_floats(name: str) -> None:
    space: Any = _SPACES[name]
    ours = _module(space)
    stock = _module(gym.spaces.Box(-9, 255, space.shape, np.float32))
    assert (type(ours), type(stock)) == (CastingPPOModule, DefaultPPOTorchRLModule)
    own, floats = _batch(space), _batch(space, np.float32)
    with pytest.raises(RuntimeError):
        stock.forward_inference(own)
    for forward in ("forward_inference", "forward_exploration", "forward_train"):
        expected = getattr(stock, forward)(floats)[Columns.ACTION_DIST_INPUTS]
        assert torch.equal(getattr(ours, forward)(own)[Columns.ACTION_DIST_INPUTS], expected)
    assert torch.equal(ours.compute_values(own), stock.compute_values(floats))
    assert own[Columns.OBS].dtype == _batch(space)[Columns.OBS].dtype


def test_observations_are_scaled_only_if_the_user_says_so() -> None:
    space: Any = _SPACES["bytes"]
    plain = _module(space)
    scaled = _module(space, make_config().rl_module(observation_scale=1 / 255))
    batch = _batch(space)
    in_unit = {Columns.OBS: batch[Columns.OBS].float() * (1 / 255)}
    expected = plain.forward_inference(in_unit)[Columns.ACTION_DIST_INPUTS]
    found = scaled.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(found, expected)
    assert not torch.equal(plain.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], expected)


def test_floats_can_be_scaled_too() -> None:
    space = gym.spaces.Box(-1, 1, (6,), np.float32)
    module = _module(space, make_config().rl_module(observation_scale=0.5))
    given = torch.ones(2)
    assert torch.equal(module.floats(given), torch.tensor([0.5, 0.5]))
    assert torch.equal(given, torch.ones(2)), "a rollout's observations stay as they are"


def test_the_module_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    module = _module(_SPACES["bytes"], make_config().rl_module(observation_scale=0.25))
    module.save_to_path(tmp_path)
    restored = RLModule.from_checkpoint(tmp_path)
    batch = _batch(_SPACES["bytes"])
    expected = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(restored.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], expected)


def test_the_short_ways_cast_as_well() -> None:
    space: Any = _SPACES["bytes"]
    module = _module(space, make_config().rl_module(observation_scale=1 / 255))
    obs = _batch(space)[Columns.OBS]
    expected = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
    through = obs
    for layer in dense_layers(module) or []:
        through = layer(through)
    assert torch.equal(through, expected)
    floats = read_networks(module).floats
    assert floats is not None
    assert torch.equal(floats(obs), module.floats(obs))


def test_workers_with_parameters_of_their_own_share_a_forward_pass() -> None:
    space: Any = _SPACES["bytes"]
    module = _module(space)
    stacked = {name: torch.stack([value, value * 2]) for name, value in module.named_parameters()}
    obs = _batch(space)[Columns.OBS]
    found = StackedForward(module).forward_train(stacked, {Columns.OBS: torch.stack([obs, obs])})
    for row in (0, 1):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(stacked[name][row])
        expected = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
        torch.testing.assert_close(found[Columns.ACTION_DIST_INPUTS][row], expected)


class OwnModule(DefaultPPOTorchRLModule):
    pass


def test_a_module_of_the_users_is_left_alone() -> None:
    own = RLModuleSpec(module_class=OwnModule)
    config = make_config().rl_module(rl_module_spec=own)
    assert type(_module(_SPACES["bytes"], config)) is OwnModule


def test_a_scale_that_nobody_would_read_is_refused() -> None:
    own = RLModuleSpec(module_class=OwnModule)
    config = make_config().rl_module(rl_module_spec=own, observation_scale=0.1)
    with pytest.raises(ValueError, match=r"`observation_scale` should be 1 .* 0.1.* OwnModule"):
        _module(_SPACES["bytes"], config)


@pytest.mark.parametrize("scale", [0, -1, "1/255", float("nan"), True])
def test_what_is_no_scale_is_refused(scale: Any) -> None:
    config = make_config().rl_module(observation_scale=scale)
    with pytest.raises(ValueError, match="`observation_scale` should be a number > 0"):
        config.validate()


# Whole trainings


def _parameters(
    shape: list[int], dtype: str, *, fast: bool = True, **training: Any
) -> tuple[dict[str, Any], Any]:
    config = make_config(ImageEnv, fast_sampling=fast).environment(
        env_config={"shape": shape, "dtype": dtype}
    )
    config.training(num_epochs=2, lr=0.003, **training).learners(fast_learner=fast)
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(2)]
        assert results[-1]["merge"]["num_workers"] == 2
        assert results[-1]["merge"]["columns"] == float(fast)
        return algorithm.get_module().get_state(), results[-1]
    finally:
        algorithm.stop()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("strategy", ["reward_weighted", "actor_average"])
@pytest.mark.parametrize("shape", [[6], [10, 10, 4]], ids=["flat", "images"])
def test_bytes_train_as_their_floats_do(shape: list[int], strategy: str) -> None:
    """Bit for bit, on the fast paths; and as RLlib's own loop, episodes and autograd."""
    own, _ = _parameters(shape, "uint8", merge_strategy=strategy)
    floats, _ = _parameters(shape, "float32", merge_strategy=strategy)
    reference, _ = _parameters(shape, "uint8", fast=False, merge_strategy=strategy)
    assert own.keys() == floats.keys() == reference.keys()
    for name, value in own.items():
        np.testing.assert_array_equal(value, floats[name], err_msg=name)
        np.testing.assert_allclose(value, reference[name], rtol=1e-4, atol=1e-6, err_msg=name)
