from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from rllib_weighted.core.contexts import context_problems, resolve_contexts
from rllib_weighted.core.envs import context_keys


def _problems(given: Any, env: Any = "LunarLander-v3", **kwargs: Any) -> list[str]:
    settings = {"num_workers": 2, "env": env, "backend": "gymnasium", **kwargs}
    return list(context_problems("worker_env_config", given, **settings))


class Own(gym.Env):
    pass


class Named(gym.Env):
    def __init__(self, size: int = 3, render_mode: str | None = None) -> None:
        pass


class Open(gym.Env):
    def __init__(self, size: int = 3, **kwargs: Any) -> None:
        pass


def test_a_list_is_taken_as_it_is_and_a_function_asked_for_each_worker() -> None:
    assert resolve_contexts(None, 3) == []
    assert resolve_contexts([{"a": 1}], 3) == [{"a": 1}]
    assert resolve_contexts(lambda worker: {"a": worker}, 3) == [{"a": 0}, {"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "given",
    [
        None,
        [{}, {"gravity": -5.0}],
        ({"enable_wind": True}, {"max_episode_steps": 10}),
        lambda worker: {"wind_power": float(worker)},
    ],
)
def test_good_contexts(given: Any) -> None:
    assert _problems(given) == []


@pytest.mark.parametrize("given", [[{}], [{}, {}, {}]])
def test_a_list_has_one_for_each_worker(given: Any) -> None:
    (text,) = _problems(given)
    assert text.startswith(
        "`worker_env_config` should be a list of 2 dicts, one per worker, found "
        f"{len(given)}: add or remove some"
    )
    assert _problems(given, any_number=True) == []


def test_an_empty_list_is_no_context_at_all() -> None:
    (text,) = _problems([], any_number=True)
    assert "should be a list of one dict or more, found 0" in text


def test_an_unknown_key_is_named_once_with_the_known_ones() -> None:
    (text,) = _problems([{"gravty": 1}, {"gravty": 2}])
    assert "keys that 'LunarLander-v3' takes (render_mode, continuous, gravity, enable_wind" in text
    assert text.endswith("found 'gravty' for worker 0; did you mean 'gravity'?")
    (text,) = _problems([{}, {"zzz": 2}])
    assert text.endswith("found 'zzz' for worker 1: rename or remove it")


@pytest.mark.parametrize("bad", [{1: 2}, 3, [("gravity", 1)], None])
def test_contexts_are_dicts_of_texts(bad: Any) -> None:
    (text,) = _problems([{}, bad])
    assert f"should hold dicts with texts as keys, found {bad!r} for worker 1" in text


@pytest.mark.parametrize("bad", [3, "gravity", {"gravity": 1}])
def test_other_things_are_refused(bad: Any) -> None:
    (text,) = _problems(bad)
    assert f"or a function from a worker's number to its dict, found {bad!r}" in text


def test_a_function_that_raises_shows_its_own_traceback_and_the_worker() -> None:
    def gravity(worker: int) -> dict[str, float]:
        return {"gravity": 1 / (1 - worker)}

    (text,) = _problems(gravity)
    first, *trace = text.splitlines()
    assert first.endswith("but raised for worker 1: mend the function")
    assert trace[-1] == "ZeroDivisionError: division by zero"
    assert trace[1].endswith("in gravity")  # Nothing of ours.
    assert "1 / (1 - worker)" in trace[2]


def test_what_a_registered_environment_takes_is_read_from_its_entry_point() -> None:
    keys = context_keys("CartPole-v1")
    assert keys is not None
    assert {"sutton_barto_reward", "render_mode", "max_episode_steps"} <= set(keys)
    assert "id" not in keys
    gym.register("rw-named-v0", Named)
    gym.register("rw-open-v0", Open)
    assert "size" in (context_keys("rw-named-v0") or [])
    assert context_keys("rw-open-v0") is None
    assert context_keys(Own) is None  # It reads from a dict what it likes.
    assert context_keys("NoSuchEnv-v0") is None


def test_what_envpool_takes_are_its_options() -> None:
    keys = context_keys("CartPole-v1", "envpool")
    assert keys is not None
    assert "max_episode_steps" in keys
    assert not {"num_envs", "seed"} & set(keys)
    assert context_keys("envpool:NoSuchEnv-v0") is None
    (text,) = _problems([{}, {"max_steps": 3}], env="envpool:CartPole-v1")
    assert text.endswith("found 'max_steps' for worker 1; did you mean 'max_episode_steps'?")
