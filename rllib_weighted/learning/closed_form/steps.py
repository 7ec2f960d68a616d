"""A round's steps in closed form, without autograd: which learners can take them, and how.

Parameters and gradients are flat; the gradients are written out, no graph is built.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_weighted._private import uses_torch_lr_schedulers
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.modules import Networks, user_override, why_not_networks
from rllib_weighted.learning.closed_form.kernel import Kernel
from rllib_weighted.learning.closed_form.loss import PPOLoss, RowColumns
from rllib_weighted.learning.interfaces import RoundLearner, TrainedModule
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.metrics import log_gradient_norm
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.parameters import FlatAdam
from rllib_weighted.learning.steps import Round, Steps, padding, positions
from rllib_weighted.merging import Merge

# What the autograd reference calls at every step, or what made the optimizer that it steps: no
# user's override of these may be left out.
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


def why_not_closed_form(learner: RoundLearner, module_id: str) -> str | None:
    """Returns why a learner's steps need autograd; None if they do not.

    All learners of a group come to the same answer: it follows from config and classes.
    """
    return first_reason(CLOSED_FORM, TrainedModule(learner, module_id))


def _has_plain_adam(subject: TrainedModule) -> bool:
    if subject.learner.per_worker is not None:
        return True
    ((_, optimizer), *others) = subject.learner.get_optimizers_for_module(subject.module_id)
    group, *more = optimizer.param_groups
    plain = {"weight_decay": 0, "amsgrad": False, "maximize": False}
    is_plain = type(optimizer) is torch.optim.Adam and not others and not more
    return is_plain and all(group[name] == value for name, value in plain.items())


def _steps_all_parameters(subject: TrainedModule) -> bool:
    if subject.learner.per_worker is not None:
        return True
    ((_, optimizer),) = subject.learner.get_optimizers_for_module(subject.module_id)
    stepped = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    return stepped == {id(parameter) for parameter in subject.module.parameters()}


CLOSED_FORM: tuple[Requirement[TrainedModule], ...] = (
    required("`fast_learner`=True", lambda s: s.settings.fast_learner, "`fast_learner`=False"),
    required(
        "PPO's own loss, and no recurrent module",
        lambda s: s.learner.has_stock_loss(s.module_id),
        "the loss is a custom one, or the module a recurrent one",
    ),
    Requirement(
        "no override of a learner's hook that a step calls",
        lambda s: user_override(type(s.learner), *_HOOKS),
    ),
    required("`use_critic`=True", lambda s: s.settings.use_critic, "`use_critic`=False"),
    required(
        "`log_gradients`=False", lambda s: not s.settings.log_gradients, "`log_gradients`=True"
    ),
    required("full precision", lambda s: s.learner.checks_gradients, "mixed precision"),
    required(
        "no torch learning-rate schedulers",
        lambda s: not uses_torch_lr_schedulers(s.learner.config),
        "torch learning-rate schedulers",
    ),
    required(
        "a learner on CPUs",
        lambda s: str(s.learner.device) == "cpu",
        "the learner is on a GPU",
    ),
    required(
        "one `torch.optim.Adam` without weight decay, AMSGrad and parameter groups",
        _has_plain_adam,
        "the optimizer is a custom one",
    ),
    required(
        "an optimizer of all parameters",
        _steps_all_parameters,
        "the optimizer steps some of the parameters only",
    ),
    Requirement(
        "RLlib's default dense networks; see `NETWORKS`", lambda s: why_not_networks(s.module)
    ),
)


class _ClosedForm(Steps):
    """Steps that do the same as the autograd reference, without autograd.

    Where a loss or a gradient is not finite, the step is left to the reference, which finds out
    whose it is.

    Args:
        round: The round.
        reference: Autograd steps of the same round, for such steps and for the losses before the
            first.
        networks: The module's layers.
        adam: The parameters and their optimizer.
    """

    def __init__(self, round: Round, reference: Steps, networks: Networks, adam: FlatAdam) -> None:
        super().__init__(round)
        self._reference = reference
        self._adam = adam
        self._group = self._learner.get_optimizer(module_id=round.module_id).param_groups[0]
        self._kernel = Kernel(
            networks,
            adam.views(adam.parameters),
            adam.views(adam.gradients),
            stacked=adam.is_stacked,
        )
        self._loss = PPOLoss(
            self._settings,
            networks,
            entropy_coeff=self._learner.entropy_coeff(round.module_id),
            kl_coeff=self._learner.kl_coeff(round.module_id),
            like=adam.parameters,
        )
        self._rows: RowColumns | None = None
        if self._own:
            self._rows = RowColumns.pack(
                round.batch.columns, networks=networks, use_kl_loss=self._settings.use_kl_loss
            )
        self._epoch: tuple[np.ndarray, RowColumns] | None = None
        self._means: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        adam.load()

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        losses = self._take(minibatch) if self._workers else None
        if losses is not None:
            return losses
        self._adam.store()
        try:
            return self._reference.take(minibatch)
        finally:
            self._adam.load()

    def losses_of_round(self) -> WorkerLosses:
        """See `Steps.losses_of_round`."""
        return self._reference.losses_of_round()

    def finish(self) -> None:
        """See `Steps.finish`."""
        self._adam.store()

    def _take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Takes a step; None, and nothing has changed, if something is not finite."""
        local, means = None, None
        if self._own:
            means, filled = self._means_of(minibatch.sizes)
            rows = self._rows_of(minibatch)
            rows = rows if filled is None else rows.take(filled)
            outputs, values = self._kernel.forward(self._by_set(rows[Columns.OBS]))
            parts = self._loss.forward(rows, self._by_row(outputs), self._by_row(values))
            own_parts = parts @ means.T  # [5, n]
            local = WorkerLosses(self._loss.mix @ own_parts, *own_parts)
        losses = self._collectives.losses(self._own, local, self._workers)
        if not _is_finite(losses.total):
            return None
        signals, merged = self._merger.weigh(self._workers, losses)
        own = merged
        if len(self._own) < len(self._workers):
            own = merged.take(positions(self._own, self._workers))
        if not self._step(means, own):
            return None
        self._merger.record(self._workers, signals, merged, losses)
        return losses

    @abc.abstractmethod
    def _step(self, means: Tensor | None, merged: Merge) -> bool:
        """Takes a step with the gradients of the last forward pass.

        Args:
            means: See `_means_of`; None without own workers.
            merged: The weights of this learner's workers, [n].

        Returns:
            Whether it was taken; if not, nothing has changed.
        """

    def _by_set(self, rows: Tensor) -> Tensor:
        """[rows, ...] as the kernel takes them: by worker, if each has its own parameters."""
        return rows.view(len(self._own), -1, *rows.shape[1:]) if self._adam.is_stacked else rows

    def _by_row(self, outputs: Tensor) -> Tensor:
        """The kernel's outputs as [rows, ...]."""
        return outputs.flatten(0, 1) if self._adam.is_stacked else outputs

    def _means_of(self, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Returns the matrix of each worker's mean over its rows, and how rows are laid out.

        [n, rows], and the indices of rows that are given to the forward pass; None: all, in order.
        """
        if sizes not in self._means:
            means, filled = segment_mean_matrix(sizes, like=self._adam.parameters), None
            index, real = padding(sizes)
            if self._adam.is_stacked and real is not None:
                # 0 at the entries that repeat a row to fill the rectangle.
                wide = means.new_zeros(len(sizes), index.size)
                wide[:, torch.from_numpy(real)] = means
                means, filled = wide, torch.from_numpy(index.ravel())
            self._means[sizes] = means, filled
        return self._means[sizes]

    def _rows_of(self, minibatch: Minibatch) -> RowColumns:
        """Returns the columns of a minibatch; those of a whole epoch are gathered at once."""
        assert self._rows is not None
        if self._epoch is None or self._epoch[0] is not minibatch.order:
            self._epoch = minibatch.order, self._rows.take(torch.from_numpy(minibatch.order))
        return self._epoch[1].cut(minibatch.start, minibatch.stop)

    def _clip(self, gradients: Tensor) -> Tensor:
        clip, by = self._settings.grad_clip, self._settings.grad_clip_by
        return self._adam.clip(gradients, clip=clip, by=by)


class ClosedFormSteps(_ClosedForm):
    """Steps of one parameter set; see `SharedSteps`."""

    _last_norm: Tensor | None = None

    def finish(self) -> None:
        """Also logs the gradient's norm, as RLlib does at every step."""
        super().finish()
        is_logged = self._settings.grad_clip and self._settings.grad_clip_by == "global_norm"
        if self._last_norm is not None and is_logged:
            norm = float(self._last_norm)
            log_gradient_norm(self._learner.metrics, self._round.module_id, norm)

    def _take(self, minibatch: Minibatch) -> WorkerLosses | None:
        self._last_norm = None  # Where the reference takes a step, it logs the norm itself.
        return super()._take(minibatch)

    def _step(self, means: Tensor | None, merged: Merge) -> bool:
        if means is None:
            self._adam.gradients.zero_()
        else:
            of_value = merged.value_weights
            value_factors = None if of_value is None else of_value.to(means) @ means
            factors = merged.weights.to(means) @ means
            self._kernel.backward(*self._loss.backward(factors, value_factors))
        gradients = self._collectives.sum(self._adam.gradients)
        norms = self._clip(gradients)
        if not _is_finite(norms):
            return False
        self._last_norm = norms
        self._adam.step(gradients, self._group)
        return True


class ClosedFormPerWorkerSteps(_ClosedForm):
    """Steps of every worker's own parameters; see `PerWorkerSteps`."""

    def _step(self, means: Tensor | None, merged: Merge) -> bool:
        own = self._adam.gradients
        if means is not None:
            by_outputs, by_values = self._loss.backward(means.sum(0))
            self._kernel.backward(self._by_set(by_outputs), self._by_set(by_values))
        total = self._collectives.sum(merged.weights.to(own) @ own)
        if not _is_finite(total):  # So it is if any worker's gradient is not.
            return False
        own.add_(total)
        self._clip(own)
        self._adam.step(own, self._group)
        return True


def segment_mean_matrix(sizes: Sequence[int], *, like: Tensor) -> Tensor:
    """Returns the matrix that takes rows, worker after worker, to each worker's mean, [n, rows]."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    matrix = torch.zeros(len(sizes), len(owner), dtype=torch.float64)
    matrix[owner, torch.arange(len(owner))] = 1.0 / torch.tensor(sizes, dtype=torch.float64)[owner]
    return matrix.to(like)


def _is_finite(values: Tensor) -> bool:
    return math.isfinite(float(values.sum()))
