"""Every private name of Ray, RLlib and gymnasium that this package reads or overrides.

RLlib has no public place for some of what merging needs. All of it stands here, once: what is read
of an object that is not ours has a function below, and every name, also of methods that our
subclasses override, has a row in `NAMES`. `tests/test_private.py` looks each of them up in the
installed versions. Elsewhere ruff's SLF001 refuses private names.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class PrivateName(NamedTuple):
    """A private name of another package.

    Attributes:
        owner: The class or module that has it: `module:Class`, or `module`.
        name: The attribute, method or function.
        reason: What it is needed for, and when it can go.
        parameters: Of a method that is called or overridden, its parameters without `self`.
    """

    owner: str
    name: str
    reason: str
    parameters: tuple[str, ...] | None = None

    def problem(self) -> str | None:
        """Returns what upstream has changed; None if the name is as it was."""
        module, _, class_name = self.owner.partition(":")
        owner: Any = importlib.import_module(module)
        if class_name:
            owner = getattr(owner, class_name, None)
            if owner is None:
                return f"{self.owner} is gone"
        found = getattr(owner, self.name, None)
        if found is None:
            # Attributes of instances are not the class's: look where they are set.
            classes = owner.__mro__[:-1] if isinstance(owner, type) else [owner]
            if not any(f"self.{self.name}" in inspect.getsource(cls) for cls in classes):
                return f"{self.owner} has no `{self.name}` any more"
        if self.parameters is not None and callable(found):
            own = tuple(name for name in inspect.signature(found).parameters if name != "self")
            if own != self.parameters:
                return f"{self.owner}.{self.name} takes {own}, not {self.parameters}"
        return None


# core/modules and learning


def module_parameters(module: torch.nn.Module) -> dict[str, Any]:
    """Own parameters of a module, not those of its children; to be written into."""
    return module._parameters


def has_forward_hooks(module: torch.nn.Module) -> bool:
    """Whether something of a user's runs before or after a module's `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def learner_connectors(learner: Any) -> list[Any]:
    """The pieces of a learner's connector pipeline."""
    return list(learner._learner_connector.connectors)


def uses_torch_lr_schedulers(config: Any) -> bool:
    """Whether torch's learning-rate schedulers step after every step."""
    return config._torch_lr_scheduler_classes is not None


_LEARNER = "ray.rllib.core.learner.learner:Learner"
_TORCH_LEARNER = "ray.rllib.core.learner.torch.torch_learner:TorchLearner"
_LEARNER_GROUP = "ray.rllib.core.learner.learner_group:LearnerGroup"
_TORCH_MODULE = "torch.nn.modules.module:Module"

NAMES: tuple[PrivateName, ...] = (
    PrivateName(
        _TORCH_MODULE,
        "_parameters",
        "computing with other tensors in place of parameters: `torch.func.functional_call` writes "
        "into it as well, but only for `forward`, which RLlib does not call",
    ),
    PrivateName(_TORCH_MODULE, "_forward_hooks", "a module with hooks is called, not read"),
    PrivateName(_TORCH_MODULE, "_forward_pre_hooks", "a module with hooks is called, not read"),
    PrivateName(
        _LEARNER, "_learner_connector", "GAE per worker, and whether columns can stand in for it"
    ),
    PrivateName(_LEARNER, "_is_built", "`build` of a subclass may be called twice"),
    PrivateName(_LEARNER, "_check_is_built", "`update` is overridden as a whole", ("error",)),
    PrivateName(_LEARNER, "_device", "where columns go"),
    PrivateName(_LEARNER, "_params", "one all-reduce over the gradients of all parameters"),
    PrivateName(_LEARNER, "_weights_seq_no", "it counts the rounds; an older state must load too"),
    PrivateName(_LEARNER, "_optimizer_lr_schedules", "a mutated learning rate holds at once"),
    PrivateName(
        _TORCH_LEARNER,
        "_set_optimizer_lr",
        "a mutated learning rate holds at once",
        ("optimizer", "lr"),
    ),
    PrivateName(_TORCH_LEARNER, "_lr_schedulers", "torch's schedulers keep their own rate"),
    PrivateName(_TORCH_LEARNER, "_grad_scalers", "mixed precision expects infinite gradients"),
    PrivateName(
        _TORCH_LEARNER,
        "_make_modules_ddp_if_necessary",
        "overridden: learners sum weighted gradients once per step, instead of DDP's averages; can "
        "go when RLlib has a setting for it",
        (),
    ),
    PrivateName(
        "ray.rllib.algorithms.ppo.torch.ppo_torch_learner:PPOTorchLearner",
        "_update_module_kl_coeff",
        "overridden: a round without a step has no KL divergence",
        ("module_id", "config", "kl_loss"),
    ),
    PrivateName(
        "ray.rllib.algorithms.algorithm_config:AlgorithmConfig",
        "_torch_lr_scheduler_classes",
        "steps in closed form do not call them",
    ),
    PrivateName(_LEARNER_GROUP, "_learner", "the local learner: its update's result"),
    PrivateName(
        _LEARNER_GROUP, "_workers", "remote learners: RLlib waits half an hour for a dead one"
    ),
    PrivateName(_LEARNER_GROUP, "_module_spec", "what the learners were built with"),
)
