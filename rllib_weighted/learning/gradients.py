"""Each worker's own gradient: one batched backward pass where the module allows, else a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllib_weighted.core.modules import StackedForward, swapped_parameters, why_not_stacked
from rllib_weighted.learning.adam import flat_rows
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.parameters import Stacked
from rllib_weighted.learning.steps import Round, stacked_losses


@dataclass(frozen=True)
class GradientRows:
    """Gradients of n workers' losses, a row each.

    Args:
        losses: The losses, [n] each, detached.
        policy: [n, P], of the policy's part of the loss, entropy and KL included.
        value: [n, P], of the value function's part, with its coefficient; None: it is unknown, and
            `policy` is the gradient of the whole loss.
    """

    losses: WorkerLosses
    policy: Tensor
    value: Tensor | None

    @property
    def total(self) -> Tensor:
        """[n, P], of the whole loss."""
        return self.policy if self.value is None else self.policy + self.value


class WorkerGradients:
    """Gradients of single workers' losses, at the parameters as they are now.

    Args:
        round: The round. With parameters per worker, each worker's gradient is taken at its own.
    """

    def __init__(self, round: Round) -> None:
        self._round = round
        self._parameters = round.learner.per_worker
        self._trained = {n: p for n, p in round.module.named_parameters() if p.requires_grad}
        self._forward: StackedForward | None = None
        if round.learner.has_stock_loss(round.module_id) and why_not_stacked(round.module) is None:
            self._forward = StackedForward(round.module)

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(parameter.numel() for parameter in self._trained.values())

    def of(self, minibatch: Minibatch, *, in_parts: bool = False) -> GradientRows:
        """Returns the gradients of the minibatch's workers, in their order.

        Args:
            minibatch: The rows of one worker or more.
            in_parts: Whether policy and value part are wanted apart, where they are known.
        """
        workers = minibatch.workers
        if self._forward is None:
            found = [self._of_one(minibatch, worker, in_parts=in_parts) for worker in workers]
            values = [rows.value for rows in found if rows.value is not None]
            return GradientRows(
                WorkerLosses.join([rows.losses for rows in found]),
                torch.cat([rows.policy for rows in found]),
                torch.cat(values) if len(values) == len(found) else None,
            )
        leaves = self._leaves(workers)
        losses = stacked_losses(self._round, self._forward, minibatch, leaves)
        return self._rows(losses, leaves, in_parts=in_parts)

    def named(self, flat: Tensor) -> Stacked:
        """Returns the parts of a flat gradient, [P], by the names of their parameters."""
        sizes = [parameter.numel() for parameter in self._trained.values()]
        parts = torch.split(flat, sizes)
        named = zip(self._trained.items(), parts, strict=True)
        return {name: part.view_as(parameter) for (name, parameter), part in named}

    def _leaves(self, workers: Sequence[int]) -> Stacked:
        if self._parameters is not None:
            return self._parameters.leaves(workers)
        count = len(workers)
        return {
            name: parameter.detach().expand(count, *parameter.shape).requires_grad_()
            for name, parameter in self._trained.items()
        }

    def _of_one(self, minibatch: Minibatch, worker: int, *, in_parts: bool) -> GradientRows:
        round, leaves = self._round, self._leaves([worker])
        own = {name: leaf[0] for name, leaf in leaves.items()}
        with swapped_parameters(round.module, dict(round.module.named_parameters()) | own):
            losses = round.learner.worker_losses(round.module_id, round.batch, minibatch, [worker])
        return self._rows(losses, leaves, in_parts=in_parts)

    def _rows(self, losses: WorkerLosses, leaves: Stacked, *, in_parts: bool) -> GradientRows:
        policy, value = losses.total, None
        if in_parts and losses.value is not None and losses.value.requires_grad:
            value = self._round.settings.vf_loss_coeff * losses.value
            policy = losses.total - value
        by_value = None
        if value is not None:
            by_value = self._flat(value, leaves, retain_graph=True)
        return GradientRows(losses.detached(), self._flat(policy, leaves), by_value)

    def _flat(self, loss: Tensor, leaves: Stacked, *, retain_graph: bool = False) -> Tensor:
        found = torch.autograd.grad(
            loss.sum(),
            list(leaves.values()),
            retain_graph=retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([flat_rows(gradient) for gradient in found], dim=1)
