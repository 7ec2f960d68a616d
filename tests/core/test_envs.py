"""Which environments can be built, and the remedy where one cannot."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from ray.rllib.env.env_context import EnvContext
from ray.tune import register_env
from ray.tune.registry import ENV_CREATOR

from rllib_weighted import WeightedPPOConfig
from rllib_weighted._private import tune_registry
from rllib_weighted.core.envs import env_creator, env_problem, share_gym_env


class Walk(gym.Env[Any, Any]):
    pass


def test_registered_and_own_environments_are_fine() -> None:
    register_env("a walk of my own", lambda context: Walk())
    for env in ("CartPole-v1", "LunarLander-v3", "a walk of my own", Walk):
        assert env_problem(env) is None


def test_no_environment() -> None:
    assert "config.environment" in str(env_problem(None))


def test_neither_name_nor_class() -> None:
    assert "must be a name or a class; found 3" in str(env_problem(3))


def test_creator_must_be_registered() -> None:
    assert "register it with `ray.tune.register_env" in str(env_problem(lambda context: Walk()))


def test_class_path() -> None:
    assert env_problem("gymnasium.envs.classic_control.CartPoleEnv") is None
    assert "cannot be imported" in str(env_problem("gymnasium.envs.classic_control.CartPoel"))


def test_unregistered_name_suggests_and_says_how_to_register() -> None:
    problem = str(env_problem("CartPoel-v1"))
    assert "'CartPoel-v1' is not registered" in problem
    assert "CartPole-v1" in problem
    assert "register_env" in problem


def test_unknown_version() -> None:
    assert "CartPole" in str(env_problem("CartPole-v9"))


def test_outdated_version_names_the_new_one() -> None:
    assert "LunarLander-v3" in str(env_problem("LunarLander-v2"))


def test_a_module_that_registers_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "walks_of_mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('mine/Walk-v3', CartPoleEnv)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert env_problem("walks_of_mine:mine/Walk-v3") is None
    problem = str(env_problem("walks_of_mine:mine/Wlak-v3"))
    assert "did you mean 'mine/Walk-v3'" in problem
    gym.registry.pop("mine/Walk-v3")


def test_unregistered_module() -> None:
    problem = str(env_problem("no_such_module:Walk-v0"))
    assert "names the module 'no_such_module', which cannot be imported" in problem


@pytest.mark.parametrize(
    ("env", "module", "extra"),
    [
        ("LunarLander-v3", "Box2D", "box2d"),
        ("CarRacing-v3", "Box2D", "box2d"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("ale_py:ALE/Pong-v5", "ale_py", "atari"),
        ("dm_control/walker-walk-v0", "shimmy", "dmc"),
        ("shimmy:dm_control/walker-walk-v0", "dm_control", "dmc"),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid", "minigrid"),
        ("minigrid:MiniGrid-DoorKey-5x5-v0", "minigrid", "minigrid"),
        ("minigrid:BabyAI-GoToObj-v0", "minigrid", "minigrid"),
    ],
)
def test_known_families_name_the_extra_that_brings_their_package(
    monkeypatch: pytest.MonkeyPatch, env: str, module: str, extra: str
) -> None:
    found = importlib.util.find_spec
    there = found("json")  # Of the others: a machine need not have every extra.
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else there
    )
    problem = str(env_problem(env))
    assert f"{module!r} is not installed: " in problem
    assert f'pip install "rllib-weighted[{extra}]"' in problem


def test_ids_that_nothing_has_registered_yet_say_who_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gym, "registry", {})  # Another test may have imported MiniGrid.
    problem = str(env_problem("MiniGrid-DoorKey-5x5-v0"))
    assert "name it 'minigrid:MiniGrid-DoorKey-5x5-v0'" in problem
    assert "`import minigrid`" in problem


def test_ids_with_the_module_that_registers_them() -> None:
    assert env_problem("minigrid:MiniGrid-DoorKey-5x5-v0") is None
    assert env_problem("ale_py:ALE/Pong-v5") is None


# Ids that only this process has registered


class _Counting(Walk):
    """An environment with a setting."""

    def __init__(self, start: int = 0) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,))
        self.action_space = gym.spaces.Discrete(2)
        self.start = start

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture
def own_id() -> Iterator[str]:
    env_id = f"OnlyInTheDriver{uuid.uuid4().hex}-v0"
    gym.register(env_id, entry_point=_Counting, kwargs={"start": 3}, max_episode_steps=4)
    yield env_id
    del gym.registry[env_id]


def test_a_gym_id_is_made_from_its_spec_where_it_is_not_registered(own_id: str) -> None:
    share_gym_env(own_id)
    spec = gym.registry.pop(own_id)
    try:
        env = env_creator(own_id)(EnvContext({}, worker_index=1))
        assert env.unwrapped.start == 3
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(4)] == [False] * 3 + [True]
        assert env_creator(own_id)(EnvContext({"start": 8}, worker_index=1)).unwrapped.start == 8
    finally:
        gym.registry[own_id] = spec


def test_an_id_that_is_registered_anew_is_shared_anew(own_id: str) -> None:
    share_gym_env(own_id)
    del gym.registry[own_id]
    gym.register(own_id, entry_point=_Counting, kwargs={"start": 5})
    share_gym_env(own_id)
    assert env_creator(own_id)(EnvContext({}, worker_index=1)).unwrapped.start == 5


def test_what_others_have_registered_is_left_alone(own_id: str) -> None:
    register_env(own_id, lambda context: Walk())
    for env in (own_id, "CartPole-v1", "no such id", Walk, None):
        share_gym_env(env)
    assert type(env_creator(own_id)(EnvContext({}, worker_index=1))) is Walk
    assert not tune_registry().contains(ENV_CREATOR, "CartPole-v1")


@pytest.mark.usefixtures("ray_session")
def test_remote_env_runners_sample_an_id_of_the_driver(own_id: str) -> None:
    config = (
        WeightedPPOConfig()
        .environment(own_id)
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5)
        .training(train_batch_size=20, minibatch_size=10, num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
    assert result["env_runners"]["num_env_steps_sampled"] == 20
    assert result["merge"]["num_dropped"] == 0
