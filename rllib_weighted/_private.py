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


_CONFIG = "ray.rllib.algorithms.algorithm_config:AlgorithmConfig"

NAMES: tuple[PrivateName, ...] = (
    # Driver: package, algorithm, config, validation, tuning
    PrivateName(
        "ray.tune.registry",
        "_global_registry",
        "names of environments and algorithms; `register_trainable` imports what it registers",
    ),
    PrivateName(
        "ray.rllib.env.single_agent_env_runner:SingleAgentEnvRunner",
        "_env_to_module",
        "the local env runner's connectors are the driver's own",
    ),
    PrivateName(
        "ray.rllib.env.single_agent_env_runner:SingleAgentEnvRunner",
        "_module_to_env",
        "likewise",
    ),
    PrivateName(
        "ray.rllib.algorithms.algorithm:Algorithm",
        "_run_one_evaluation",
        "`evaluate()` with the care for failed env runners around it, for the first round",
        ("parallel_train_future",),
    ),
    PrivateName(
        "ray.rllib.algorithms.algorithm:Algorithm",
        "_counters",
        "RLlib counts restored env runners there",
    ),
    PrivateName(
        "ray.tune.trainable.trainable:Trainable",
        "_storage",
        "where the trial's folder lies; no public access",
    ),
    PrivateName(
        "ray.tune.trainable.trainable:Trainable",
        "_trial_info",
        "`reset_config` starts over with it",
    ),
    PrivateName(
        _CONFIG,
        "_train_batch_size_per_learner",
        "the public property divides `train_batch_size` where it is not set",
    ),
    PrivateName(_CONFIG, "_torch_grad_scaler_class", "refused with per-worker parameters"),
    PrivateName(
        _CONFIG,
        "_dont_auto_sync_env_runner_states",
        "a round's request carries all state; RLlib's own broadcast may lag",
    ),
    PrivateName(_CONFIG, "_validate_config", "False turns problems into warnings"),
)


# Driver


def tune_registry(module: Any) -> Any:
    """Returns Tune's registry of names, given its module `ray.tune.registry`."""
    return module._global_registry


def connector_pipelines(algorithm: Any) -> tuple[Any, Any]:
    """Returns the driver's connector pipelines: the local env runner's, if there is one."""
    return (
        getattr(algorithm.env_runner, "_env_to_module", algorithm.env_to_module_connector),
        getattr(algorithm.env_runner, "_module_to_env", algorithm.module_to_env_connector),
    )


def batch_size_per_learner(config: Any) -> int | None:
    """Returns the setting `train_batch_size_per_learner`; None where it is not set."""
    size: int | None = config._train_batch_size_per_learner
    return size


def grad_scaler_class(config: Any) -> Any:
    """Returns the class of the gradient scaler of mixed precision; None without one."""
    return config._torch_grad_scaler_class
