"""The driver's side of sampling: one call per env runner and round."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_MODULE_TO_ENV_CONNECTOR
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.rollouts import RolloutColumns
from rllib_weighted.core.workers import WORKER_KEY

logger = logging.getLogger(__name__)


@dataclass
class Rollouts:
    """What all env runners sampled in one round; see `SampleResult`.

    Args:
        columns: One per env runner that sent columns instead of episodes.
        num_fast: Number of env runners that sampled on the fast path.
        num_results: Number of env runners that sent something.
        absent: Env runner -> why nothing came from it.
    """

    episodes: list[SingleAgentEpisode] = field(default_factory=list)
    columns: list[RolloutColumns] = field(default_factory=list)
    num_fast: int = 0
    num_results: int = 0
    metrics: list[Any] = field(default_factory=list)
    connector_states: list[dict[str, Any]] = field(default_factory=list)
    num_resets: dict[int, int] = field(default_factory=dict)
    returns: dict[int, list[float]] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)
    absent: dict[int, str] = field(default_factory=dict)

    @property
    def workers(self) -> set[int]:
        """The workers that sent something."""
        found = {episode.custom_data[WORKER_KEY] for episode in self.episodes}
        return found.union(*(part.workers for part in self.columns))

    def data(self) -> dict[str, Any]:
        """Returns what the learner group's `update` takes; {} if nothing was sampled."""
        if self.columns and self.episodes:  # Env runners of different kinds.
            return {
                "episodes": [*self.episodes, *(e for c in self.columns for e in c.to_episodes())]
            }
        if self.columns:
            return {"columns": self.columns}
        return {"episodes": self.episodes} if self.episodes else {}


def collect_rollouts(
    env_runner_group: Any,
    *,
    config: Any,
    round: int,
    root_seed: int,
    state: dict[str, Any],
    num_resets: dict[int, int],
    restore_id: str = "",
    per_worker_parameters: Mapping[str, Any] | None = None,
    takes_columns: bool = False,
) -> Rollouts:
    """Has every healthy env runner sample its part of a round.

    An env runner that is dead, slower than `sample_timeout_s` or raises is left out; its workers
    are dropped from the round's merge.

    Args:
        env_runner_group: RLlib's group.
        config: The algorithm's config.
        round: Number of the round.
        root_seed: The run's root seed.
        state: What the env runners need: weights, connector states, counters.
        num_resets: Slot -> resets used so far.
        restore_id: See `SampleRequest`.
        per_worker_parameters: See `SampleRequest`.
        takes_columns: See `SampleRequest`.

    Raises:
        RuntimeError: If an env runner raises and failures are not to be ignored, or if all do.
    """
    order = SampleRequest(
        round,
        root_seed,
        {},
        num_resets,
        restore_id,
        per_worker_parameters=per_worker_parameters,
        takes_columns=takes_columns,
    )
    if env_runner_group.num_remote_workers() == 0:
        results = [env_runner_group.local_env_runner.sample_round(order)]
    else:
        timeout = config.sample_timeout_s
        expires = math.inf if timeout is None else time.time() + timeout
        # One copy in the object store, however many env runners read it.
        reference = ray.put(dataclasses.replace(order, state=state, expires=expires))
        results = env_runner_group.foreach_env_runner(
            lambda env_runner: env_runner.sample_round(reference),
            local_env_runner=False,
            timeout_seconds=timeout,
        )
    joined = _joined(results, config)
    joined.absent |= _absent(env_runner_group, results, config)
    return joined


def _absent(env_runner_group: Any, results: list[SampleResult], config: Any) -> dict[int, str]:
    """Returns env runner -> why it gave no result."""
    silent = set(range(1, env_runner_group.num_remote_workers() + 1))
    silent -= {result.env_runner for result in results}
    alive = set(env_runner_group.healthy_env_runner_ids()) if silent else set()
    slow = f"was slower than `sample_timeout_s`={config.sample_timeout_s}"
    return {
        index: f"env runner {index} {slow if index in alive else 'is lost'}"
        for index in sorted(silent)
    }


def _joined(results: list[SampleResult], config: Any) -> Rollouts:
    failed = [result for result in results if result.error is not None]
    for result in failed:
        logger.warning("Env runner %d failed:\n%s", result.env_runner, result.error)
    tolerant = config.restart_failed_env_runners or config.ignore_env_runner_failures
    if failed and (len(failed) == len(results) or not tolerant):
        raise RuntimeError(
            f"{len(failed)} of {len(results)} env runners raised while sampling. Env runner "
            f"{failed[0].env_runner}:\n{failed[0].error}"
        )
    joined = Rollouts()
    for result in sorted(results, key=lambda result: result.env_runner):
        if result.error is None:
            joined.episodes += result.episodes
            if result.columns is not None:
                joined.columns.append(result.columns)
            joined.num_results += 1
            joined.num_fast += result.is_fast
            joined.metrics.append(result.metrics)
            joined.connector_states.append(result.connector_states)
            joined.num_resets |= result.num_resets
            joined.returns |= result.returns
            joined.invalid |= result.invalid
        else:
            joined.absent[result.env_runner] = f"env runner {result.env_runner} raised"
    return joined


def merge_connector_states(
    states: list[dict[str, Any]], *, config: Any, env_to_module: Any, module_to_env: Any
) -> None:
    """Merges the env runners' connector states (observation filters …) into the driver's.

    Args:
        states: One per env runner, in the order of their indices.
        config: The algorithm's config: `merge_env_runner_states` switches it off.
        env_to_module: The driver's own pipeline, which keeps the merged state.
        module_to_env: Likewise.
    """
    if config.num_env_runners == 0 or config.merge_env_runner_states is False:
        return
    for component, pipeline in (
        (COMPONENT_ENV_TO_MODULE_CONNECTOR, env_to_module),
        (COMPONENT_MODULE_TO_ENV_CONNECTOR, module_to_env),
    ):
        own = [state[component] for state in states if component in state]
        if own and pipeline is not None:
            pipeline.set_state(pipeline.merge_states(own))
