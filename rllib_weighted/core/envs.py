"""Whether an environment can be built, and what to do where it cannot."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rllib_weighted._private import tune_registry
from rllib_weighted.suggest import nearest, shown

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec
    from ray.rllib.env.env_context import EnvContext

# Gymnasium and Ray are imported inside functions: the `rllib` command starts without them.

OWN = "rllib_weighted/"
"""What `get_attr` and `set_attr` know this module's own attributes by: every other name is the
user's, and no attribute of an environment can be called this."""

TRUE_REWARD = "rllib_weighted/reward"
"""Key of a step's info: the reward in whose place 0 was put."""


class _Family(NamedTuple):
    """A family of environments whose simulator is a separate package.

    Attributes:
        name: What people call it.
        ids: What its ids begin with that no process knows before `registrar` is imported.
        entry_point: What the entry points of its registered environments begin with.
        modules: The modules that must be there.
        extra: The extra of this package that brings them.
        registrar: The module that registers its ids; "": gymnasium does.
    """

    name: str
    ids: tuple[str, ...]
    entry_point: str
    modules: tuple[str, ...]
    extra: str
    registrar: str = ""


_FAMILIES = (
    _Family(
        "Box2D",
        ("LunarLander", "BipedalWalker", "CarRacing"),
        "gymnasium.envs.box2d",
        ("Box2D",),
        "box2d",
    ),
    _Family("MuJoCo", (), "gymnasium.envs.mujoco", ("mujoco",), "mujoco"),
    _Family("Atari", ("ALE/",), "ale_py", ("ale_py",), "atari", "ale_py"),
    _Family(
        "DeepMind Control", ("dm_control/",), "shimmy", ("shimmy", "dm_control"), "dmc", "shimmy"
    ),
    _Family(
        "MiniGrid", ("MiniGrid-", "BabyAI-"), "minigrid", ("minigrid",), "minigrid", "minigrid"
    ),
)


ENVPOOL_PREFIX = "envpool:"


def envpool_id(env: Any, backend: str) -> Any:
    """Returns EnvPool's id of an environment that EnvPool steps; None if gymnasium does.

    Args:
        env: What an `AlgorithmConfig` holds as `env`.
        backend: The setting `env_backend`.
    """
    if isinstance(env, str) and env.startswith(ENVPOOL_PREFIX):
        return env.removeprefix(ENVPOOL_PREFIX)
    return env if backend == "envpool" else None


def env_problem(env: Any, backend: str = "gymnasium") -> str | None:
    """Returns why an environment cannot be built and the remedy, or None if nothing is wrong.

    Nothing is built: only the registries of gymnasium, Tune and EnvPool are read, and the
    environment's module is imported.

    Args:
        env: What an `AlgorithmConfig` holds as `env`: a registered name, or a class or creator.
        backend: The setting `env_backend`.
    """
    import gymnasium as gym

    if env is None:
        return "no environment is set: use `config.environment(...)` or `--env`"
    pool_id = envpool_id(env, backend)
    if pool_id is not None:
        return _envpool_problem(pool_id)
    if isinstance(env, type) or _in_tune_registry(env):
        return None
    if not isinstance(env, str):
        remedy = "register it with `ray.tune.register_env(name, creator)` and use that name"
        hint = f"; a creator has no place there: {remedy}" if callable(env) else ""
        return f"`env` must be a name or a class; found {shown(env)}{hint}"
    if missing := _missing_package(env):
        return missing
    if unregistered := _unregistered(env):
        return unregistered
    if "." in env and ":" not in env:
        return _class_path_problem(env)
    module, _, env_id = env.rpartition(":")  # gymnasium's "module:id": the module registers it.
    try:
        if module:
            importlib.import_module(module)
    except Exception as error:  # The module may raise anything.
        return (
            f"environment {env!r} names the module {module!r}, which cannot be imported: "
            f"{_one_line(error)}. It should be on the Python path of every process"
        )
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        return (
            f"environment {env!r} is not registered: {_one_line(error)}"
            f"{nearest(env_id, gym.registry) or '.'} An environment of your own: register it in "
            "the training file with `ray.tune.register_env(name, creator)`, or pass its class to "
            "`config.environment()`"
        )
    return _dependency_problem(env, spec)


def _envpool_problem(env: Any) -> str | None:
    """Returns why EnvPool cannot build an environment, and the remedy."""
    import gymnasium as gym

    if not isinstance(env, str):
        return (
            '`env_backend`="envpool" steps EnvPool\'s own environments, by their ids, found '
            f'{shown(env)}: name one of those, or leave `env_backend` at "gymnasium"'
        )
    if importlib.util.find_spec("envpool") is None:
        return (
            f"environment {env!r} should be stepped by EnvPool, which is not installed: "
            'pip install "rllib-weighted[envpool]"'
        )
    import envpool

    known = envpool.list_all_envs()
    if env in known:
        return _pool_problem(env)
    hint = nearest(env, known) or ": `envpool.list_all_envs()` lists those that there are"
    if env in gym.registry:
        hint += ', or use gymnasium\'s: leave `env_backend` and "envpool:" out'
    return f"EnvPool has no environment {env!r}{hint}"


def _pool_problem(env: str) -> str | None:
    """Returns why one of EnvPool's environments cannot be trained in, and the remedy."""
    import envpool
    import gymnasium as gym

    try:
        spec = envpool.make_spec(env)
        with warnings.catch_warnings():
            # EnvPool's bounds are float64, its spaces float32; it makes them when asked.
            warnings.filterwarnings("ignore", ".*precision lowered by casting")
            space = spec.observation_space
    except Exception as error:  # Some need libraries of the system, or files.
        return f"EnvPool cannot make {env!r} here: {_one_line(error)}"
    if spec.config.max_num_players > 1:
        return (
            f"EnvPool's {env!r} is played by up to {spec.config.max_num_players}: WeightedPPO "
            "merges single-agent environments, use one of those"
        )
    if isinstance(space, gym.spaces.Dict):
        return (
            f"EnvPool's {env!r} observes {shown(space)}, which should be an array: EnvPool's "
            "environments cannot be wrapped, use one of gymnasium's with "
            "`gymnasium.wrappers.FlattenObservation` around it"
        )
    return None


def _in_tune_registry(env: Any) -> bool:
    from ray.tune.registry import ENV_CREATOR

    # Ray makes ASCII of a name once it runs: no other can be in there.
    is_name = isinstance(env, str) and env.isascii()
    return is_name and bool(tune_registry().contains(ENV_CREATOR, env))


def _class_path_problem(env: str) -> str | None:
    """Checks a name like `package.module.Class`, which RLlib takes too."""
    module, _, name = env.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)
    except Exception as error:  # A module may raise anything when it is imported.
        return f"environment {env!r} cannot be imported: {_one_line(error)}"
    return None


def _missing_package(env: str, entry_point: str = "") -> str | None:
    """Returns the remedy for an environment of a known family whose package is not installed."""
    module, _, env_id = env.rpartition(":")
    for family in _FAMILIES:
        named = env_id.startswith(family.ids) or (module and module == family.registrar)
        if not named and not entry_point.startswith(family.entry_point):
            continue
        for needed in family.modules:
            if importlib.util.find_spec(needed) is None:
                return (
                    f"environment {env!r} belongs to {family.name}, and its package {needed!r} is "
                    f'not installed: pip install "rllib-weighted[{family.extra}]"'
                )
    return None


def _unregistered(env: str) -> str | None:
    """Returns the remedy for an id of a known family that nothing has registered yet."""
    import gymnasium as gym

    for family in _FAMILIES:
        if family.registrar and env.startswith(family.ids) and env not in gym.registry:
            return (
                f"environment {env!r} is not registered yet: name it '{family.registrar}:{env}', "
                f"or put `import {family.registrar}` into the training file"
            )
    return None


def _dependency_problem(env: str, spec: EnvSpec) -> str | None:
    """Returns why the entry point of a registered environment cannot be imported."""
    from gymnasium.envs.registration import load_env_creator

    entry_point = spec.entry_point
    if not isinstance(entry_point, str):
        return None
    if missing := _missing_package(env, entry_point):
        return missing
    try:
        load_env_creator(entry_point)
    except Exception as error:  # A module may raise anything when it is imported.
        return f"environment {env!r} is registered but cannot be loaded: {_one_line(error)}"
    return None


class _FromSpec:
    """Makes a gymnasium environment from its spec: the process need not know its id."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec

    def __call__(self, context: EnvContext) -> gym.Env[Any, Any]:
        import gymnasium as gym

        return gym.make(self.spec, **context)


def share_gym_env(env: Any) -> None:
    """Makes a gymnasium id that the user has registered known to all processes of a run.

    gymnasium's registry is that of one process: with an id that only the driver has registered,
    RLlib's (2.60) env runners and Tune's trials fail. Tune's registry is that of the whole Ray.

    Args:
        env: What an `AlgorithmConfig` holds as `env`. gymnasium's own ids, and those that Tune's
            registry has by the user, are left alone.
    """
    import gymnasium as gym
    from ray.tune.registry import ENV_CREATOR, register_env

    spec = gym.registry.get(env) if isinstance(env, str) else None
    if spec is None or str(spec.entry_point).startswith("gymnasium."):
        return
    if _in_tune_registry(env):
        known = tune_registry().get(ENV_CREATOR, env)
        if not isinstance(known, _FromSpec) or known.spec is spec:
            return
    register_env(env, _FromSpec(spec))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def env_creator(env: Any) -> Callable[[EnvContext], gym.Env[Any, Any]]:
    """Resolves `config.env` (a registered name, a class or a creator) as RLlib does."""
    import gymnasium as gym
    from ray.tune.registry import ENV_CREATOR

    creator: Callable[[EnvContext], gym.Env[Any, Any]]
    creator = tune_registry().get(ENV_CREATOR, env) if _in_tune_registry(env) else env
    return creator if callable(creator) else lambda context: gym.make(env, **context)


def context_keys(env: Any, backend: str = "gymnasium") -> list[str] | None:
    """Returns the keys of `env_config` that an environment takes; None if that cannot be told.

    A class or creator of the user's reads what it likes; so does one with `**kwargs`.

    Args:
        env: What an `AlgorithmConfig` holds as `env`.
        backend: The setting `env_backend`.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    pool_id = envpool_id(env, backend)
    if pool_id is not None:
        return _envpool_keys(pool_id)
    if not isinstance(env, str) or _in_tune_registry(env):
        return None
    try:
        spec = gym.spec(env)
        entry_point = spec.entry_point
        make = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        taken = inspect.signature(make).parameters  # type: ignore[arg-type]
    except (gym.error.Error, ImportError, AttributeError, TypeError, ValueError):
        return None  # `env_problem` says what is wrong with it.
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return None
    of_make = inspect.signature(gym.make).parameters.keys() - {"id", "kwargs"}
    return [*taken, *sorted(of_make - taken.keys())]


def _envpool_keys(env: Any) -> list[str] | None:
    """Returns EnvPool's options of an environment, without those that `EnvPoolVectorEnv` sets."""
    if _envpool_problem(env):
        return None
    import envpool

    own = {"num_envs", "batch_size", "num_threads", "seed", "env_seed"}
    return [name for name in envpool.make_spec(env).config._fields if name not in own]
