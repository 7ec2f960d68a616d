from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext

from rllib_weighted.core.envs import OWN
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.sampling.envs import EnvSeeds
from tests.sampling.envs import NAN, ScriptedEnv
from tests.sampling.helpers import make_config


def _config(unit: str = "env", **env_runners: Any) -> Any:
    settings = {"num_env_runners": 2, "num_envs_per_env_runner": 2, **env_runners}
    return make_config(ScriptedEnv, **settings).training(merge_unit=unit)


def _built(config: Any, env_runner: int = 2, **env_config: Any) -> tuple[EnvSeeds, Any]:
    seeds = EnvSeeds(config, env_runner, 9)
    context = EnvContext(env_config, worker_index=env_runner)
    return seeds, seeds.build(config, context)


def _seed(slot: int, *counters: int, evaluation: bool = False) -> int:
    return environment_seed(9, slot=slot, num_slots=4, evaluation=evaluation, counters=counters)


def _reset(env: Any) -> list[int]:
    """Returns the seeds that the sub-environments are reset with."""
    return env.reset()[1]["seed"].tolist()


def test_sub_environments_know_their_place() -> None:
    _, env = _built(_config(), 2)
    assert isinstance(env, gym.vector.SyncVectorEnv)
    assert env.get_attr(f"{OWN}slot") == (2, 3)
    assert env.get_attr(f"{OWN}num_slots") == (4, 4)
    assert [e.unwrapped.vector_index for e in env.envs] == [0, 1]
    assert [e.unwrapped.worker_index for e in env.envs] == [2, 2]


def test_counters_are_read_set_and_kept_when_the_environment_goes() -> None:
    config = _config()
    seeds, env = _built(config)
    assert _reset(env) == [_seed(2, 0), _seed(3, 0)]
    assert seeds.num_resets == {2: 1, 3: 1}
    seeds.set_counters(9, {0: 99, 2: 5, 3: 7})
    assert _reset(env) == [_seed(2, 5), _seed(3, 7)]
    seeds.release()
    assert seeds.num_resets == {2: 6, 3: 8}
    env = seeds.build(config, EnvContext({}, worker_index=2))
    assert _reset(env) == [_seed(2, 6), _seed(3, 8)]


def test_the_requests_root_seed_replaces_the_own_one() -> None:
    seeds, env = _built(_config())
    seeds.set_counters(10, {})
    assert _reset(env)[0] == environment_seed(
        10, slot=2, num_slots=4, evaluation=False, counters=(0,)
    )


def test_evaluation_on_a_training_env_runner_leaves_its_counters_alone() -> None:
    seeds, env = _built(_config())
    env.reset()
    seeds.start_evaluation(3)
    env.reset()
    assert _reset(env) == [_seed(slot, 3, 1, evaluation=True) for slot in (2, 3)]
    seeds.start_evaluation(3)  # Again the same weights: other episodes.
    assert _reset(env)[0] == _seed(2, 3, 2, evaluation=True)
    seeds.start_evaluation(4)
    assert _reset(env)[0] == _seed(2, 4, 0, evaluation=True)
    seeds.end_evaluation()
    assert seeds.num_resets == {2: 1, 3: 1}
    assert _reset(env) == [_seed(2, 1), _seed(3, 1)]


def test_whole_resets_are_seeded_where_there_are_no_wrappers() -> None:
    seeds = EnvSeeds(_config(), 2, 9)
    assert [seeds.next_whole_reset() for _ in range(2)] == [_seed(2, 0), _seed(2, 1)]
    assert seeds.num_resets == {2: 2, 3: 2}
    seeds.start_evaluation(5)
    assert seeds.next_whole_reset() == _seed(2, 5, 0, evaluation=True)
    assert seeds.next_whole_reset() == _seed(2, 5, 1, evaluation=True)
    seeds.end_evaluation()
    assert seeds.next_whole_reset() == _seed(2, 2)
    wrapped, _ = _built(_config())
    assert wrapped.next_whole_reset() is None


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("env", {3: "sub-environment 1: reward nan"}),
        ("env_runner", {1: "sub-environment 1: reward nan"}),
    ],
)
def test_faults_name_worker_sub_environment_and_value_once(
    unit: str, expected: dict[int, str]
) -> None:
    seeds, env = _built(_config(unit), rewards={1: NAN}, only=[[2, 1]])
    env.reset()
    assert seeds.take_invalid() == {}
    env.step(np.zeros(2, int))
    assert seeds.take_invalid() == expected
    assert seeds.take_invalid() == {}


def test_an_env_runner_with_two_faults_names_both() -> None:
    seeds, env = _built(_config("env_runner"), rewards={1: NAN})
    env.reset()
    env.step(np.zeros(2, int))
    text = "sub-environment 0: reward nan; sub-environment 1: reward nan"
    assert seeds.take_invalid() == {1: text}


@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")  # gymnasium's log goes there.
def test_after_a_lost_process_the_same_episodes_do_not_come_again() -> None:
    config = _config(gym_env_vectorize_mode="async")
    seeds, env = _built(config, raise_at=1, only=[[2, 1]])
    assert isinstance(env, gym.vector.AsyncVectorEnv)
    seeds.set_counters(9, {2: 4, 3: 6})
    env.reset()
    with pytest.raises(KeyError, match="told to raise"):
        env.step(np.zeros(2, int))
    seeds.release()
    env.close(terminate=True)
    assert seeds.num_resets == {2: 5, 3: 7}
