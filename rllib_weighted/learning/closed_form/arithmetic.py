"""Losses and merged gradients of one optimizer step, without a decision about them.

Nothing here waits for the device: the same lines run one by one, or as a captured graph.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_weighted.core.modules import Networks, ParameterPlaces
from rllib_weighted.learning.adam import FlatAdam
from rllib_weighted.learning.closed_form.kernel import Kernel
from rllib_weighted.learning.closed_form.loss import PPOLoss, RowColumns
from rllib_weighted.learning.interfaces import ModuleSettings


class Passes(Protocol):
    """Forward and backward pass of a policy and a value function; see `Kernel`."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns inputs of the action distributions, and values."""

    def backward(self, policy: Tensor, value: Tensor) -> None:
        """Writes the parameters' gradients, from those by the two outputs."""


class ModulePasses:
    """The passes of a module whose layers are not known, by autograd.

    Args:
        module: The module, unwrapped.
        parameters: Name -> tensor of [...] to compute with in place of the module's own.
        gradients: Name -> where to write that parameter's gradient, same shapes.
    """

    def __init__(
        self,
        module: Any,  # An RLModule: RLlib finds its methods at run time.
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
    ) -> None:
        self._module = module
        self._places = ParameterPlaces(module)
        self._leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        self._gradients = gradients
        self._outputs: tuple[Tensor, Tensor] | None = None

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """See `Passes`."""
        batch = {Columns.OBS: obs}
        with torch.enable_grad(), self._places.swapped(self._leaves):
            outputs = self._module.forward_train(batch)
            values = self._module.compute_values(batch, embeddings=outputs.get(Columns.EMBEDDINGS))
        self._outputs = outputs[Columns.ACTION_DIST_INPUTS], values
        return self._outputs[0].detach(), values.detach()

    def backward(self, policy: Tensor, value: Tensor) -> None:
        """See `Passes`."""
        assert self._outputs is not None
        leaves = list(self._leaves.values())
        found = torch.autograd.grad(self._outputs, leaves, (policy, value), allow_unused=True)
        self._outputs = None  # And with it the graph's memory.
        for name, gradient in zip(self._leaves, found, strict=True):
            if gradient is None:
                self._gradients[name].zero_()
            else:
                self._gradients[name].copy_(gradient)


class Arithmetic(abc.ABC):
    """What a step computes, for some workers of a learner; see its two kinds below.

    Args:
        module: The module, unwrapped.
        networks: What is known of it.
        adam: The parameters, and room for their gradients.
        loss: PPO's loss.
        settings: The module's settings.
        add_up: Adds a tensor up over all learners.
    """

    def __init__(
        self,
        module: Any,  # An RLModule: RLlib finds its methods at run time.
        networks: Networks,
        adam: FlatAdam,
        loss: PPOLoss,
        settings: ModuleSettings,
        add_up: Callable[[Tensor], Tensor],
    ) -> None:
        parameters, gradients = adam.views(adam.parameters), adam.views(adam.gradients)
        self._passes: Passes
        if networks.is_dense:
            self._passes = Kernel(networks, parameters, gradients, stacked=adam.is_stacked)
        else:
            self._passes = ModulePasses(module, parameters, gradients)
        self._adam, self._loss = adam, loss
        self._settings = settings
        self._add_up = add_up

    def losses(self, rows: RowColumns, means: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each worker's total loss, [n], and its five parts, [5, n].

        Args:
            rows: Rows of all workers, worker after worker.
            means: [n, rows]: takes rows to each worker's mean.
        """
        outputs, values = self._passes.forward(self._by_set(rows[Columns.OBS], len(means)))
        parts = self._loss.forward(rows, self._by_row(outputs), self._by_row(values)) @ means.T
        return self._loss.mix @ parts, parts

    @abc.abstractmethod
    def gradients(
        self, means: Tensor | None, weights: Tensor, value_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Merges the gradients after the last `losses`, and clips them.

        Args:
            means: As given there; None: this learner has no worker.
            weights: [n].
            value_weights: [n], of the value function's part of the loss; None: the same.

        Returns:
            [sets, size]; and a tensor that is finite if all gradients are: before clipping, the
            norm of the shared one, [1], or what all workers' own ones have in common, [size].
        """

    def _clip(self, gradients: Tensor) -> Tensor:
        clip, by = self._settings.grad_clip, self._settings.grad_clip_by
        return self._adam.clip(gradients, clip=clip, by=by)

    def _by_set(self, rows: Tensor, num_workers: int) -> Tensor:
        """[rows, ...] as the passes take them: by worker, if each has its own parameters."""
        return rows.view(num_workers, -1, *rows.shape[1:]) if self._adam.is_stacked else rows

    def _by_row(self, outputs: Tensor) -> Tensor:
        """The outputs of the passes as [rows, ...]."""
        return outputs.flatten(0, 1) if self._adam.is_stacked else outputs


class SharedArithmetic(Arithmetic):
    """Of one parameter set: the weighted sum of the workers' gradients."""

    def gradients(
        self, means: Tensor | None, weights: Tensor, value_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Arithmetic.gradients`."""
        if means is None:
            self._adam.gradients.zero_()
        else:
            of_value = None if value_weights is None else value_weights.to(means) @ means
            self._passes.backward(*self._loss.backward(weights.to(means) @ means, of_value))
        gradients = self._add_up(self._adam.gradients)
        return gradients, self._clip(gradients)


class PerWorkerArithmetic(Arithmetic):
    """Of every worker's own parameters: its gradient plus the weighted sum of all."""

    def gradients(
        self, means: Tensor | None, weights: Tensor, value_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Arithmetic.gradients`."""
        own = self._adam.gradients
        if means is not None:
            by_rows = self._loss.backward(means.sum(0))
            self._passes.backward(*(self._by_set(rows, len(means)) for rows in by_rows))
        total = self._add_up(weights.to(own) @ own)
        own.add_(total)
        self._clip(own)
        return own, total
