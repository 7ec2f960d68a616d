"""A checkpoint's policy as a function from an observation to an action, without starting Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray.cloudpickle as pickle
from pyarrow import fs
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    BatchIndividualItems,
    MeanStdFilter,
    NumpyToTensor,
)
from ray.rllib.connectors.module_to_env import (
    GetActions,
    ListifyDataForVectorEnv,
    NormalizeAndClipActions,
    RemoveSingleTsTimeRankFromBatch,
    TensorToNumpy,
    UnBatchToIndividualItems,
)
from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted._private import freeze_filters, without_deprecations
from rllib_weighted.core.actions import CountActions
from rllib_weighted.core.checkpoints import restoring
from rllib_weighted.records.schema import resolve

MARK = "rllib_checkpoint.json"
_CLASS = "class_and_ctor_args.pkl"

# RLlib's own connectors, ours, and the filter: all of them look at the latest observation only.
PLAIN_CONNECTORS = (
    MeanStdFilter,
    AddObservationsFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    BatchIndividualItems,
    NumpyToTensor,
    GetActions,
    TensorToNumpy,
    UnBatchToIndividualItems,
    RemoveSingleTsTimeRankFromBatch,
    NormalizeAndClipActions,
    CountActions,
    ListifyDataForVectorEnv,
)


def custom_connectors(pipeline: ConnectorPipelineV2) -> list[str]:
    """Returns the class names of a pipeline's connectors that are not in `PLAIN_CONNECTORS`."""
    found = [type(connector) for connector in pipeline.connectors]
    return [cls.__name__ for cls in found if cls not in PLAIN_CONNECTORS]


class Policy:
    """Acts as the algorithm does that a checkpoint was saved by; see `load_policy`.

    Args:
        module: The RLModule.
        env_to_module: The pipeline from observations to the module, with the state of its filters,
            which acting does not change.
        module_to_env: The pipeline from the module to actions as the environment takes them.
        explore: Whether actions are drawn, from torch's global generator; else the most likely
            one is taken.

    Attributes:
        observation_space: That of the environment.
        action_space: That of the environment.
    """

    def __init__(
        self,
        module: Any,  # RLlib annotates an RLModule's parts as optional or not at all.
        env_to_module: ConnectorPipelineV2,
        module_to_env: ConnectorPipelineV2,
        *,
        explore: bool = False,
    ) -> None:
        freeze_filters(env_to_module)
        self.module = module
        self.env_to_module = env_to_module
        self.module_to_env = module_to_env
        self.explore = explore
        self.observation_space: gym.Space[Any] = env_to_module.input_observation_space
        self.action_space: gym.Space[Any] = module_to_env.input_action_space
        self._remembers = module.is_stateful() or bool(custom_connectors(env_to_module))
        self.reset()

    def reset(self) -> None:
        """Begins a new episode: call it whenever the environment is reset.

        Only recurrent modules, and connectors of your own that look back, can tell the difference.
        """
        self._episode: SingleAgentEpisode | None = None
        self._last: dict[str, Any] = {}  # What was added to the episode last: any columns.
        self._shared: dict[str, Any] = {}  # What the connectors share, likewise.

    def __call__(self, obs: Any) -> Any:
        """Returns the action for an observation.

        Args:
            obs: One observation of the environment, not a batch.

        Returns:
            The action as the environment takes it: clipped or unsquashed as the config has it.

        Raises:
            ValueError: The observation has another shape than the environment's.
        """
        episodes = [self._continued(self._checked(obs))]
        context = {
            "rl_module": self.module,
            "episodes": episodes,
            "explore": self.explore,
            "shared_data": self._shared,
        }
        batch = self.env_to_module(batch={}, **context)
        forward = "forward_exploration" if self.explore else "forward_inference"
        output = self.module_to_env(batch=getattr(self.module, forward)(batch), **context)
        self._last = {name: column[0] for name, column in output.items()}
        return self._last.pop(Columns.ACTIONS_FOR_ENV, self._last[Columns.ACTIONS])

    def _checked(self, obs: Any) -> Any:
        if not isinstance(self.observation_space, gym.spaces.Box):
            return obs
        array = np.asarray(obs, self.observation_space.dtype)
        if array.shape != self.observation_space.shape:
            raise ValueError(
                f"an observation should have the shape {list(self.observation_space.shape)}, found "
                f"{list(array.shape)}: give one observation at a time, as the environment does"
            )
        return array

    def _continued(self, obs: Any) -> SingleAgentEpisode:
        """Returns the episode so far with an observation at its end."""
        if self._episode is None or not self._remembers:
            self._episode = SingleAgentEpisode(
                observation_space=self.observation_space, action_space=self.action_space
            )
            self._episode.add_env_reset(observation=obs)
        else:
            action = self._last.pop(Columns.ACTIONS)
            self._episode.add_env_step(
                observation=obs, action=action, reward=0.0, extra_model_outputs=self._last
            )
        return self._episode


def load_policy(path: str | Path, *, explore: bool = False) -> Policy:
    """Loads the policy of a checkpoint: a callable `policy(obs) -> action`.

    Ray is not started and no environment is built. Connectors, the statistics of filters and the
    clipping or unsquashing of actions are those of the checkpoint. With parameters per worker, it
    is the policy that `actor_export` says.

    Examples:
        >>> from rllib_weighted import load_policy
        >>> policy = load_policy("~/ray_results/cartpole/trial/checkpoint_000003")  # doctest: +SKIP
        >>> action = policy(obs)  # doctest: +SKIP

    Args:
        path: A checkpoint of this package's algorithm or of RLlib's PPO: a folder, or a URI such
            as `s3://bucket/results/name/trial/checkpoint_000003`.
        explore: Whether actions are drawn, as in training; else the most likely one is taken.

    Raises:
        ValueError: There is no checkpoint, one of its files is damaged, it is a multi-agent one,
            or it holds a class that cannot be imported here.
    """
    location = str(path)
    filesystem, root = resolve(location)
    if not filesystem.get_file_info(f"{root}/{MARK}").is_file:
        raise ValueError(
            f"{location} should be the folder of a checkpoint, found no {MARK} there: name one of "
            "a trial's folders checkpoint_…"
        )
    with restoring(Path(root)):
        return _restored(filesystem, root, location, explore=explore)


def _restored(filesystem: fs.FileSystem, root: str, location: str, *, explore: bool) -> Policy:
    learner = f"{root}/{COMPONENT_LEARNER_GROUP}/{COMPONENT_LEARNER}"
    modules = _loaded(MultiRLModule, filesystem, f"{learner}/{COMPONENT_RL_MODULE}")
    if set(modules.keys()) != {DEFAULT_MODULE_ID}:
        names = ", ".join(map(str, modules.keys()))
        raise ValueError(
            f"{location} should hold the one policy of a single agent, found {names}: load a "
            "multi-agent checkpoint with RLlib's `Algorithm.from_checkpoint`"
        )
    own = f"{root}/{COMPONENT_ENV_RUNNER}"
    # Without an env runner of its own, the driver keeps the pipelines beside the learners.
    root = own if filesystem.get_file_info(own).type == fs.FileType.Directory else root
    env_to_module, module_to_env = (
        _loaded(ConnectorPipelineV2, filesystem, f"{root}/{name}")
        for name in (COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR)
    )
    return Policy(modules[DEFAULT_MODULE_ID], env_to_module, module_to_env, explore=explore)


def _loaded(cls: Any, filesystem: fs.FileSystem, folder: str) -> Any:
    """Returns what RLlib's `Checkpointable` has saved in a folder.

    RLlib goes on with the base class if a class cannot be imported (2.60), and fails elsewhere.
    """
    try:
        with filesystem.open_input_stream(f"{folder}/{_CLASS}") as stream:
            pickle.loads(stream.read())
    except FileNotFoundError:
        raise ValueError(
            f"there should be a file {_CLASS} in {folder}, found none: the checkpoint is torn, or "
            "not one of a single agent on RLlib's new API stack; take another one"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds a class of yours that cannot be imported here ({error}): put its "
            "module where Python finds it (PYTHONPATH), or import it first"
        ) from error
    with without_deprecations():
        return cls.from_checkpoint(folder, filesystem=filesystem)
