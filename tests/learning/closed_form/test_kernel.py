"""Gradients that are written out, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.learning.closed_form.helpers import (
    BOX,
    MODELS,
    draw_obs,
    flat_views,
    make_kernel,
    make_module,
    outputs_of,
)

NUM_SETS, NUM_ROWS = 3, 6
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def draw_slopes(outputs: Tensor, values: Tensor, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Derivatives of some loss by outputs and values."""
    generator = torch.Generator().manual_seed(seed)
    by_outputs, by_values = (
        torch.randn(of.shape, generator=generator, dtype=of.dtype) for of in (outputs, values)
    )
    return by_outputs, by_values


def oracle(module, obs: Tensor, by_outputs: Tensor, by_values: Tensor) -> Tensor:
    outputs, values = outputs_of(module, obs)
    loss = (outputs * by_outputs).sum() + (values * by_values).sum()
    found = torch.autograd.grad(loss, list(module.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


@every_model
def test_gradients_equal_those_of_autograd(model):
    module = make_module(**model)
    obs = draw_obs(NUM_ROWS)
    kernel, gradients = make_kernel([module], stacked=False)
    slopes = draw_slopes(*kernel.forward(obs))
    expected = oracle(module, obs, *slopes)
    kernel.backward(*slopes)
    torch.testing.assert_close(gradients[0], expected, rtol=0, atol=1e-10)
    assert gradients.abs().max() > 0.1


@every_model
def test_many_parameter_sets_equal_one_after_the_other(model):
    modules = [make_module(seed=seed, **model) for seed in range(NUM_SETS)]
    obs = draw_obs(NUM_SETS, NUM_ROWS)
    kernel, gradients = make_kernel(modules, stacked=True)
    outputs, values = kernel.forward(obs)
    slopes = draw_slopes(outputs, values)
    expected = []
    for n, module in enumerate(modules):
        own_outputs, own_values = outputs_of(module, obs[n])
        torch.testing.assert_close(outputs[n], own_outputs, rtol=0, atol=1e-12)
        torch.testing.assert_close(values[n], own_values, rtol=0, atol=1e-12)
        expected.append(oracle(module, obs[n], slopes[0][n], slopes[1][n]))
    kernel.backward(*slopes)
    torch.testing.assert_close(gradients, torch.stack(expected), rtol=0, atol=1e-10)


@every_model
@pytest.mark.parametrize("stacked", [False, True])
def test_a_second_pass_overwrites_the_first(model, stacked):
    modules = [make_module(seed=seed, **model) for seed in range(NUM_SETS if stacked else 1)]
    shape = (NUM_SETS, NUM_ROWS) if stacked else (NUM_ROWS,)
    found = []
    for seeds in ([1, 2], [2]):
        kernel, gradients = make_kernel(modules, stacked=stacked)
        for seed in seeds:
            kernel.backward(*draw_slopes(*kernel.forward(draw_obs(*shape, seed=seed))))
        found.append(gradients)
    assert torch.equal(*found)
    assert torch.isfinite(found[0]).all()


# Of a parameter's gradient, each row adds its slope; beyond the bound of 1/2, the clamp is flat.
@pytest.mark.parametrize("stacked", [False, True])
def test_a_clamped_deviation_has_no_gradient_by_hand(stacked):
    module = make_module(action_space=BOX, free_log_std=True, log_std_clip_param=0.5)
    module.pi.log_std.data = torch.tensor([0.25, -3.0], dtype=torch.float64)
    kernel, gradients = make_kernel([module], stacked=stacked)
    outputs, values = kernel.forward(draw_obs(*([1] if stacked else []), 2))
    assert outputs[..., 2:].reshape(2, 2).tolist() == [[0.25, -0.5]] * 2
    slopes = torch.tensor([[0.0, 0.0, 1.0, 10.0], [0.0, 0.0, 2.0, 20.0]], dtype=torch.float64)
    kernel.backward(slopes.view(outputs.shape).clone(), torch.zeros_like(values))
    (own,) = flat_views([module], gradients, stacked=True)["pi.log_std"].tolist()
    assert own == [3.0, 0.0]


def test_a_clamped_output_has_no_gradient():
    """The last layer's bias is the output, where the weights are 0: the clamp is at 1/2."""
    module = make_module(action_space=BOX, log_std_clip_param=0.5)
    head = module.pi.net.mlp[0]
    head.weight.data.zero_()
    # At the bound itself the derivative is 1, as in `torch.clamp`.
    head.bias.data = torch.tensor([7.0, -7.0, 0.5, -0.75], dtype=torch.float64)
    kernel, gradients = make_kernel([module], stacked=False)
    outputs, values = kernel.forward(draw_obs(1))
    assert outputs.tolist() == [[7.0, -7.0, 0.5, -0.5]]
    kernel.backward(torch.ones_like(outputs), torch.zeros_like(values))
    bias = flat_views([module], gradients, stacked=False)["pi.net.mlp.0.bias"]
    assert bias.tolist() == [1.0, 1.0, 1.0, 0.0]
