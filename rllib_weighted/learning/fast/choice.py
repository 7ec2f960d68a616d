"""Whether a learner's steps can be taken the fast way: nothing of a user's may be passed over."""

from __future__ import annotations

from typing import Any

import torch

from rllib_weighted.learning.fast.networks import Networks, UnknownNetworkError, read_networks
from rllib_weighted.learning.overrides import overrider

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


class SlowStepsError(Exception):
    """The fast way is no way for this learner; the message says why."""


def fast_networks(learner: Any, module_id: str) -> Networks:
    """Returns the layers of a module whose steps can be taken the fast way.

    All learners of a group come to the same answer: it follows from config and classes.

    Raises:
        SlowStepsError: Something in the config, the learner or the module needs the general way.
    """
    reason = _why_not(learner, module_id)
    if reason is not None:
        raise SlowStepsError(reason)
    try:
        return read_networks(learner.module[module_id].unwrapped())
    except UnknownNetworkError as error:
        raise SlowStepsError(str(error)) from None


def _why_not(learner: Any, module_id: str) -> str | None:
    config = learner.config.get_config_for_module(module_id)
    if not config.fast_learner:
        return "`fast_learner`=False"
    if not learner.has_stock_loss(module_id):
        return "the loss is a custom one, or the module a recurrent one"
    for hook in _HOOKS:
        if user := overrider(type(learner), hook):
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
