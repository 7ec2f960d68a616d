"""Collecting a round: one call per env runner, and what comes back joined for the learners.

An env runner has at most one open call: what it has not read yet would lie in the object store.

Observation filters and other connectors sample with a state. Each env runner sends its own after a
round, with the exact increments of `repair_deltas`; the driver merges them, and the next round's
request carries the merged state out again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.filter import RunningStat

from rllib_weighted import _private
from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.rollouts import RolloutColumns
from rllib_weighted.core.workers import WORKER_KEY

if TYPE_CHECKING:
    from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    from rllib_weighted.config import WeightedPPOConfig
    from rllib_weighted.sampling.env_runner import WeightedEnvRunner

logger = logging.getLogger(__name__)


@dataclass
class Rollouts:
    """What all env runners sampled in one round; see `SampleResult`.

    Args:
        columns: One per env runner that sent columns instead of episodes.
        num_fast: Number of env runners that sampled on the fast path.
        metrics: One per env runner that sent something, as are the connector states.
        absent: Env runner -> why nothing came from it.
    """

    episodes: list[SingleAgentEpisode] = field(default_factory=list)
    columns: list[RolloutColumns] = field(default_factory=list)
    num_fast: int = 0
    metrics: list[Any] = field(default_factory=list)
    connector_states: list[dict[str, Any]] = field(default_factory=list)
    num_resets: dict[int, int] = field(default_factory=dict)
    returns: dict[int, list[float]] = field(default_factory=dict)
    successes: dict[int, list[bool]] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)
    absent: dict[int, str] = field(default_factory=dict)

    @property
    def workers(self) -> set[int]:
        """The workers that sent something."""
        found = {episode.custom_data[WORKER_KEY] for episode in self.episodes}
        return found.union(*(part.workers for part in self.columns))

    def data(self) -> dict[str, Any]:
        """Returns what the learner group's `update` takes; {} if nothing was sampled."""
        if self.columns and not self.episodes:
            return {"columns": self.columns}
        # Env runners may be of different kinds.
        episodes = [*self.episodes, *(e for part in self.columns for e in part.to_episodes())]
        return {"episodes": episodes} if episodes else {}


def collect_rollouts(
    env_runner_group: EnvRunnerGroup,
    request: SampleRequest,
    config: WeightedPPOConfig,
    calls: OpenCalls,
) -> Rollouts:
    """Samples one round; env runners that exceed `sample_timeout_s` are dropped.

    So are those that are dead or raise: their workers are left out of the round's merge.

    Args:
        env_runner_group: RLlib's group.
        request: What every env runner gets; a local one should get no `state`.
        config: The algorithm's config.
        calls: What is open at the remote env runners since earlier rounds.

    Raises:
        RuntimeError: If an env runner raises and failures are not to be ignored, or if all do.
        RayError: If one is lost and failures are not to be ignored.
    """
    if env_runner_group.num_remote_workers() == 0:
        results = [env_runner_group.local_env_runner.sample_round(request)]
    else:
        results = calls.sample(env_runner_group, request, config)
    rollouts = _joined(results, config)
    rollouts.absent |= _absent(env_runner_group, results, config)
    return rollouts


def _sample_round(env_runner: WeightedEnvRunner, request: SampleRequest) -> SampleResult:
    return env_runner.sample_round(request)


def _set_state(env_runner: WeightedEnvRunner, state: dict[str, Any]) -> None:
    env_runner.set_state(state)


_GLANCE_S = 0.1  # How often those are looked at that have not answered an earlier round.


class OpenCalls:
    """The calls of `sample_round` that remote env runners have not answered yet.

    One that is still busy with an earlier round is asked for this one as soon as it is free.

    Attributes:
        missed: Env runner -> how many rounds in a row nothing of its came in time.
    """

    def __init__(self) -> None:
        self.missed: dict[int, int] = {}
        self._open: dict[ray.ObjectRef[SampleResult], int] = {}

    def sample(
        self, env_runner_group: EnvRunnerGroup, request: SampleRequest, config: WeightedPPOConfig
    ) -> list[SampleResult]:
        """Returns the results of those that answer within `sample_timeout_s`.

        Raises:
            RayError: An env runner is lost, and failures are not to be ignored.
        """
        manager = _private.actor_manager(env_runner_group)
        asked = manager.healthy_actor_ids()
        answers = self._answers(manager.actors(), asked, request, config.sample_timeout_s)
        self.missed = {
            index: self.missed.get(index, 0) + 1 for index in asked if index not in answers
        }
        _private.count_dropped(env_runner_group, len(asked) - len(answers))
        for index, answer in answers.items():
            if not isinstance(answer, SampleResult):
                logger.error("Env runner %d is lost: %s", index, answer)
                manager.set_actor_state(index, healthy=False)
                if not _is_tolerant(config):
                    raise answer
        return [answer for answer in answers.values() if isinstance(answer, SampleResult)]

    def _answers(
        self,
        actors: Mapping[int, Any],
        asked: list[int],
        request: SampleRequest,
        timeout_s: float | None,
    ) -> dict[int, SampleResult | ray.exceptions.RayError]:
        """Asks env runners, and returns what those answer that do so in time.

        Args:
            actors: Env runner -> its actor.
            asked: Those to ask.
            request: What to ask for.
            timeout_s: How long to wait; None waits for all.
        """
        # One copy in the object store, however many env runners read it.
        reference = ray.put(request)
        current = set()

        def ask(index: int) -> None:
            call = actors[index].apply.remote(func=_sample_round, request=reference)
            self._open[call] = index
            current.add(call)

        self._open = {call: index for call, index in self._open.items() if index in asked}
        for index in sorted(set(asked).difference(self._open.values())):
            ask(index)
        answers: dict[int, SampleResult | ray.exceptions.RayError] = {}
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while self._open:
            left = max(0.0, deadline - time.monotonic())
            wait = min(left, math.inf if current.issuperset(self._open) else _GLANCE_S)
            calls = list(self._open)
            timeout = None if wait == math.inf else wait
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=timeout)
            for call in ready:
                index, answer = self._open.pop(call), _answer(call)
                if call in current:
                    answers[index] = answer
                else:
                    ask(index)
            if not left:
                break
        return answers

    def send_state(self, env_runner_group: EnvRunnerGroup, state: ray.ObjectRef[Any]) -> None:
        """Sends a state to all that are free, and waits for nobody.

        The next request refers to it once more, for those that miss it.
        """
        manager = _private.actor_manager(env_runner_group)
        actors = manager.actors()
        for index in sorted(set(manager.healthy_actor_ids()).difference(self._open.values())):
            actors[index].apply.remote(func=_set_state, state=state)

    def forget(self, index: int) -> None:
        """Forgets an env runner that is going to be replaced."""
        self.missed.pop(index, None)
        self._open = {call: other for call, other in self._open.items() if other != index}


def _answer(call: ray.ObjectRef[SampleResult]) -> SampleResult | ray.exceptions.RayError:
    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        return error


def _is_tolerant(config: WeightedPPOConfig) -> bool:
    return bool(config.restart_failed_env_runners or config.ignore_env_runner_failures)


def _joined(results: list[SampleResult], config: WeightedPPOConfig) -> Rollouts:
    failed = [result for result in results if result.error is not None]
    for result in failed:
        logger.warning("Env runner %d failed:\n%s", result.env_runner, result.error)
    if failed and (len(failed) == len(results) or not _is_tolerant(config)):
        raise RuntimeError(
            f"{len(failed)} of {len(results)} env runners raised while sampling. Env runner "
            f"{failed[0].env_runner}:\n{failed[0].error}"
        )
    joined = Rollouts()
    for result in sorted(results, key=lambda result: result.env_runner):
        if result.error is not None:
            last = result.error.strip().splitlines()[-1]
            joined.absent[result.env_runner] = f"env runner {result.env_runner} raised {last:.200}"
            continue
        joined.episodes += result.episodes
        if result.columns is not None:
            joined.columns.append(result.columns)
        joined.num_fast += result.is_fast
        joined.metrics.append(result.metrics)
        joined.connector_states.append(result.connector_states)
        joined.num_resets |= result.num_resets
        joined.returns |= result.returns
        joined.successes |= result.successes
        joined.invalid |= result.invalid
    return joined


def _absent(
    env_runner_group: EnvRunnerGroup, results: list[SampleResult], config: WeightedPPOConfig
) -> dict[int, str]:
    """Returns env runner -> why no result came from it."""
    silent = set(range(1, env_runner_group.num_remote_workers() + 1))
    silent -= {result.env_runner for result in results}
    alive = set(env_runner_group.healthy_env_runner_ids()) if silent else set()
    slow = f"was slower than `sample_timeout_s`={config.sample_timeout_s}"
    return {
        index: f"env runner {index} {slow if index in alive else 'is lost'}"
        for index in sorted(silent)
    }


def merge_connector_states(
    states: list[dict[str, Any]],
    pipelines: Mapping[str, ConnectorPipelineV2 | None],
    *,
    config: WeightedPPOConfig,
) -> None:
    """Merges the env runners' connector states (observation filters …) into the driver's.

    Args:
        states: One per env runner, in the order of their indices.
        pipelines: Component -> the driver's own pipeline, which keeps the merged state.
        config: The algorithm's config: `merge_env_runner_states` switches it off.
    """
    if config.num_env_runners == 0 or config.merge_env_runner_states is False:
        return
    for component, pipeline in pipelines.items():
        own = [state[component] for state in states if component in state]
        if own and pipeline is not None:
            pipeline.set_state(pipeline.merge_states(own))


# The keys of a `RunningStat`'s state, by which it is found inside a connector's.
_STAT_KEYS = {"num_pushes", "num_pushes_delta", "mean_delta_array", "sum_sq_diff_delta_array"}


def repair_deltas(before: Any, after: Any) -> Any:
    """Returns `after` with the deltas of every `MeanStdFilter`'s statistics in it made exact.

    Args:
        before: Connector state at the start of the round.
        after: State of the same connectors at its end. Not modified.
    """
    if isinstance(after, dict):
        if after.keys() >= _STAT_KEYS and isinstance(before, dict):
            return _increment(RunningStat.from_state(before), RunningStat.from_state(after))
        old = before if isinstance(before, dict) else {}
        return {key: repair_deltas(old.get(key), value) for key, value in after.items()}
    if isinstance(after, list):
        old_items = before if isinstance(before, list) and len(before) == len(after) else after
        return [repair_deltas(*pair) for pair in zip(old_items, after, strict=True)]
    return after


def _increment(old: RunningStat, new: RunningStat) -> dict[str, Any]:
    count = new.num_pushes - old.num_pushes
    mean = np.zeros_like(new.mean_array)
    sum_sq_diff = np.zeros_like(new.sum_sq_diff_array)
    if count > 0:
        mean = (new.num_pushes * new.mean_array - old.num_pushes * old.mean_array) / count
        between = old.num_pushes * count / new.num_pushes * (mean - old.mean_array) ** 2
        sum_sq_diff = np.maximum(0.0, new.sum_sq_diff_array - old.sum_sq_diff_array - between)
    new.num_pushes_delta = count
    new.mean_delta_array = mean
    new.sum_sq_diff_delta_array = sum_sq_diff
    state: dict[str, Any] = new.to_state()
    return state


def is_finite(state: Any) -> bool:
    """Returns whether no running statistic in a connector state is NaN or infinite."""
    if isinstance(state, list):
        return all(map(is_finite, state))
    if not isinstance(state, dict):
        return True
    if not state.keys() >= _STAT_KEYS:
        return all(map(is_finite, state.values()))
    stat = RunningStat.from_state(state)
    return bool(np.isfinite(stat.mean_array).all() and np.isfinite(stat.sum_sq_diff_array).all())
