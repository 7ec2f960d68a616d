from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.sampling.collect import Rollouts, collect_rollouts, merge_connector_states


class _LocalGroup:
    """A group with the local env runner only."""

    def __init__(self, sample_round: Callable[[SampleRequest], SampleResult]) -> None:
        self.local_env_runner = SimpleNamespace(sample_round=sample_round)

    def num_remote_workers(self) -> int:
        return 0


class _RemoteGroup:
    """Remote env runners whose results came; RLlib leaves the others out without a word."""

    def __init__(self, results: list[SampleResult]) -> None:
        self._results = results

    def num_remote_workers(self) -> int:
        return 3

    def healthy_env_runner_ids(self) -> list[int]:
        return [1, 2]

    def sample(self, group: Any, request: SampleRequest, config: Any) -> list[SampleResult]:
        """As that of `OpenCalls`."""
        return self._results


def _episode(worker: int) -> SingleAgentEpisode:
    episode = SingleAgentEpisode(observations=[0, 1], actions=[0], rewards=[1.0])
    episode.custom_data[WORKER_KEY] = worker
    return episode


def _result(runner: int, **fields: Any) -> SampleResult:
    defaults: dict[str, Any] = {
        "episodes": [_episode(runner - 1)],
        "metrics": {"runner": runner},
        "connector_states": {"of": runner},
        "num_resets": {runner - 1: 10 + runner},
        "returns": {runner - 1: [float(runner)]},
    }
    return SampleResult(env_runner=runner, **{**defaults, **fields})


def _failed(runner: int) -> SampleResult:
    return SampleResult(env_runner=runner, error=f"Traceback of {runner}: KeyError")


def _config(*, restart: bool = True, ignore: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        sample_timeout_s=5.0,
        restart_failed_env_runners=restart,
        ignore_env_runner_failures=ignore,
    )


def _collect(group: Any, config: Any = None) -> Rollouts:
    return collect_rollouts(group, SampleRequest(4, 9, {}, {0: 2}), config or _config(), group)


def test_the_local_env_runner_gets_the_request() -> None:
    requests: list[SampleRequest] = []

    def sample_round(request: SampleRequest) -> SampleResult:
        requests.append(request)
        return _result(1)

    rollouts = _collect(_LocalGroup(sample_round))
    assert rollouts.workers == {0}
    (request,) = requests
    assert (request.round, request.root_seed, request.num_resets) == (4, 9, {0: 2})


def test_results_are_joined_in_the_order_of_the_env_runners() -> None:
    group = _RemoteGroup([_result(3), _result(1, invalid={0: "reward nan"})])
    rollouts = _collect(group)
    assert [episode.custom_data[WORKER_KEY] for episode in rollouts.episodes] == [0, 2]
    assert rollouts.workers == {0, 2}  # Runner 2 sent nothing.
    assert rollouts.metrics == [{"runner": 1}, {"runner": 3}]
    assert rollouts.connector_states == [{"of": 1}, {"of": 3}]
    assert rollouts.num_resets == {0: 11, 2: 13}
    assert rollouts.returns == {0: [1.0], 2: [3.0]}
    assert rollouts.invalid == {0: "reward nan"}
    assert rollouts.absent == {2: "env runner 2 was slower than `sample_timeout_s`=5.0"}


def test_no_result_at_all_is_an_empty_round() -> None:
    slow = "was slower than `sample_timeout_s`=5.0"
    absent = {1: f"env runner 1 {slow}", 2: f"env runner 2 {slow}", 3: "env runner 3 is lost"}
    assert _collect(_RemoteGroup([])) == Rollouts(absent=absent)


@pytest.mark.parametrize("tolerant", [{"restart": True}, {"restart": False, "ignore": True}])
def test_an_env_runner_that_failed_is_left_out_and_logged(
    tolerant: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    rollouts = _collect(_RemoteGroup([_failed(1), _result(2)]), _config(**tolerant))
    assert rollouts.workers == {1}
    raised = "env runner 1 raised Traceback of 1: KeyError"
    assert rollouts.absent == {1: raised, 3: "env runner 3 is lost"}
    assert "Env runner 1 failed:\nTraceback of 1: KeyError" in caplog.text


@pytest.mark.parametrize(
    ("results", "config", "count"),
    [
        ([_failed(1), _failed(2)], _config(), "2 of 2"),
        ([_result(1), _failed(2)], _config(restart=False), "1 of 2"),
    ],
)
def test_a_round_fails_if_all_do_or_none_may(
    results: list[SampleResult], config: Any, count: str
) -> None:
    runner = next(result.env_runner for result in results if result.error)
    message = rf"{count} env runners raised.*Env runner {runner}:\nTraceback of {runner}: KeyError"
    with pytest.raises(RuntimeError, match=message):
        _collect(_RemoteGroup(results), config)


# Connector states

_BOX = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)


def _pipeline(*observations: float) -> EnvToModulePipeline:
    connector = MeanStdFilter()
    connector.input_action_space = gym.spaces.Discrete(2)
    connector.input_observation_space = _BOX
    connector.get_state()
    for value in observations:
        connector._filters[None](np.array([value]))
    return EnvToModulePipeline(
        input_observation_space=_BOX,
        input_action_space=gym.spaces.Discrete(2),
        connectors=[connector],
    )


def _merge(*pipelines: EnvToModulePipeline, driver: Any, **config: Any) -> None:
    settings = {"num_env_runners": 2, "merge_env_runner_states": True, **config}
    merge_connector_states(
        [{"env_to_module_connector": pipeline.get_state()} for pipeline in pipelines],
        {"env_to_module_connector": driver, "module_to_env_connector": None},
        config=SimpleNamespace(**settings),
    )


def _statistics(pipeline: EnvToModulePipeline) -> tuple[int, float]:
    stat = pipeline.connectors[0]._filters[None].running_stats
    return stat.n, stat.mean.item()


def test_the_drivers_pipeline_keeps_the_merged_filters() -> None:
    driver = _pipeline()
    _merge(_pipeline(1, 2, 3), _pipeline(6), driver=driver)
    assert _statistics(driver) == (4, 3)  # (1 + 2 + 3 + 6) / 4
    follower = _pipeline()
    follower.set_state(driver.get_state())
    assert _statistics(follower) == (4, 3)


@pytest.mark.parametrize(
    "config", [{"num_env_runners": 0}, {"merge_env_runner_states": False}], ids=str
)
def test_merging_can_be_switched_off(config: dict[str, Any]) -> None:
    driver = _pipeline()
    _merge(_pipeline(1), driver=driver, **config)
    assert _statistics(driver) == (0, 0)
    _merge(_pipeline(1), driver=driver)  # Negative control.
    assert _statistics(driver) == (1, 1)


def test_without_states_or_a_pipeline_there_is_nothing_to_merge() -> None:
    driver = _pipeline(2)
    _merge(driver=driver)
    _merge(_pipeline(1), driver=None)
    assert _statistics(driver) == (1, 2)
