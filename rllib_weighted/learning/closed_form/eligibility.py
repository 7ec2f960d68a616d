"""Which learners can take their steps without autograd: no user's override may be left out."""

from __future__ import annotations

import torch

from rllib_weighted._private import uses_torch_lr_schedulers
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.modules import overriding_class, why_not_networks
from rllib_weighted.learning.interfaces import RoundLearner, TrainedModule

# What the autograd reference calls at every step, or what made the optimizer that it steps.
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


def _overridden_hook(subject: TrainedModule) -> str | None:
    for hook in _HOOKS:
        if user := overriding_class(type(subject.learner), hook):
            return f"{user} overrides `{hook}`"
    return None


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
    Requirement("no override of a learner's hook that a step calls", _overridden_hook),
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
