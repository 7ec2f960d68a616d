from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.examples.rl_modules.classes.tiny_atari_cnn_rlm import TinyAtariCNN
from torch import Tensor, nn

from rllib_weighted.core.modules import (
    StackedForward,
    swapped_parameters,
    why_not_per_worker,
    why_not_stacked,
    worker_parameters,
)

OBS = gym.spaces.Box(-1, 1, (3,), np.float32)
IMAGE = gym.spaces.Box(-1, 1, (10, 10, 3), np.float32)
DISCRETE = gym.spaces.Discrete(3)
BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
N, ROWS = 3, 5


def build(
    action_space: gym.Space = DISCRETE,
    obs_space: gym.Space = OBS,
    *,
    module_class: type = DefaultPPOTorchRLModule,
    catalog_class: type | None = None,
    inference_only: bool = False,
    **model: Any,
) -> Any:
    torch.manual_seed(0)
    spec = RLModuleSpec(
        module_class=module_class,
        observation_space=obs_space,
        action_space=action_space,
        model_config=DefaultModelConfig(fcnet_hiddens=[8, 8], **model),
        catalog_class=catalog_class,
        inference_only=inference_only,
    )
    return spec.build()


def make_stacks(module: nn.Module, n: int = N) -> dict[str, Tensor]:
    """Parameters of n workers that differ."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(n, *p.shape, generator=generator, dtype=torch.float64)
        .mul_(0.5)
        .to(p.dtype)
        .requires_grad_()
        for name, p in module.named_parameters()
    }


def make_obs(space: gym.Space, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(*shape, *space.shape, generator=generator, dtype=torch.float64).to(dtype)


def loaded(module: Any, stacks: dict[str, Tensor], row: int) -> Any:
    """The oracle: another module, with the parameters of one worker in it."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(stacks[name][row])
    return other


MODULES: dict[str, dict[str, Any]] = {
    "discrete": {},
    "shared layers": {"vf_share_layers": True},
    "box": {"action_space": BOX},
    "free log std": {"action_space": BOX, "free_log_std": True, "vf_share_layers": True},
    "multi-discrete": {"action_space": gym.spaces.MultiDiscrete([2, 3])},
    "relu and a deeper head": {"fcnet_activation": "relu", "head_fcnet_hiddens": [4]},
    "images": {"obs_space": IMAGE, "conv_filters": [[4, 3, 2], [8, 3, 2]]},
    "images, shared": {
        "obs_space": IMAGE,
        "conv_filters": [[4, 3, 2], [8, 3, 2]],
        "vf_share_layers": True,
        "action_space": BOX,
    },
}
every = pytest.mark.parametrize("settings", MODULES.values(), ids=MODULES)


def losses(outputs: dict[str, Tensor]) -> Tensor:
    """[n, rows, size], [n, rows] -> [n], a loss of each worker that nothing else is part of."""
    logits, values = outputs["action_dist_inputs"], outputs["vf_preds"]
    return logits.square().mean(dim=(1, 2)) + (values - 1).square().mean(dim=1)


# One forward pass for all


@every
def test_against_a_loop_over_the_workers(settings: dict[str, Any]) -> None:
    module = build(**settings).double()
    # It can be done with convolutions too; it only takes longer.
    assert (why_not_stacked(module) is None) == ("conv_filters" not in settings)
    stacks = make_stacks(module)
    obs = make_obs(settings.get("obs_space", OBS), N, ROWS)
    forward = StackedForward(module)
    outputs = forward.forward_train(stacks, {"obs": obs, "actions": None})
    assert outputs.keys() == {"action_dist_inputs", "vf_preds"}
    losses(outputs).sum().backward()
    for row in range(N):
        one = loaded(module, stacks, row)
        batch = {"obs": obs[row]}
        train = one.forward_train(batch)
        values = one.compute_values(batch, embeddings=train["embeddings"])
        expected = {
            "action_dist_inputs": train["action_dist_inputs"][None],
            "vf_preds": values[None],
        }
        for name, value in expected.items():
            torch.testing.assert_close(outputs[name][row], value[0], rtol=0, atol=1e-12)
        losses(expected).sum().backward()
        for name, parameter in one.named_parameters():
            assert parameter.grad is not None, name
            torch.testing.assert_close(
                stacks[name].grad[row], parameter.grad, rtol=0, atol=1e-12, msg=name
            )
            assert float(parameter.grad.abs().max()) > 0, name
    assert all(parameter.grad is None for parameter in module.parameters())


@every
@pytest.mark.parametrize("inference_only", [False, True])
def test_acting_against_a_loop_over_the_workers(
    settings: dict[str, Any], inference_only: bool
) -> None:
    module = build(**settings).double()
    stacks = make_stacks(module)
    actor = build(**settings, inference_only=inference_only).double()
    obs = make_obs(settings.get("obs_space", OBS), N, ROWS)
    forward = StackedForward(actor)
    for method in ("forward_exploration", "forward_inference"):
        outputs = getattr(forward, method)(stacks, {"obs": obs})["action_dist_inputs"]
        assert not outputs.requires_grad
        for row in range(N):
            batch = {"obs": obs[row]}
            expected = getattr(loaded(module, stacks, row), method)(batch)["action_dist_inputs"]
            torch.testing.assert_close(outputs[row], expected, rtol=0, atol=1e-12)
        assert float((outputs[0] - outputs[1]).abs().max()) > 1e-3


def test_negative_control_workers_in_another_order() -> None:
    module = build()
    stacks = make_stacks(module)
    obs = make_obs(OBS, 1, ROWS, dtype=torch.float32).expand(N, ROWS, 3)
    forward = StackedForward(module)
    swapped = {name: stack[[1, 0, 2]] for name, stack in stacks.items()}
    ours, other = (forward.forward_train(s, {"obs": obs})["vf_preds"] for s in (stacks, swapped))
    assert not torch.allclose(ours, other)
    torch.testing.assert_close(ours[[1, 0, 2]], other)


def test_the_module_keeps_its_parameters() -> None:
    module = build()
    before = [(name, id(p), p.detach().clone()) for name, p in module.named_parameters()]
    stacks = make_stacks(module)
    obs = make_obs(OBS, N, ROWS, dtype=torch.float32)
    StackedForward(module).forward_train(stacks, {"obs": obs})["vf_preds"].sum().backward()
    after = list(module.named_parameters())
    assert [(name, id(p)) for name, p in after] == [item[:2] for item in before]
    assert all(torch.equal(p, item[2]) for (_, p), item in zip(after, before, strict=True))


def test_subsets_and_other_sizes_of_batches() -> None:
    module = build().double()
    stacks, forward = make_stacks(module), StackedForward(module)
    for rows in (2, 7):
        obs = make_obs(OBS, N, rows)
        every_one = forward.forward_train(stacks, {"obs": obs})["vf_preds"]
        some = {name: stack[[0, 2]] for name, stack in stacks.items()}
        two = forward.forward_train(some, {"obs": obs[[0, 2]]})["vf_preds"]
        torch.testing.assert_close(two, every_one[[0, 2]], rtol=0, atol=1e-12)


# What cannot


class OwnCatalog(PPOCatalog):
    pass


class OwnModule(DefaultPPOTorchRLModule):
    pass


class WithStatistics(nn.Sequential):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__(nn.Linear(3, 3), layer)


def test_which_modules_need_one_pass_per_worker() -> None:
    assert why_not_stacked(build()) is None
    assert why_not_stacked(build(module_class=OwnModule)) == "the module is a custom one"
    assert why_not_stacked(build(catalog_class=OwnCatalog)) == "the module is a custom one"
    lstm = build(use_lstm=True, lstm_cell_size=4)
    assert why_not_stacked(lstm) == "the module is a recurrent one"
    compiled = build()
    compiled._forward_train = compiled._forward_train
    assert why_not_stacked(compiled) == "the module is compiled"
    convolutions = build(obs_space=IMAGE, conv_filters=[[4, 3, 2]])
    assert "the module has convolutions" in str(why_not_stacked(convolutions))
    with_norm = build()
    with_norm.pi.add_module("norm", nn.BatchNorm1d(2))
    assert why_not_stacked(with_norm) == (
        "its layer 'pi.norm' (BatchNorm1d) has running statistics"
    )


@pytest.mark.parametrize(
    ("layer", "works"),
    [
        (nn.BatchNorm1d(3), False),
        (nn.SyncBatchNorm(3), False),
        (nn.InstanceNorm1d(3, track_running_stats=True), False),
        (nn.BatchNorm1d(3, track_running_stats=False), True),
        (nn.InstanceNorm1d(3), True),
        (nn.LayerNorm(3), True),
        (nn.Dropout(0.1), True),
        (nn.LSTM(3, 3), True),
    ],
)
def test_which_modules_cannot_have_parameters_per_worker(layer: nn.Module, works: bool) -> None:
    reason = why_not_per_worker(WithStatistics(layer))
    if works:
        assert reason is None
    else:
        assert reason == f"its layer '1' ({type(layer).__name__}) has running statistics"


# One after the other


class Tied(nn.Module):
    """Two layers of one weight, and methods besides `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.gain = nn.Parameter(torch.ones(()))

    def other(self, x: Tensor) -> Tensor:
        return self.gain * self.second(torch.tanh(self.first(x)))

    def penalty(self) -> Tensor:
        return sum((p.square().sum() for p in self.parameters()), torch.zeros(()))


def test_methods_tied_weights_and_parameter_lists_see_the_tensors() -> None:
    module = Tied().double()
    stacks, x = make_stacks(module), make_obs(OBS, 4)
    assert stacks.keys() == {"gain", "first.weight", "first.bias", "second.bias"}
    for row in range(N):
        one = loaded(module, stacks, row)
        (one.other(x).square().sum() + one.penalty()).backward()
        with swapped_parameters(module, {name: stack[row] for name, stack in stacks.items()}):
            loss = module.other(x).square().sum() + module.penalty()
        loss.backward()
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(stacks[name].grad[row], parameter.grad, rtol=0, atol=1e-12)
    assert module.second.weight is module.first.weight
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(use_lstm=True, lstm_cell_size=4, vf_share_layers=False),
        lambda: build(use_lstm=True, lstm_cell_size=4, vf_share_layers=True),
    ],
)
def test_recurrent_modules_compute_with_the_tensors(make: Any) -> None:
    module = make().double()
    stacks, obs = make_stacks(module), make_obs(OBS, 2, ROWS)
    state = {
        key: {k: v.double()[None].repeat(2, *[1] * v.ndim) for k, v in value.items()}
        if isinstance(value, dict)
        else value.double()[None].repeat(2, *[1] * value.ndim)
        for key, value in module.get_initial_state().items()
    }
    batch = {"obs": obs, "state_in": state}

    def loss(one: Any) -> Tensor:
        output = one.forward_train(batch)
        values = one.compute_values(batch, embeddings=output["embeddings"])
        return output["action_dist_inputs"].square().sum() + values.square().sum()

    before = loss(module).detach()
    for row in range(N):
        expected = loss(loaded(module, stacks, row))
        with swapped_parameters(module, {name: stack[row] for name, stack in stacks.items()}):
            found = loss(module)
            found.backward()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert not torch.equal(found.detach(), before)
        copy.deepcopy(module)  # Which tensors with a history would not allow.
    assert all(float(stack.grad.abs().amax()) > 0 for stack in stacks.values())
    assert torch.equal(loss(module).detach(), before)


def test_a_custom_module_computes_with_the_tensors() -> None:
    space = gym.spaces.Box(-1, 1, (42, 42, 4), np.float32)
    torch.manual_seed(0)
    module = TinyAtariCNN(observation_space=space, action_space=DISCRETE, model_config={})
    stacks = {name: 0.1 * stack.detach() for name, stack in make_stacks(module).items()}
    batch = {"obs": make_obs(space, 2, dtype=torch.float32)}
    one = loaded(module, stacks, 1)
    with swapped_parameters(module, {name: stack[1] for name, stack in stacks.items()}):
        found = module.forward_train(batch)["action_dist_inputs"], module.compute_values(batch)
    expected = one.forward_train(batch)["action_dist_inputs"], one.compute_values(batch)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[1], module.compute_values(batch))


def test_an_exception_leaves_the_module_as_it_was() -> None:
    module = Tied()
    before = [id(p) for p in module.parameters()]
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}

    def fail() -> None:
        with swapped_parameters(module, zeros):
            assert float(module.other(torch.ones(3)).abs().sum()) == 0.0
            raise KeyError("out of the block")

    with pytest.raises(KeyError, match="out of the block"):
        fail()
    assert [id(p) for p in module.parameters()] == before
    assert float(module.other(torch.ones(3)).detach().abs().sum()) > 0.0


def test_blocks_may_be_nested() -> None:
    module = Tied()
    outer, inner = (
        {name: torch.full_like(p, value) for name, p in module.named_parameters()}
        for value in (1.0, 2.0)
    )
    with swapped_parameters(module, outer):
        with swapped_parameters(module, inner):
            assert float(module.gain) == 2.0
        assert float(module.gain) == 1.0
        assert float(module.second.weight[0, 0]) == 1.0


def test_missing_and_misshapen_tensors_are_refused() -> None:
    module = Tied()
    tensors = {name: p.detach() for name, p in module.named_parameters()}
    missing = {name: tensor for name, tensor in tensors.items() if name != "gain"}
    with (
        pytest.raises(ValueError, match=r"parameter 'gain', found \['first.bias'"),
        swapped_parameters(module, missing),
    ):
        pytest.fail("should not be reached")
    wrong = {**tensors, "first.bias": torch.zeros(4)}
    with (
        pytest.raises(ValueError, match=r"'first.bias' should have the shape \[3\], found \[4\]"),
        swapped_parameters(module, wrong),
    ):
        pytest.fail("should not be reached")
    with swapped_parameters(module, {**tensors, "critic": torch.zeros(1)}):
        assert module.gain is tensors["gain"]


# Rows of stacks


@pytest.mark.parametrize("as_arrays", [False, True])
def test_parameters_of_some_workers_are_copies(as_arrays: bool) -> None:
    module = build()
    stacks: dict[str, Any] = make_stacks(module)
    if as_arrays:
        stacks = {name: stack.detach().numpy() for name, stack in stacks.items()}
        for array in stacks.values():
            array.flags.writeable = False  # As Ray's object store hands them out.
    actor = build(inference_only=True)
    one, two = worker_parameters(actor, stacks, 1), worker_parameters(actor, stacks, [2, 0])
    names = {name for name, _ in actor.named_parameters()}
    assert one.keys() == two.keys() == names < stacks.keys()
    for name in names:
        assert torch.equal(one[name], torch.as_tensor(np.array(stacks[name].tolist()[1])).float())
        assert torch.equal(two[name][1], worker_parameters(actor, stacks, 0)[name])
        assert not one[name].requires_grad
        one[name].fill_(7.0)
        assert not (torch.tensor(stacks[name].tolist()) == 7.0).any()


def test_parameters_come_in_the_modules_dtype() -> None:
    module = build().double()
    stacks = {n: s.detach().float().numpy() for n, s in make_stacks(module).items()}
    assert {t.dtype for t in worker_parameters(module, stacks, 0).values()} == {torch.float64}


def test_stacks_of_another_module_are_refused() -> None:
    module = build()
    stacks: dict[str, Tensor] = make_stacks(module)
    name = "pi.net.mlp.0.bias"
    with pytest.raises(ValueError, match=rf"{name}' should have the shape \[3, 3\], found \[3, 4"):
        worker_parameters(module, {**stacks, name: torch.zeros(3, 4)}, 0)
    del stacks[name]
    with pytest.raises(ValueError, match=f"a tensor for the module's parameter '{name}', found"):
        worker_parameters(module, stacks, 0)
