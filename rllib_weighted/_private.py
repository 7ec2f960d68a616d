"""Every private name of Ray, RLlib and gymnasium that this package reads or overrides.

RLlib has no public place for some of what merging needs. What is read of an object that is not ours
has a function here; ruff's SLF001 refuses private names elsewhere. Every name, also those of
methods that our subclasses override, has a canary in `tests/test_private.py`, which fails with the
name and the version when upstream changes it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np
    import torch
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    from rllib_weighted.core.rollouts import EpisodeStats


# Driver


def tune_registry() -> Any:
    """Returns Tune's registry of algorithms and environments (Ray does not annotate it)."""
    from ray.tune.registry import _global_registry

    return _global_registry


def connector_pipelines(algorithm: Any) -> dict[str, Any]:
    """Returns component -> the driver's connector pipeline: the local env runner's, if any."""
    from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR

    runner = algorithm.env_runner
    return {
        COMPONENT_ENV_TO_MODULE_CONNECTOR: getattr(
            runner, "_env_to_module", algorithm.env_to_module_connector
        ),
        COMPONENT_MODULE_TO_ENV_CONNECTOR: getattr(
            runner, "_module_to_env", algorithm.module_to_env_connector
        ),
    }


def batch_size_per_learner(config: Any) -> int | None:
    """Returns the setting `train_batch_size_per_learner`; None where it is not set."""
    size: int | None = config._train_batch_size_per_learner
    return size


def grad_scaler_class(config: Any) -> Any:
    """Returns the class of the gradient scaler of mixed precision; None without one."""
    return config._torch_grad_scaler_class


_NAMESPACE = "rllib_weighted"


def cluster_value(key: str) -> str | None:
    """Returns what `set_cluster_value` has put; None without it, or without a running Ray."""
    if "ray" not in sys.modules:
        return None
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    value = _internal_kv_get(key, namespace=_NAMESPACE) if _internal_kv_initialized() else None
    return None if value is None else value.decode()


def set_cluster_value(key: str, value: str) -> None:
    """Puts a text into the memory of the running Ray's control process, if there is one."""
    if "ray" not in sys.modules:
        return
    from ray.experimental.internal_kv import _internal_kv_initialized, _internal_kv_put

    if _internal_kv_initialized():
        _internal_kv_put(key, value, namespace=_NAMESPACE)


# cli


@contextlib.contextmanager
def ray_in_sessions_of_its_own() -> Iterator[None]:
    """Lets the processes of a Ray that is started inside the block lead sessions of their own.

    A scheduler sends SIGTERM, and a terminal that closes SIGHUP, to a whole process group: without
    this, Ray's control process ends before the last checkpoint is written. (Ray 2.60 keeps SIGINT
    from its processes, and only that.) Linux kills them, as before, when this process ends.
    """
    from ray._private import services

    popen = services.ConsolePopen
    vars(services)["ConsolePopen"] = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        vars(services)["ConsolePopen"] = popen


@contextlib.contextmanager
def without_saved_decisions() -> Iterator[None]:
    """Lets an experiment that Tune resumes inside the block decide anew what becomes of its trials.

    Tune (2.60) saves what it has decided of a trial that is writing a checkpoint, and does it after
    the first checkpoint of the resumed trial: one whose checkpoint had failed, or that was killed
    while it wrote its last one, then ends there, as if it were done.
    """
    from ray.tune.execution.tune_controller import TuneController

    restore = TuneController.__setstate__

    def restore_undecided(controller: TuneController, state: dict[str, Any]) -> None:
        restore(controller, {**state, "_cached_trial_decisions": {}, "_queued_trial_decisions": {}})

    TuneController.__setstate__ = restore_undecided  # type: ignore[method-assign]
    try:
        yield
    finally:
        TuneController.__setstate__ = restore  # type: ignore[method-assign]


def ended_ray_processes() -> list[str]:
    """Returns which processes of the Ray that this process has started have ended unasked."""
    from ray._private import worker

    node = worker._global_node
    return [] if node is None else [kind for kind, _ in node.dead_processes()]


def control_process_answers(timeout_s: float) -> bool:
    """Whether the control process of the cluster that this process is part of answers in time."""
    import ray
    from ray._private import worker

    node = worker._global_node
    if node is None:
        return True  # There is none to ask.
    try:
        node.get_gcs_client().internal_kv_get(b"alive", _NAMESPACE.encode(), timeout=timeout_s)
    except ray.exceptions.RpcError:
        return False
    return True


def kill_ray_processes() -> None:
    """Ends the Ray that this process has started, without asking its control process.

    Ray (2.60) itself leaves its agents behind where that one is gone.
    """
    import psutil  # Ray brings it along, and makes it importable.
    from ray._private import worker

    node = worker._global_node
    if node is None:
        return
    living = [psutil.Process(process.pid) for _, process in node.live_processes()]
    started = [child for process in living for child in process.children(recursive=True)]
    node.kill_all_processes(check_alive=False, allow_graceful=True)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


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


def log_episodes(env_runner: Any, chunks: Sequence[EpisodeStats | SingleAgentEpisode]) -> None:
    """Hands sampled chunks to an env runner's `get_metrics`, as RLlib's own loop does."""
    for chunk in chunks:
        if chunk.is_done:
            env_runner._done_episodes_for_metrics.append(chunk)
        else:
            env_runner._ongoing_episodes_for_metrics[chunk.id_].append(chunk)
    env_runner._increase_sampled_metrics(
        sum(map(len, chunks)), sum(chunk.is_done for chunk in chunks)
    )


def set_duration(episode: SingleAgentEpisode, seconds: float) -> None:
    """Tells an episode that was made from arrays how long it took."""
    episode._start_time, episode._last_step_time = 0.0, seconds


def filtered(connector: MeanStdFilter, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns observations as a connector of a single-agent pipeline filters them."""
    if connector._filters is None:
        connector._init_new_filters()
    return [connector._filters[None](row, update=connector._update_stats) for row in rows]


def set_autoreset(env: gym.vector.SyncVectorEnv, resets_next: np.ndarray) -> None:
    """Tells a vector environment which of its sub-environments the next step resets."""
    env._autoreset_envs = resets_next.copy()


# policy


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Keeps quiet what RLlib (2.60) warns of: a call of its own, whenever a module is built."""
    import logging

    from ray._common.deprecation import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def freeze_filters(pipeline: ConnectorPipelineV2) -> None:
    """Keeps the statistics of a pipeline's `MeanStdFilter`s, nested ones too, as they are."""
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    for connector in pipeline.connectors:
        if isinstance(connector, MeanStdFilter):
            connector._update_stats = False
        elif hasattr(connector, "connectors"):
            freeze_filters(connector)


# fault_tolerance


def actor_manager(env_runner_group: EnvRunnerGroup) -> FaultTolerantActorManager:
    """Returns what manages the actors of remote env runners; its own methods are public."""
    return env_runner_group._worker_manager


def count_dropped(env_runner_group: EnvRunnerGroup, num: int) -> None:
    """Adds to RLlib's metric `num_env_runners_dropped_lifetime`."""
    env_runner_group._num_env_runners_dropped_lifetime += num


# core/modules and learning


def module_parameters(module: torch.nn.Module) -> dict[str, Any]:
    """Own parameters of a module, not those of its children; to be written into."""
    return module._parameters


def has_forward_hooks(module: torch.nn.Module) -> bool:
    """Whether something of a user's runs before or after a module's `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def keep_in_service(learner_group: Any) -> None:
    """Has remote learners asked again that RLlib (2.60) gave up: one raised, and is alive."""
    manager = learner_group._worker_manager
    for index in manager.actor_ids():
        manager.set_actor_state(index, healthy=True)


def learner_connectors(learner: Any) -> list[Any]:
    """The pieces of a learner's connector pipeline."""
    return list(learner._learner_connector.connectors)


def uses_torch_lr_schedulers(config: Any) -> bool:
    """Whether torch's learning-rate schedulers step after every step."""
    return config._torch_lr_scheduler_classes is not None
