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
)
