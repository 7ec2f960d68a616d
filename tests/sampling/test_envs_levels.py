"""Levels and contexts of single sub-environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext

from rllib_weighted.core.levels import LevelDraws, LevelPool
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.sampling.envs import MOST_ENVIRONMENTS, EnvSeeds, SeededEnv, env_maker
from tests.sampling.envs import ScriptedEnv
from tests.sampling.helpers import make_config

ROOT = 9


class SizedEnv(gym.Env):
    """Shows its context in the observation: size, worker and vector index; ends at once."""

    made: list[Any] = []  # noqa: RUF012
    closed: list[Any] = []  # noqa: RUF012

    def __init__(self, context: Any) -> None:
        self.size = context["size"]  # A KeyError where nobody gives it.
        self.place = context.worker_index, context.vector_index
        bound = context.get("bound", 100)
        self.observation_space = gym.spaces.Box(0, bound, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.made.append(self.size)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.array([self.size, *self.place], np.float32), {"seed": seed}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array([self.size, *self.place], np.float32), 1.0, True, False, {}

    def close(self) -> None:
        self.closed.append(self.size)


@pytest.fixture(autouse=True)
def _nothing_made() -> None:
    SizedEnv.made.clear()
    SizedEnv.closed.clear()


def _seeded(pool: LevelPool, *, slot: int = 1, evaluation: bool = False) -> SeededEnv:
    return SeededEnv(
        ScriptedEnv(),
        seed=ROOT,
        slot=slot,
        num_slots=4,
        evaluation=evaluation,
        seeding="prioritized",
        pool=pool,
    )


def _seeds(env: Any, count: int) -> list[int]:
    return [env.reset()[1]["seed"] for _ in range(count)]


def _sizes(env: Any, count: int) -> list[float]:
    return [float(env.reset()[0][0]) for _ in range(count)]


def _config(unit: str = "env", env: Any = SizedEnv, **env_runners: Any) -> Any:
    settings = {"num_env_runners": 2, "num_envs_per_env_runner": 2, **env_runners}
    return make_config(env, **settings).training(merge_unit=unit)


def _built(config: Any, env_runner: int = 2, **env_config: Any) -> tuple[EnvSeeds, Any]:
    seeds = EnvSeeds(config, env_runner, ROOT)
    return seeds, seeds.build(config, EnvContext(env_config, worker_index=env_runner))


# Levels


def test_a_levels_episodes_have_its_seed() -> None:
    pool = LevelPool(8)
    env = _seeded(pool)
    # Of 4 slots this is the second: it is dealt levels 1 and 5, and then draws.
    assert _seeds(env, 2) == [pool.seed(ROOT, 1), pool.seed(ROOT, 5)]
    env.draws = LevelDraws(np.eye(8)[3], np.empty(0, np.int64))
    assert _seeds(env, 2) == [pool.seed(ROOT, 3)] * 2
    assert env.take_played() == {0: 1, 1: 5, 2: 3, 3: 3}
    assert env.take_played() == {3: 3}  # It may go on.


def test_levels_are_dealt_by_the_resets_since_the_rounds_start() -> None:
    env = _seeded(LevelPool(20))
    env.num_resets = env.resets_before_round = 17
    env.draws = LevelDraws(np.full(20, 0.05), np.arange(10, 20))
    _seeds(env, 2)
    assert env.take_played() == {17: 11, 18: 15}


def test_evaluation_keeps_away_from_the_levels() -> None:
    def seed(*counters: int) -> int:
        return environment_seed(ROOT, slot=1, num_slots=4, evaluation=True, counters=counters)

    assert _seeds(_seeded(LevelPool(3), evaluation=True), 3) == [seed(0, k) for k in range(3)]
    unlucky = LevelPool(2, seeds=(seed(0, 1), seed(0, 1, 1)))
    env = _seeded(unlucky, evaluation=True)
    assert _seeds(env, 3) == [seed(0, 0), seed(0, 2, 1), seed(0, 2)]
    assert env.take_played() == {}


# Contexts


def test_each_worker_has_its_own_context() -> None:
    contexts = [{"size": size} for size in (10, 20, 30, 40)]
    for env_runner, sizes in ((1, [10, 20]), (2, [30, 40])):
        _, env = _built(_config(worker_env_config=contexts), env_runner)
        for _ in range(2):
            obs, _ = env.reset()
            assert obs[:, 0].tolist() == sizes
            assert obs[:, 1:].tolist() == [[env_runner, 0], [env_runner, 1]]
    assert SizedEnv.made == [10, 20, 30, 40]  # Nothing is made twice.


def test_environments_that_are_made_anew_have_the_same_contexts() -> None:
    config = _config(worker_env_config=[{"size": size} for size in (10, 20, 30, 40)])
    seeds, env = _built(config, 2)
    env.reset()
    seeds.release()
    env.close()
    env = seeds.build(config, EnvContext({}, worker_index=2, recreated_worker=True))
    assert env.reset()[0][:, 0].tolist() == [30, 40]
    assert seeds.num_resets == {2: 2, 3: 2}


def test_all_sub_environments_of_an_env_runner_have_its_context() -> None:
    config = _config("env_runner", worker_env_config=lambda worker: {"size": 5 + worker})
    _, env = _built(config, 2, size=1)
    assert env.reset()[0][:, 0].tolist() == [6, 6]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_context_updates_the_env_config(asynchronous: bool) -> None:
    mode = "async" if asynchronous else "sync"
    config = _config(
        env=ScriptedEnv,
        gym_env_vectorize_mode=mode,
        worker_env_config=[{}, {}, {"length": 2}, {"rewards": {1: 7.0}}],
    )
    _, env = _built(config, 2, length=3)
    try:
        env.reset()
        rewards, ends = [], []
        for _ in range(3):
            _, reward, end, *_ = env.step(np.zeros(2, int))
            rewards.append(reward.tolist())
            ends.append(end.tolist())
        assert [reward[1] for reward in rewards] == [7, 1, 1]
        assert ends == [[False, False], [True, False], [False, True]]  # Its third is a reset.
    finally:
        env.close()


def test_evaluation_takes_all_contexts_in_turn() -> None:
    contexts = [{"size": size} for size in (10, 20, 30, 40)]
    training = _config(worker_env_config=contexts).evaluation(evaluation_num_env_runners=1)
    config = training.get_evaluation_config_object()
    config.num_envs_per_env_runner = 1
    _, env = _built(config, 1)
    assert _sizes_of(env, 6) == [10, 20, 30, 40, 10, 20]
    config.num_envs_per_env_runner = 2
    _, env = _built(config, 1)
    assert [env.reset()[0][:, 0].tolist() for _ in range(3)] == [[10, 20], [30, 40], [10, 20]]


def _sizes_of(env: Any, count: int) -> list[float]:
    return [float(env.reset()[0][0, 0]) for _ in range(count)]


def test_evaluation_takes_the_contexts_that_it_is_given() -> None:
    training = _config(worker_env_config=lambda worker: {"size": worker})
    training.evaluation(evaluation_config={"worker_env_config": [{"size": 77}, {"size": 78}]})
    config = training.get_evaluation_config_object()
    config.num_envs_per_env_runner = 1
    _, env = _built(config, 0)
    assert _sizes_of(env, 3) == [77, 78, 77]


def test_a_training_env_runner_evaluates_all_contexts_and_goes_back_to_its_own() -> None:
    contexts = [{"size": size} for size in (10, 20, 30, 40)]
    seeds, env = _built(_config(worker_env_config=contexts), 2)
    assert env.reset()[0][:, 0].tolist() == [30, 40]
    seeds.start_evaluation(3)
    # Slots 2 and 3 of 4.
    assert [env.reset()[0][:, 0].tolist() for _ in range(2)] == [[30, 40], [30, 40]]
    seeds.end_evaluation()
    seeds, env = _built(_config(worker_env_config=contexts, num_env_runners=0), 0)
    seeds.start_evaluation(3)
    env.reset()
    seeds.end_evaluation()
    assert env.reset()[0][:, 0].tolist() == [10, 20]


def test_levels_may_be_contexts() -> None:
    pool = [{"size": size} for size in range(50, 58)]
    options = {"env_seeding": "prioritized", "level_options": {"pool": pool}}
    seeds, env = _built(_config(**options), 2)
    draws = LevelDraws(np.eye(8)[7], np.arange(8))
    seeds.set_counters(ROOT, {2: 5, 3: 6}, draws)
    found = [env.reset(), env.reset(), env.reset()]
    # Dealt out among slots 2 and 3 of 4, and then drawn.
    assert [obs[:, 0].tolist() for obs, _ in found] == [[52, 53], [56, 57], [57, 57]]
    episodes = [
        [environment_seed(ROOT, slot=s, num_slots=4, evaluation=False, counters=(k + s + 3,))]
        for k in range(3)
        for s in (2, 3)
    ]
    assert [info["seed"].tolist() for _, info in found] == [
        episodes[2 * k] + episodes[2 * k + 1] for k in range(3)
    ]
    config = _config(**options).evaluation().get_evaluation_config_object()
    config.num_envs_per_env_runner = 1
    _, env = _built(config, 0)
    assert _sizes_of(env, 9) == [*range(50, 58), 50]


def test_environments_are_kept_for_a_few_contexts_and_closed() -> None:
    contexts: list[Any] = [{"size": size} for size in range(MOST_ENVIRONMENTS + 1)]
    context = EnvContext({}, worker_index=1)
    seeding = {"seed": ROOT, "slot": 0, "num_slots": 1, "evaluation": True, "seeding": "stream"}
    env = env_maker(SizedEnv, context, evaluation_contexts=contexts, **seeding)()
    assert _sizes(env, 2 * len(contexts)) == [*range(len(contexts))] * 2
    assert SizedEnv.closed[:2] == [0, 1]  # That which was used longest ago.
    assert len(SizedEnv.made) - len(SizedEnv.closed) == MOST_ENVIRONMENTS
    env.close()
    assert sorted(SizedEnv.made) == sorted(SizedEnv.closed)


def test_contexts_must_not_change_the_spaces() -> None:
    contexts: list[Any] = [{"size": 1}, {"size": 2, "bound": 5}]
    context = EnvContext({}, worker_index=1)
    seeding = {"seed": ROOT, "slot": 0, "num_slots": 1, "evaluation": True, "seeding": "stream"}
    env = env_maker(SizedEnv, context, evaluation_contexts=contexts, **seeding)()
    env.reset()
    with pytest.raises(ValueError, match=r"observation_space Box\(0.0, 100.0.*'bound': 5"):
        env.reset()
