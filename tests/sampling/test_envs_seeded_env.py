from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import register_env

from rllib_weighted.core.envs import OWN, TRUE_REWARD
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.sampling.envs import SeededEnv, env_maker
from tests.sampling.envs import INF, NAN, ScriptedEnv


def _make(seeding: Any = "stream", *, evaluation: bool = False, **config: Any) -> SeededEnv:
    env = ScriptedEnv(config)
    return SeededEnv(env, seed=9, slot=1, num_slots=4, evaluation=evaluation, seeding=seeding)


def _seeds(env: SeededEnv, count: int) -> list[Any]:
    return [env.reset(seed=123)[1]["seed"] for _ in range(count)]


def _expected(*counters: int, evaluation: bool = False) -> int:
    return environment_seed(9, slot=1, num_slots=4, evaluation=evaluation, counters=counters)


def _play(env: SeededEnv, steps: int) -> tuple[list[Any], list[Any]]:
    observations, rewards = [env.reset()[0]], []
    for _ in range(steps):
        observation, reward, *_ = env.step(0)
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards


# Seeds


def test_stream_gives_every_episode_its_own_seed() -> None:
    env = _make("stream")
    assert _seeds(env, 4) == [_expected(k) for k in range(4)]
    assert env.num_resets == 4


def test_fixed_repeats_the_first_seed() -> None:
    assert _seeds(_make("fixed"), 3) == [_expected(0)] * 3


@pytest.mark.parametrize("seeding", ["stream", "fixed"])
def test_evaluation_streams_by_version_and_leaves_training_alone(seeding: str) -> None:
    env = _make(seeding)
    _seeds(env, 2)
    env.evaluation, env.weights_version = True, 7
    assert _seeds(env, 2) == [_expected(7, k, evaluation=True) for k in range(2)]
    assert env.num_resets == 2
    env.evaluation = False
    assert _seeds(env, 1) == [_expected(2 if seeding == "stream" else 0)]


def test_counters_can_be_set() -> None:
    env = _make()
    env.num_resets, env.root_seed = 40, 10
    assert _seeds(env, 1) == [
        environment_seed(10, slot=1, num_slots=4, evaluation=False, counters=(40,))
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_counters_work_through_a_vector_environment_that_resets_itself(asynchronous: bool) -> None:
    cls = gym.vector.AsyncVectorEnv if asynchronous else gym.vector.SyncVectorEnv
    vector = cls([lambda: _make(length=2), lambda: _make("fixed", length=3)])
    try:
        vector.set_attr(f"{OWN}num_resets", [10, 20])
        seeds = vector.reset(seed=5)[1]["seed"]
        for _ in range(6):  # 2 steps and a reset twice; 3 steps, a reset and 2 steps.
            infos = vector.step(np.zeros(2, int))[-1]
            if "seed" in infos:
                seeds = np.where(infos["_seed"], infos["seed"], seeds)
        assert vector.get_attr(f"{OWN}num_resets") == (13, 22)
        assert seeds.tolist() == [_expected(12), _expected(0)]
    finally:
        vector.close()


# The user's attributes


class Namesake(gym.Env[Any, Any]):
    """An environment whose attributes are called as the wrapper's are."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        for name in vars(_make()).keys() - {"env"}:
            setattr(self, name, f"the user's {name}")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {"seed": seed}

    def remember(self) -> str:
        return "the user's method"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_attributes_are_those_of_the_users_environment(asynchronous: bool) -> None:
    cls = gym.vector.AsyncVectorEnv if asynchronous else gym.vector.SyncVectorEnv
    counted = {"slot": 1, "num_slots": 4, "evaluation": False, "seeding": "stream"}
    vector = cls([lambda: SeededEnv(Namesake(), seed=9, **counted)] * 2)
    public = [name for name in vars(_make()) if name[0] != "_" and name != "env"]
    assert {"slot", "evaluation", "invalid", "num_resets", "root_seed"} < set(public)
    try:
        for name in public:
            assert vector.get_attr(name) == (f"the user's {name}",) * 2
            vector.set_attr(name, [True, 7])
            assert vector.get_attr(name) == (True, 7)
        assert vector.call("remember") == ("the user's method",) * 2
        vector.set_attr("new", "value")
        assert vector.get_attr("new") == ("value", "value")
        assert vector.reset()[1]["seed"].tolist() == [_expected(0)] * 2
        assert vector.get_attr(f"{OWN}invalid") == (None, None)
    finally:
        vector.close()


def test_which_attributes_there_are_is_up_to_the_users_environment_too() -> None:
    env = _make()
    assert env.has_wrapper_attr("length")
    assert not env.has_wrapper_attr("slot")
    assert env.has_wrapper_attr(f"{OWN}slot")
    assert not env.set_wrapper_attr("slot", 3, force=False)
    assert env.get_wrapper_attr("reset") == env.reset  # Not past the counters.
    with pytest.raises(AttributeError):
        env.get_wrapper_attr("slot")


# Bad numbers


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_bad_reward_becomes_0_and_is_named(value: float) -> None:
    env = _make(rewards={2: value})
    assert _play(env, 3)[1] == [1.0, 0.0, 1.0]
    assert env.invalid == f"reward {value}"
    env.reset()
    infos = [env.step(0)[-1].get(TRUE_REWARD) for _ in range(3)]
    np.testing.assert_equal(infos, [None, value, None])


def test_in_evaluation_a_bad_reward_stays() -> None:
    env = _make(rewards={2: NAN}, evaluation=True)
    np.testing.assert_equal(_play(env, 3)[1], [1.0, NAN, 1.0])


def test_the_first_fault_is_the_one_that_is_named() -> None:
    env = _make(rewards={1: NAN, 2: INF}, observations={3: NAN})
    _play(env, 3)
    assert env.invalid == "reward nan"
    env.invalid = None
    env.step(0)
    assert env.invalid is None


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("space", ["box", "float64", "dict", "tuple"])
def test_a_bad_observation_becomes_the_last_good_one_and_is_named(space: str, value: float) -> None:
    env = _make(space=space, observations={2: value})
    env.reset()
    good = env.step(0)[0]
    part = {"dict": lambda o: o["a"], "tuple": lambda o: o[1]}.get(space, lambda o: o)
    expected = part(good).copy()
    assert env.invalid is None
    held = env.step(0)[0]
    np.testing.assert_array_equal(part(held), expected)
    assert expected[0] == 1  # That of step 1, though the environment wrote over its own array.
    assert env.observation_space.contains(held)
    assert env.invalid == "observation with NaN or infinite entries"
    assert part(env.step(0)[0])[0] == 3


@pytest.mark.parametrize("space", ["box", "dict", "tuple"])
def test_a_bad_first_observation_becomes_zeros(space: str) -> None:
    env = _make(space=space, observations={0: NAN})
    env.reset()
    env.step(0)  # What an earlier episode held is not this one's.
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)
    flat = gym.spaces.flatten(env.observation_space, obs)
    assert np.isfinite(flat).all()
    part = {"dict": lambda o: o["a"], "tuple": lambda o: o[1]}.get(space, lambda o: o)
    np.testing.assert_array_equal(part(obs), [0, 0])
    assert env.invalid is not None


@pytest.mark.parametrize("space", ["box", "int", "dict", "tuple"])
def test_sound_numbers_pass_unchanged(space: str) -> None:
    env, bare = _make(space=space), ScriptedEnv({"space": space})
    obs, info = env.reset()
    expected, _ = bare.reset(seed=info["seed"])
    for _ in range(3):
        for wrapped, own in zip(_leaves(obs), _leaves(expected), strict=True):
            np.testing.assert_array_equal(wrapped, own)
        (obs, reward, *_), (expected, own_reward, *_) = env.step(0), bare.step(0)
        assert reward == own_reward
    assert env.invalid is None


def _leaves(obs: Any) -> list[Any]:
    if isinstance(obs, dict):
        return list(obs.values())
    return list(obs) if isinstance(obs, tuple) else [obs]


@pytest.mark.parametrize("value", [2.0, 2, np.float32(2), np.float64(2), np.array(2.0), True])
def test_rewards_of_any_number_type_pass(value: Any) -> None:
    env = _make(rewards={1: value})
    assert float(_play(env, 1)[1][0]) == float(value)
    assert env.invalid is None


# Making


class _Registered(gym.Env):
    def __init__(self, context: Any) -> None:
        self.context = context


def _context(**config: Any) -> EnvContext:
    return EnvContext(config, worker_index=2, vector_index=3)


_SEEDING: dict[str, Any] = {
    "seed": 9,
    "slot": 1,
    "num_slots": 4,
    "evaluation": False,
    "seeding": "stream",
}


@pytest.mark.parametrize("env", [_Registered, lambda context: _Registered(context), "rw-test-env"])
def test_classes_functions_and_registered_names_get_the_context(env: Any) -> None:
    register_env("rw-test-env", _Registered)
    made = env_maker(env, _context(size=5), **_SEEDING)()
    assert isinstance(made, SeededEnv)
    context = made.unwrapped.context
    assert (context["size"], context.worker_index, context.vector_index) == (5, 2, 3)


def test_gymnasiums_names_get_the_env_config_as_arguments() -> None:
    made = env_maker("CartPole-v1", _context(sutton_barto_reward=True), **_SEEDING)()
    assert made.unwrapped._sutton_barto_reward is True
    assert made.spec is not None
    assert made.spec.max_episode_steps == 500
