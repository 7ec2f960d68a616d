"""Which environments can be built, and the remedy where one cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from ray.tune import register_env

from rllib_weighted.core.envs import env_problem


class Walk(gym.Env[Any, Any]):
    pass


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else found(name)
    )


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


@pytest.mark.parametrize("env", ["LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"])
def test_box2d_names_our_extra(monkeypatch: pytest.MonkeyPatch, env: str) -> None:
    without(monkeypatch, "Box2D")
    assert 'pip install "rllib-weighted[box2d]"' in str(env_problem(env))


@pytest.mark.parametrize(
    ("env", "module", "package"),
    [
        ("HalfCheetah-v5", "mujoco", "gymnasium[mujoco]"),
        ("ALE/Pong-v5", "ale_py", "gymnasium[atari]"),
        ("ale_py:ALE/Pong-v5", "ale_py", "gymnasium[atari]"),
        ("dm_control/walker-walk-v0", "shimmy", "shimmy[dm-control]"),
    ],
)
def test_known_families_name_their_package(
    monkeypatch: pytest.MonkeyPatch, env: str, module: str, package: str
) -> None:
    without(monkeypatch, module)
    assert package in str(env_problem(env))
