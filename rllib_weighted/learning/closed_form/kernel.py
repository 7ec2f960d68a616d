"""Forward and backward pass of dense networks, written out: no graph, no memory per step.

For layers of 64 units, most of a step's time in autograd goes into recording and replaying the
graph. The gradients of a chain of dense layers are a few matrix products, which write straight
into one flat vector of gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_weighted.core.modules import Layer, Networks

_Saved = list[Tensor]  # The input of every layer of a chain, then its output.


class Kernel:
    """Policy and value function of one parameter set, or of n sets on rows of their own.

    Args:
        networks: The layers.
        parameters: Name -> tensor of [...], or of [n, ...] if stacked.
        gradients: Name -> where to write that parameter's gradient, same shapes.
        stacked: Whether there are n sets; then rows are [n, rows, ...], else [rows, ...].
    """

    def __init__(
        self,
        networks: Networks,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        *,
        stacked: bool,
    ) -> None:
        slots = _Slots(parameters, gradients, stacked)
        self._trunk, self._policy, self._value = (
            [_Dense(layer, slots) for layer in chain]
            for chain in (networks.trunk, networks.policy, networks.value)
        )
        self._deviations = None
        if networks.distribution == "gaussian":
            self._deviations = _Deviations(networks, slots)
        self._saved: tuple[_Saved, _Saved, _Saved] = ([], [], [])

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the last layers' outputs, and keeps what the backward pass needs.

        Args:
            obs: [rows, size], or [n, rows, size].

        Returns:
            Inputs of the action distributions [.., rows, inputs] and values [.., rows].
        """
        trunk = _forward(self._trunk, obs)
        policy, value = _forward(self._policy, trunk[-1]), _forward(self._value, trunk[-1])
        self._saved = trunk, policy, value
        outputs = policy[-1]
        if self._deviations is not None:
            outputs = self._deviations.forward(outputs)
        return outputs, value[-1].squeeze(-1)

    def backward(self, policy: Tensor, value: Tensor) -> None:
        """Writes the gradients of all layers' parameters; call it once after each forward pass.

        Args:
            policy: Gradient of the loss by the distributions' inputs, [.., rows, inputs].
            value: Gradient of the loss by the values, [.., rows].
        """
        if self._deviations is not None:
            policy = self._deviations.backward(policy)
        trunk_saved, policy_saved, value_saved = self._saved
        wanted = bool(self._trunk)
        down = _backward(self._policy, policy_saved, policy, wanted=wanted)
        other = _backward(self._value, value_saved, value.unsqueeze(-1), wanted=wanted)
        if down is not None and other is not None:
            _backward(self._trunk, trunk_saved, down.add_(other), wanted=False)


class _Slots(NamedTuple):
    """Where parameters and their gradients lie; see `Kernel`."""

    parameters: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    stacked: bool

    def vector(self, name: str | None) -> tuple[Tensor | None, Tensor | None]:
        """Returns a vector and its gradient as they fit all rows: [size], or [n, 1, size]."""
        if name is None:
            return None, None
        vector, gradient = self.parameters[name], self.gradients[name]
        return (vector.unsqueeze(1), gradient.unsqueeze(1)) if self.stacked else (vector, gradient)


class _Deviations:
    """A Gaussian's log standard deviations: outputs of the network, or a parameter; clamped."""

    def __init__(self, networks: Networks, slots: _Slots) -> None:
        self._bound = networks.log_std_bound
        self._parameter, self._gradient = slots.vector(networks.log_std)
        self._stacked = slots.stacked
        self._raw: Tensor | None = None

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns means and clamped log standard deviations, [.., rows, 2 size]."""
        if self._parameter is not None:
            means, self._raw = outputs, self._parameter
        elif self._bound is None:
            return outputs
        else:
            means, self._raw = outputs.chunk(2, dim=-1)
        clamped = self._raw
        if self._bound is not None:
            clamped = clamped.clamp(-self._bound, self._bound)
        return torch.cat([means, clamped.expand_as(means)], -1)

    def backward(self, gradient: Tensor) -> Tensor:
        """Returns the gradient by the network's outputs; writes that of the parameter."""
        if self._raw is None:
            return gradient
        by_mean, by_log_std = gradient.chunk(2, dim=-1)
        if self._gradient is not None:
            torch.sum(by_log_std, -2, keepdim=self._stacked, out=self._gradient)
            if self._bound is not None:
                self._gradient.mul_(self._raw.abs() <= self._bound)
            return by_mean
        assert self._bound is not None
        by_log_std.mul_(self._raw.abs() <= self._bound)
        return gradient


class _Dense:
    """One layer: views into the flat vectors, and the operations for its number of sets."""

    def __init__(self, layer: Layer, slots: _Slots) -> None:
        self.activation = layer.activation
        self.weight = slots.parameters[layer.weight]  # [.., out, in]
        self.transposed = self.weight.mT
        self.weight_gradient = slots.gradients[layer.weight]
        self.bias, self.bias_gradient = slots.vector(layer.bias)
        self.stacked = slots.stacked
        self.affine = torch.baddbmm if slots.stacked else torch.addmm
        self.product = torch.bmm if slots.stacked else torch.mm


def _forward(layers: Sequence[_Dense], inputs: Tensor) -> _Saved:
    saved = [inputs]
    for layer in layers:
        if layer.bias is None:
            output = layer.product(saved[-1], layer.transposed)
        else:
            output = layer.affine(layer.bias, saved[-1], layer.transposed)
        if layer.activation == "tanh":
            output.tanh_()
        elif layer.activation == "relu":
            output.relu_()
        saved.append(output)
    return saved


def _backward(
    layers: Sequence[_Dense], saved: _Saved, gradient: Tensor, *, wanted: bool
) -> Tensor | None:
    """Writes the gradients of a chain; returns that by its input, if it is wanted."""
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if layer.activation == "tanh":
            gradient = torch.ops.aten.tanh_backward(gradient, saved[index + 1])
        elif layer.activation == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, saved[index + 1], 0)
        layer.product(gradient.mT, saved[index], out=layer.weight_gradient)
        if layer.bias_gradient is not None:
            torch.sum(gradient, -2, keepdim=layer.stacked, out=layer.bias_gradient)
        if index or wanted:
            gradient = layer.product(gradient, layer.weight)
    return gradient if wanted else None
