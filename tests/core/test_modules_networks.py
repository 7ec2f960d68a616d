"""The layers that are read compute what the module computes; all that is unknown is refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from torch import nn

from rllib_weighted.core.modules import Layer, UnknownNetworkError, read_networks
from tests.learning.closed_form.helpers import (
    BOX,
    MODELS,
    draw_obs,
    make_kernel,
    make_module,
    outputs_of,
)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_layers_compute_what_the_module_does(model):
    module = make_module(**model)
    obs = draw_obs(9)
    expected_outputs, expected_values = outputs_of(module, obs)
    kernel, _ = make_kernel([module], stacked=False)
    outputs, values = kernel.forward(obs)
    torch.testing.assert_close(outputs, expected_outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=1e-12)
    assert values.shape == (9,)
    # Negative control: with other parameters, both are others.
    other, _ = make_kernel([make_module(seed=1, **model)], stacked=False)
    assert all(
        not torch.allclose(found, wanted)
        for found, wanted in zip(
            other.forward(obs), (expected_outputs, expected_values), strict=True
        )
    )


def test_separate_networks_by_name():
    networks = read_networks(make_module(fcnet_hiddens=[5]))
    assert networks.trunk == ()
    actor, critic = (f"encoder.{kind}_encoder.net.mlp.0" for kind in ("actor", "critic"))
    assert networks.policy == (
        Layer(f"{actor}.weight", f"{actor}.bias", "tanh"),
        Layer("pi.net.mlp.0.weight", "pi.net.mlp.0.bias", None),
    )
    assert networks.value == (
        Layer(f"{critic}.weight", f"{critic}.bias", "tanh"),
        Layer("vf.net.mlp.0.weight", "vf.net.mlp.0.bias", None),
    )
    assert networks.distribution == "categorical"
    assert networks.log_std is networks.log_std_bound is None


def test_shared_layers_by_name():
    networks = read_networks(make_module(fcnet_hiddens=[5], vf_share_layers=True))
    encoder = "encoder.encoder.net.mlp.0"
    assert networks.trunk == (Layer(f"{encoder}.weight", f"{encoder}.bias", "tanh"),)
    assert (len(networks.policy), len(networks.value)) == (1, 1)


def test_deviations():
    of_outputs = read_networks(make_module(action_space=BOX))
    assert (of_outputs.distribution, of_outputs.log_std) == ("gaussian", None)
    assert of_outputs.log_std_bound == 20  # RLlib's default
    free = read_networks(make_module(action_space=BOX, free_log_std=True, log_std_clip_param=2))
    assert (free.log_std, free.log_std_bound) == ("pi.log_std", 2)


@pytest.mark.parametrize("shared", [False, True])
def test_layers_without_a_bias(shared):
    module = make_module(vf_share_layers=shared)
    dense = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in dense:
        layer.bias = None
    networks = read_networks(module)
    layers = networks.trunk + networks.policy + networks.value
    assert len(layers) == len(dense)
    assert {layer.bias for layer in layers} == {None}
    kernel, gradients = make_kernel([module], stacked=False)
    outputs, values = outputs_of(module, draw_obs(4))
    found = kernel.forward(draw_obs(4))
    torch.testing.assert_close(found, (outputs, values), rtol=0, atol=1e-12)
    expected = torch.autograd.grad(outputs.sum() + values.sum(), list(module.parameters()))
    kernel.backward(torch.ones_like(outputs), torch.ones_like(values))
    wanted = torch.cat([gradient.flatten() for gradient in expected])
    torch.testing.assert_close(gradients[0], wanted, rtol=0, atol=1e-10)


class Subclass(DefaultPPOTorchRLModule):
    """Nothing is changed, but it could be."""


def _frozen():
    module = make_module()
    next(module.parameters()).requires_grad_(False)
    return module


def _compiled():
    module = make_module()
    module._forward_train = module._forward_train
    return module


def _subclassed_layer():
    module = make_module()
    module.pi.net.mlp[0] = type("MyLinear", (nn.Linear,), {})(4, 2).double()
    return module


def _two_activations():
    module = make_module()
    module.vf.net.mlp.extend([nn.Tanh(), nn.Tanh()])
    return module


def _activation_first():
    module = make_module()
    module.vf.net.mlp.insert(0, nn.ReLU())
    return module


IMAGES = gym.spaces.Box(-1.0, 1.0, (8, 8, 3), np.float32)
UNKNOWN = {
    "lstm": (
        lambda: make_module(use_lstm=True, lstm_cell_size=3, max_seq_len=5),
        "the encoder is a TorchStatefulActorCriticEncoder",
    ),
    "conv": (
        lambda: make_module(obs_space=IMAGES, conv_filters=[[4, 3, 2]]),
        "an encoder is a TorchCNNEncoder",
    ),
    "conv, shared": (
        lambda: make_module(obs_space=IMAGES, conv_filters=[[4, 3, 2]], vf_share_layers=True),
        "an encoder is a TorchCNNEncoder",
    ),
    "layer norm": (lambda: make_module(fcnet_use_layernorm=True), "a network has a LayerNorm"),
    "layer norm in heads": (
        lambda: make_module(head_fcnet_hiddens=[3], head_fcnet_use_layernorm=True),
        "a network has a LayerNorm",
    ),
    "activation": (lambda: make_module(fcnet_activation="silu"), "a network has a SiLU layer"),
    "actions": (
        lambda: make_module(action_space=gym.spaces.MultiDiscrete([2, 3])),
        "the actions are neither discrete nor continuous",
    ),
    "subclass": (lambda: make_module(module_class=Subclass), "a custom or a compiled one"),
    "compiled": (_compiled, "a custom or a compiled one"),
    "frozen": (_frozen, "some parameters are frozen"),
    "layer of a user's": (_subclassed_layer, "a network has a MyLinear layer"),
    "two activations": (_two_activations, "a network has a Tanh layer"),
    "activation first": (_activation_first, "a network has a ReLU layer"),
}


@pytest.mark.parametrize(("make", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_unknown_is_refused_with_its_reason(make, reason):
    with pytest.raises(UnknownNetworkError, match=reason):
        read_networks(make())
