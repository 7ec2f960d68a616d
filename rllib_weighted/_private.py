"""Every private name of Ray, RLlib and gymnasium that this package reads or overrides.

RLlib has no public place for some of what merging needs. All of it stands here, once: what is read
of an object that is not ours has a function below, and every name, also of methods that our
subclasses override, has a row in `NAMES`. `tests/test_private.py` looks each of them up in the
installed versions. Elsewhere ruff's SLF001 refuses private names.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, NamedTuple


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


NAMES: tuple[PrivateName, ...] = (
    # cli and core
    PrivateName(
        "ray.tune.registry",
        "_global_registry",
        "Whether Tune knows a name; it has no public function that tells without raising.",
    ),
    *(
        PrivateName(
            "ray.tune.logger.csv:CSVLoggerCallback",
            name,
            "progress.csv of a resumed trial keeps its columns; can go once Tune's logger reads "
            "the header of a file that it continues.",
        )
        for name in ("_setup_trial", "_trial_continue", "_trial_csv", "_trial_files")
    ),
)


# cli and core


def tune_registry() -> Any:
    """Returns Tune's registry of trainables and environments (Ray does not annotate it)."""
    from ray.tune.registry import _global_registry

    return _global_registry
