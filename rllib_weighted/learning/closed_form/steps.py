"""The fast way through a round's steps: flat parameters, gradients written out, no graph."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_weighted.core.modules import (
    Networks,
    UnknownNetworkError,
    overriding_class,
    read_networks,
)
from rllib_weighted.learning.closed_form.kernel import Kernel
from rllib_weighted.learning.closed_form.loss import PPOLoss, RowColumns
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.metrics import log_gradient_norm
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.parameters import FlatAdam, RowsAdam, SharedAdam, step_counts
from rllib_weighted.learning.steps import Steps, padding, positions

# Whether a learner's steps can be taken the fast way: nothing of a user's may be passed over


# What the general way calls at every step, or what made the optimizer that it steps.
_HOOKS = (
    "apply_gradients",
    "compute_gradients",
    "configure_optimizers",
    "configure_optimizers_for_module",
    "loss_gradients",
    "losses_of_rows",
    "postprocess_gradients",
    "postprocess_gradients_for_module",
    "worker_losses",
)


class ClosedFormUnsupported(Exception):
    """The fast way is no way for this learner; the message says why."""


def closed_form_networks(learner: Any, module_id: str) -> Networks:
    """Returns the layers of a module whose steps can be taken the fast way.

    All learners of a group come to the same answer: it follows from config and classes.

    Raises:
        ClosedFormUnsupported: Config, learner or module needs the autograd reference.
    """
    reason = _why_not(learner, module_id)
    if reason is not None:
        raise ClosedFormUnsupported(reason)
    try:
        return read_networks(learner.module[module_id].unwrapped())
    except UnknownNetworkError as error:
        raise ClosedFormUnsupported(str(error)) from None


def _why_not(learner: Any, module_id: str) -> str | None:
    config = learner.config.get_config_for_module(module_id)
    if not config.fast_learner:
        return "`fast_learner`=False"
    if not learner.has_stock_loss(module_id):
        return "the loss is a custom one, or the module a recurrent one"
    for hook in _HOOKS:
        if user := overriding_class(type(learner), hook):
            return f"{user} overrides `{hook}`"
    if not config.use_critic:
        return "`use_critic`=False"
    if config.log_gradients:
        return "`log_gradients`=True"
    if not learner.checks_gradients:
        return "mixed precision"
    if learner.config._torch_lr_scheduler_classes is not None:
        return "torch learning-rate schedulers"
    if str(learner.device) != "cpu":
        return "the learner is on a GPU"
    return None if learner.actors is not None else _optimizer(learner, module_id)


def _optimizer(learner: Any, module_id: str) -> str | None:
    ((_, optimizer), *others) = learner.get_optimizers_for_module(module_id)
    plain = {"weight_decay": 0, "amsgrad": False, "maximize": False}
    groups = optimizer.param_groups
    is_plain = type(optimizer) is torch.optim.Adam and len(groups) == 1 and not others
    if not is_plain or any(groups[0][name] != value for name, value in plain.items()):
        return "the optimizer is a custom one"
    if {*map(id, groups[0]["params"])} != {*map(id, learner.module[module_id].parameters())}:
        return "the optimizer steps some of the parameters only"
    return None


class FastSteps(Steps):
    """Steps that do what others do, without autograd.

    Where a loss or a gradient is not finite, the step is left to `general`, which finds out whose
    it is; so nothing has to be looked for in the others.

    Args:
        general: Steps of the same round, for such steps and for the losses before the first.
        networks: The module's layers.
    """

    def __init__(self, learner: Any, *, general: Steps, networks: Networks, **kwargs: Any) -> None:
        super().__init__(learner, **kwargs)
        self._general = general
        self._own = [worker for worker in self._workers if worker in self._batch.rows]
        config = learner.config.get_config_for_module(self._module_id)
        self._clip: dict[str, Any] = {"clip": config.grad_clip, "by": config.grad_clip_by}
        self._group = learner.get_optimizer(module_id=self._module_id).param_groups[0]
        self._adam = self._make_adam()
        self._kernel = Kernel(
            networks,
            self._adam.views(self._adam.parameters, stacked=self._is_stacked),
            self._adam.views(self._adam.gradients, stacked=self._is_stacked),
            stacked=self._is_stacked,
        )
        self._loss = PPOLoss(
            config,
            networks,
            entropy_coeff=learner.entropy_coeff(self._module_id),
            kl_coeff=learner.kl_coeff(self._module_id),
            like=self._adam.parameters,
        )
        self._rows: RowColumns | None = None
        if self._own:
            self._rows = RowColumns.pack(
                self._batch.columns, networks=networks, use_kl_loss=config.use_kl_loss
            )
        self._epoch: tuple[np.ndarray, RowColumns] | None = None
        self._means: dict[tuple[int, ...], Any] = {}
        self._adam.load()

    @classmethod
    def fits(cls, learner: Any, module_id: str) -> bool:
        """Whether the optimizer's state is one that such steps can go on from."""
        return True

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        if self._workers:
            losses = self._take(minibatch)
            if losses is not None:
                return losses
        self._adam.store()
        try:
            return self._general.take(minibatch)
        finally:
            self._adam.load()

    def losses_of_round(self) -> WorkerLosses:
        """See `Steps.losses_of_round`."""
        return self._general.losses_of_round()

    def finish(self) -> None:
        """See `Steps.finish`."""
        self._adam.store()

    @property
    @abc.abstractmethod
    def _is_stacked(self) -> bool:
        """Whether every worker has parameters of its own."""

    @abc.abstractmethod
    def _make_adam(self) -> FlatAdam:
        """Returns the parameters and their optimizer."""

    @abc.abstractmethod
    def _take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Takes a step; None, and nothing has changed, if something is not finite."""

    def _rows_of(self, minibatch: Minibatch) -> RowColumns:
        """Returns the columns of a minibatch; those of a whole epoch are gathered at once."""
        assert self._rows is not None
        if self._epoch is None or self._epoch[0] is not minibatch.order:
            self._epoch = minibatch.order, self._rows.take(torch.from_numpy(minibatch.order))
        return self._epoch[1].cut(minibatch.start, minibatch.stop)

    def _own_of(self, weights: Tensor) -> Tensor:
        """Returns the weights of this learner's workers."""
        if len(self._own) == len(self._workers):
            return weights
        return weights[positions(self._own, self._workers)]

    def _losses(self, own_means: Tensor, parts: Tensor) -> WorkerLosses:
        """Returns the losses of all workers, given the parts of this learner's rows."""
        means = parts @ own_means.T  # [5, n]
        policy, value, unclipped, entropy, kl = means.unbind()
        local = WorkerLosses(self._loss.mix @ means, policy, value, unclipped, entropy, kl)
        if self._exchange.is_solo:
            return local
        return self._of_all(self._own, local, self._workers)


class ClosedFormSteps(FastSteps):
    """Steps of one parameter set; see `SharedSteps`."""

    _last_norm: Tensor | None = None

    @classmethod
    def fits(cls, learner: Any, module_id: str) -> bool:
        """Whether all parameters have taken the same steps; a restored state may be otherwise."""
        module = learner.module[module_id].unwrapped()
        optimizer = learner.get_optimizer(module_id=module_id)
        return len(step_counts(module.parameters(), optimizer)) == 1

    @property
    def _is_stacked(self) -> bool:
        return False

    def _make_adam(self) -> FlatAdam:
        module = self._learner.module[self._module_id].unwrapped()
        optimizer = self._learner.get_optimizer(module_id=self._module_id)
        return SharedAdam(dict(module.named_parameters()), optimizer)

    def _take(self, minibatch: Minibatch) -> WorkerLosses | None:
        self._last_norm = None  # Where the general way takes a step, it logs the norm itself.
        means = None
        if self._own:
            means = self._means_of(minibatch.sizes)
            rows = self._rows_of(minibatch)
            outputs, values = self._kernel.forward(rows[Columns.OBS])
            parts = self._loss.forward(rows, outputs, values)
            losses = self._losses(means, parts)
        else:
            losses = self._of_all([], None, self._workers)
        if not _is_finite(losses.total):
            return None
        signals, merged = self._merger.weigh(self._workers, losses)
        if means is not None:
            factors = self._own_of(merged.weights).to(means) @ means
            self._kernel.backward(*self._loss.backward(factors))
        else:
            self._adam.gradients.zero_()
        gradients = self._exchange.sum(self._adam.gradients)
        norms = self._adam.clip(gradients, **self._clip)
        if not _is_finite(norms):
            return None
        self._last_norm = norms
        self._adam.step(gradients, self._group)
        self._merger.record(self._workers, signals, merged, losses)
        return losses

    def finish(self) -> None:
        """Also logs the gradient's norm, as RLlib does at every step."""
        super().finish()
        if self._last_norm is not None and self._clip["by"] == "global_norm" and self._clip["clip"]:
            log_gradient_norm(self._learner.metrics, self._module_id, float(self._last_norm))

    def _means_of(self, sizes: tuple[int, ...]) -> Tensor:
        """Returns the matrix that makes each worker's mean of its rows, [n, rows]."""
        if sizes not in self._means:
            self._means[sizes] = segment_mean_matrix(sizes, like=self._adam.parameters)
        means: Tensor = self._means[sizes]
        return means


class ClosedFormPerWorkerSteps(FastSteps):
    """Steps of every worker's own parameters; see `PerWorkerSteps`."""

    @property
    def _is_stacked(self) -> bool:
        return True

    def _make_adam(self) -> FlatAdam:
        actors = self._learner.actors
        return RowsAdam(actors.stacks, actors.optimizer, actors.rows_of(self._own))

    def _take(self, minibatch: Minibatch) -> WorkerLosses | None:
        means = None
        if self._own:
            means, padded = self._means_of(minibatch.sizes)
            rows = self._rows_of(minibatch)
            rows = rows if padded is None else rows.take(padded)
            outputs, values = self._kernel.forward(self._by_worker(rows[Columns.OBS]))
            parts = self._loss.forward(rows, outputs.flatten(0, 1), values.flatten())
            losses = self._losses(means, parts)
        else:
            losses = self._of_all([], None, self._workers)
        if not _is_finite(losses.total):
            return None
        signals, merged = self._merger.weigh(self._workers, losses)
        own = self._adam.gradients
        if means is not None:
            by_outputs, by_values = self._loss.backward(means.sum(0))
            self._kernel.backward(self._by_worker(by_outputs), self._by_worker(by_values))
        weights = self._own_of(merged.weights).to(own)
        shared = self._exchange.sum(weights @ own)
        if not _is_finite(shared):  # So it is if any worker's gradient is not.
            return None
        moved = own + shared
        self._adam.clip(moved, **self._clip)
        self._adam.step(moved, self._group)
        self._merger.record(self._workers, signals, merged, losses)
        return losses

    def _by_worker(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (len(self._own), -1))

    def _means_of(self, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Returns the matrix of means over a rectangle of rows, and the rows that fill it.

        [n, n B] with B the largest size, 0 at entries that repeat a row to fill the rectangle; and
        the indices [n B] of rows that are one after the other, None if they fill it by themselves.
        """
        if sizes not in self._means:
            means = segment_mean_matrix(sizes, like=self._adam.parameters)
            index, real = padding(sizes)
            filled = None
            if real is not None:
                filled = torch.from_numpy(index.ravel())
                wide = means.new_zeros(len(sizes), index.size)
                wide[:, torch.from_numpy(real)] = means
                means = wide
            self._means[sizes] = means, filled
        return self._means[sizes]


def segment_mean_matrix(sizes: Sequence[int], *, like: Tensor) -> Tensor:
    """Returns the matrix that takes rows, worker after worker, to each worker's mean, [n, rows]."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    matrix = torch.zeros(len(sizes), len(owner), dtype=torch.float64)
    matrix[owner, torch.arange(len(owner))] = 1.0 / torch.tensor(sizes, dtype=torch.float64)[owner]
    return matrix.to(like)


def _is_finite(values: Tensor) -> bool:
    return math.isfinite(float(values.sum()))
