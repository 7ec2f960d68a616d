"""A round's steps in closed form, without autograd: which learners can take them, and how.

Parameters and gradients are flat; the gradients are written out, no graph is built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rllib_weighted._private import uses_torch_lr_schedulers
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.modules import (
    Networks,
    opaque_networks,
    read_networks,
    user_override,
    why_not_any,
    why_not_networks,
)
from rllib_weighted.learning.adam import FlatAdam
from rllib_weighted.learning.closed_form.arithmetic import (
    Arithmetic,
    PerWorkerArithmetic,
    SharedArithmetic,
)
from rllib_weighted.learning.closed_form.loss import PPOLoss, RowColumns
from rllib_weighted.learning.interfaces import RoundLearner, TrainedModule, on_cpu
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.metrics import log_gradient_norm
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.steps import Round, Steps, padding, positions

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
        "a learner on CPUs, or the only one and on a GPU",
        lambda s: on_cpu(s.learner) or s.learner.collectives.is_solo,
        "it is one of several learners on GPUs",
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
        "RLlib's default dense networks; see `NETWORKS`. On a GPU, with one set of parameters: "
        "RLlib's default networks of any layers",
        lambda s: why_not_networks(s.module) if _needs_layers(s.learner) else why_not_any(s.module),
    ),
)


def _needs_layers(learner: RoundLearner) -> bool:
    """Whether layers that are not known need autograd step by step.

    Of convolutions nearly all time is the layers' own: nothing is to be had on a CPU. On a GPU the
    whole step, autograd's passes too, is captured.
    """
    return on_cpu(learner) or learner.per_worker is not None


def known_networks(learner: RoundLearner, module_id: str) -> Networks:
    """Returns what closed-form steps need to know of a module; see `why_not_closed_form`."""
    module = TrainedModule(learner, module_id).module
    if why_not_networks(module) is None:
        return read_networks(module)
    return opaque_networks(module)


class ClosedFormSteps(Steps):
    """Steps that do the same as the autograd reference, without autograd.

    Where a loss or a gradient is not finite, the step is left to the reference, which finds out
    whose it is.

    Args:
        round: The round.
        reference: Autograd steps of the same round, for such steps and for the losses before the
            first.
        networks: What is known of the module.
        adam: The parameters and their optimizer.

    Attributes:
        rows: The rows of this learner's workers; None without any.
        last_norm: Norm of the last step's gradient; None where the reference has taken it, which
            logs it itself.
    """

    def __init__(self, round: Round, reference: Steps, networks: Networks, adam: FlatAdam) -> None:
        super().__init__(round)
        self._reference = reference
        self._adam = adam
        self._group = self._learner.get_optimizer(module_id=round.module_id).param_groups[0]
        self._arithmetic = make_arithmetic(round, networks, adam, make_loss(round, networks, adam))
        self.rows: RowColumns | None = None
        if self._own:
            self.rows = RowColumns.pack(
                round.batch.columns, networks=networks, use_kl_loss=self._settings.use_kl_loss
            )
        self._epoch: tuple[np.ndarray, RowColumns] | None = None
        self._layouts: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        self.last_norm: Tensor | None = None
        adam.load()

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        losses = self._take(minibatch) if self._workers else None
        if losses is not None:
            return losses
        self.last_norm = None
        self._adam.store()
        try:
            return self._reference.take(minibatch)
        finally:
            self._adam.load()

    def losses_of_round(self) -> WorkerLosses:
        """See `Steps.losses_of_round`."""
        return self._reference.losses_of_round()

    def finish(self) -> None:
        """See `Steps.finish`; also logs the shared gradient's norm, as RLlib does at every step."""
        self._adam.store()
        is_logged = self._settings.grad_clip and self._settings.grad_clip_by == "global_norm"
        if self.last_norm is not None and is_logged and not self._adam.is_stacked:
            norm = float(self.last_norm)
            log_gradient_norm(self._learner.metrics, self._round.module_id, norm)

    def _take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Takes a step; None, and nothing has changed, if something is not finite."""
        local, means = None, None
        if self._own:
            means, filled = self._layout(minibatch.sizes)
            rows = self._minibatch_rows(minibatch)
            rows = rows if filled is None else rows.take(filled)
            total, parts = self._arithmetic.losses(rows, means)
            local = WorkerLosses(total, *parts)
        losses = self._collectives.losses(self._own, local, self._workers)
        if not _is_finite(losses.total):
            return None
        signals, merged = self._merger.weigh(self._workers, losses)
        own = merged
        if len(self._own) < len(self._workers):
            own = merged.take(positions(self._own, self._workers))
        gradients, finite = self._arithmetic.gradients(means, own.weights, own.value_weights)
        if not _is_finite(finite):
            return None
        self.last_norm = finite
        self._adam.step(gradients, self._group)
        self._merger.record(self._workers, signals, merged, losses)
        return losses

    def _layout(self, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Returns the matrix of each worker's mean over its rows, and how rows are laid out.

        [n, rows], and the indices of rows that are given to the forward pass; None: all, in order.
        """
        if sizes not in self._layouts:
            self._layouts[sizes] = layout(sizes, self._adam)
        return self._layouts[sizes]

    def _minibatch_rows(self, minibatch: Minibatch) -> RowColumns:
        """Returns the columns of a minibatch; those of a whole epoch are gathered at once."""
        assert self.rows is not None
        if self._epoch is None or self._epoch[0] is not minibatch.order:
            order = torch.from_numpy(minibatch.order).to(self.rows.values.device)
            self._epoch = minibatch.order, self.rows.take(order)
        return self._epoch[1].cut(minibatch.start, minibatch.stop)


def make_loss(round: Round, networks: Networks, adam: FlatAdam) -> PPOLoss:
    """Returns PPO's loss with the coefficients of a round."""
    return PPOLoss(
        round.settings,
        networks,
        entropy_coeff=round.learner.entropy_coeff(round.module_id),
        kl_coeff=round.learner.kl_coeff(round.module_id),
        like=adam.parameters,
    )


def make_arithmetic(round: Round, networks: Networks, adam: FlatAdam, loss: PPOLoss) -> Arithmetic:
    """Returns the arithmetic for the parameters that an optimizer has."""
    kind = PerWorkerArithmetic if adam.is_stacked else SharedArithmetic
    add_up = round.learner.collectives.sum
    return kind(round.module, networks, adam, loss, round.settings, add_up)


def layout(sizes: tuple[int, ...], adam: FlatAdam) -> tuple[Tensor, Tensor | None]:
    """Returns how the rows of n workers are laid out for one pass.

    Args:
        sizes: Rows of each worker, which lie one after the other.
        adam: Its parameters say whether workers' rows need a rectangle.

    Returns:
        The matrix of each worker's mean, [n, rows]; and the indices of the rows to lay out, None:
        all as they are.
    """
    means = segment_mean_matrix(sizes, like=adam.parameters)
    index, real = padding(sizes)
    if not adam.is_stacked or real is None:
        return means, None
    # 0 at the entries that repeat a row to fill the rectangle.
    wide = means.new_zeros(len(sizes), index.size)
    wide[:, torch.from_numpy(real).to(wide.device)] = means
    return wide, torch.from_numpy(index.ravel()).to(wide.device)


def segment_mean_matrix(sizes: Sequence[int], *, like: Tensor) -> Tensor:
    """Returns the matrix that takes rows, worker after worker, to each worker's mean, [n, rows]."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    matrix = torch.zeros(len(sizes), len(owner), dtype=torch.float64)
    matrix[owner, torch.arange(len(owner))] = 1.0 / torch.tensor(sizes, dtype=torch.float64)[owner]
    return matrix.to(like)


def _is_finite(values: Tensor) -> bool:
    return math.isfinite(float(values.sum()))
