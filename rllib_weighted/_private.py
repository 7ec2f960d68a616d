"""Every private name of Ray, RLlib and gymnasium that this package reads or overrides.

RLlib has no public place for some of what merging needs. All of it stands here, once: what is read
of an object that is not ours has a function below, and every name, also of methods that our
subclasses override, has a row in `NAMES`. `tests/test_private.py` looks each of them up in the
installed versions. Elsewhere ruff's SLF001 refuses private names.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    from rllib_weighted.core.rollouts import EpisodeStats


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


_ENV_RUNNER = "ray.rllib.env.single_agent_env_runner:SingleAgentEnvRunner"
_CONFIG = "ray.rllib.algorithms.algorithm_config:AlgorithmConfig"
_FILTER = "ray.rllib.connectors.env_to_module.mean_std_filter:MeanStdFilter"

NAMES: tuple[PrivateName, ...] = (
    # sampling, fault_tolerance
    PrivateName(
        _ENV_RUNNER,
        "_sample",
        "overridden: the fast path, and whole episodes per sub-environment",
        ("num_timesteps", "num_episodes", "explore", "random_actions", "force_reset"),
    ),
    PrivateName(
        _ENV_RUNNER,
        "_new_episode",
        "overridden: episodes carry their worker",
        ("env_index", "episodes"),
    ),
    PrivateName(
        _ENV_RUNNER,
        "_try_env_reset",
        "overridden: counted seeds instead of RLlib's overlapping ones",
        ("seed", "options"),
    ),
    PrivateName(_ENV_RUNNER, "_callbacks", "`make_env` calls `on_environment_created`"),
    PrivateName(_ENV_RUNNER, "_device", "the fast path computes there"),
    PrivateName(_ENV_RUNNER, "_env_to_module", "observation filters and the module's space"),
    PrivateName(_ENV_RUNNER, "_needs_initial_reset", "the fast path and RLlib's loop take turns"),
    PrivateName(_ENV_RUNNER, "_ongoing_episodes", "uncut episodes go on in the next call"),
    PrivateName(_ENV_RUNNER, "_weights_seq_no", "the version of the weights that act"),
    PrivateName(_ENV_RUNNER, "_done_episodes_for_metrics", "metrics of the fast path"),
    PrivateName(_ENV_RUNNER, "_ongoing_episodes_for_metrics", "metrics of the fast path"),
    PrivateName(
        _ENV_RUNNER,
        "_increase_sampled_metrics",
        "metrics of the fast path",
        ("num_steps", "num_episodes_completed"),
    ),
    PrivateName(_CONFIG, "_env_to_module_connector", "whether the user has connectors there"),
    PrivateName(_CONFIG, "_module_to_env_connector", "whether the user has connectors there"),
    PrivateName(_FILTER, "_filters", "the fast path filters observations without episodes"),
    PrivateName(_FILTER, "_init_new_filters", "likewise", ()),
    PrivateName(_FILTER, "_update_stats", "likewise"),
    PrivateName(
        "ray.rllib.core.rl_module.torch.torch_rl_module:TorchRLModule",
        "_forward_exploration",
        "on the instance of a compiled module, whose layers must not be called one by one",
        ("batch", "kwargs"),
    ),
    PrivateName(
        "gymnasium.vector:SyncVectorEnv",
        "_autoreset_envs",
        "the fast path steps its sub-environments without it",
    ),
    PrivateName(
        "ray.rllib.env.env_runner_group:EnvRunnerGroup",
        "_worker_manager",
        "asking lost env runners without waiting for them, and killing those that hang",
    ),
)

# sampling

NUM_DEFAULT_CONNECTORS = 5
"""How many connectors RLlib appends to a single-agent env-to-module pipeline."""


def custom_env_to_module(config: AlgorithmConfig) -> bool:
    """Whether the user has set env-to-module connectors."""
    return config._env_to_module_connector is not None


def custom_module_to_env(config: AlgorithmConfig) -> bool:
    """Whether the user has set module-to-env connectors."""
    return config._module_to_env_connector is not None


# An env runner is `Any` here: what is read of it is in no Protocol, because it is private.


def env_to_module(env_runner: Any) -> ConnectorPipelineV2:
    """Returns an env runner's env-to-module pipeline."""
    return env_runner._env_to_module


def device(env_runner: Any) -> Any:
    """Returns the torch device on which an env runner's module computes; None is the CPU."""
    return env_runner._device


def weights_version(env_runner: Any) -> int:
    """Returns the version of the weights that an env runner acts with."""
    return int(env_runner._weights_seq_no)


def log_episodes(env_runner: Any, chunks: Sequence[EpisodeStats]) -> None:
    """Hands sampled chunks to an env runner's `get_metrics`, as RLlib's own loop does."""
    for chunk in chunks:
        if chunk.is_done:
            env_runner._done_episodes_for_metrics.append(chunk)
        else:
            env_runner._ongoing_episodes_for_metrics[chunk.id_].append(chunk)
    env_runner._increase_sampled_metrics(
        sum(chunk.length for chunk in chunks), sum(chunk.is_done for chunk in chunks)
    )


def filtered(connector: MeanStdFilter, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns observations as a connector of a single-agent pipeline filters them."""
    if connector._filters is None:
        connector._init_new_filters()
    return [connector._filters[None](row, update=connector._update_stats) for row in rows]


def set_autoreset(env: gym.vector.SyncVectorEnv, resets_next: np.ndarray) -> None:
    """Tells a vector environment which of its sub-environments the next step resets."""
    env._autoreset_envs = resets_next.copy()


# fault_tolerance


def actor_manager(env_runner_group: EnvRunnerGroup) -> FaultTolerantActorManager:
    """Returns what manages the actors of remote env runners; its own methods are public."""
    return env_runner_group._worker_manager
