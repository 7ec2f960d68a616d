"""Puts settings by name on an `AlgorithmConfig`, and refuses names that it does not have.

RLlib itself sets an unknown name silently as an attribute, and the run ignores it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.errors import InputError, nearest
from rllib_weighted.envs import env_problem

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

# Settings of RLlib's old API stack that have an exact counterpart.
OLD_SETTINGS = {
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "custom_resources_per_worker": "custom_resources_per_env_runner",
    "evaluation_num_workers": "evaluation_num_env_runners",
    "sgd_minibatch_size": "minibatch_size",
    "num_sgd_iter": "num_epochs",
}
# Names that RLlib translates itself.
_TRANSLATED = {"lambda", "framework", "callbacks", "input", "model_config", "multiagent"}


def algorithm_config(name: str) -> AlgorithmConfig:
    """Returns the default config of an algorithm named as in `--algo` or a file's `run`.

    Raises:
        InputError: There is no algorithm of that name.
    """
    from ray.rllib.algorithms.registry import ALGORITHMS
    from ray.tune.registry import TRAINABLE_CLASS, _global_registry

    try:
        if name in ALGORITHMS:
            # Not through Tune's registry, which would import every algorithm of RLlib.
            return ALGORITHMS[name]()[0].get_default_config()
        if _global_registry.contains(TRAINABLE_CLASS, name):
            return _global_registry.get(TRAINABLE_CLASS, name).get_default_config()
    except (ImportError, AttributeError) as error:
        raise InputError(f"algorithm {name!r} cannot be loaded: {error}") from None
    known = ["WeightedPPO", *sorted(ALGORITHMS)]
    raise InputError(
        f"unknown algorithm {name!r}{nearest(name, known)} (known: {', '.join(known)})"
    )


def apply_settings(config: AlgorithmConfig, settings: Mapping[str, Any], what: str) -> None:
    """Sets settings on a config in place.

    A dotted name reaches into a dict (`env_config.size`). A value `{"grid_search": [...]}`
    becomes a Tune grid.

    Args:
        config: An unfrozen config.
        settings: Names and values.
        what: Where they come from, for the message: `--set`, `--config`, or a file's name.

    Raises:
        InputError: Names that the config does not have (all of them at once), or a value that
            it refuses.
    """
    values = config.to_dict()
    names = {OLD_SETTINGS.get(key, key): key for key in settings}
    known = _setting_names(config, values)
    unknown = [
        f"{key!r}{nearest(name.split('.')[0], known)}"
        for name, key in names.items()
        if name.split(".")[0] not in known
    ]
    if unknown:
        kind = type(config).__name__
        raise InputError(f"{what}: {kind} has no setting {'; and none '.join(unknown)}")
    for name, key in names.items():
        head, *rest = name.split(".")
        value = settings[key]
        if rest:
            value = _nested(_current(config, head), rest, value, f"{what} {key}")
        try:
            _set(config, head, value)
        except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
            raise InputError(f"{what} {key}={settings[key]!r}: {error}") from None


def _setting_names(config: AlgorithmConfig, values: Mapping[str, Any]) -> set[str]:
    """Returns the names that can be set on a config: public attributes and properties."""
    public = {name for name in values if not name.startswith("_")}
    behind_properties = {
        name[1:]
        for name in values
        if name.startswith("_") and getattr(getattr(type(config), name[1:], None), "fset", None)
    }
    return public | behind_properties | _TRANSLATED


def variants(config: AlgorithmConfig) -> Iterator[tuple[str, AlgorithmConfig]]:
    """Yields the points of a config's search space, each with its name, as unfrozen copies.

    A config without a search space is its only point, and has no name. Values are drawn for
    spaces that are not a grid.
    """
    from ray.tune.impl.placeholder import (
        create_resolvers_map,
        inject_placeholders,
        resolve_placeholders,
    )
    from ray.tune.search.variant_generator import generate_variants

    # As the Tuner does it: what `sample_from` computes comes last, and sees everything else.
    resolvers = create_resolvers_map()
    space = inject_placeholders(copy.deepcopy(config.to_dict()), resolvers)
    # A fixed state, so that drawing here leaves the global generator alone.
    for resolved, values in generate_variants(space, random_state=0):
        name = ", ".join(f"{'.'.join(map(str, path))}={v!r}" for path, v in resolved.items())
        resolve_placeholders(values, resolvers)
        variant = config.copy(copy_frozen=False)
        changed = {path[0] for path in [*resolved, *resolvers]}
        variant.update_from_dict({key: values[key] for key in changed})
        yield name, variant


def config_problems(config: AlgorithmConfig) -> list[str]:
    """Returns everything that is wrong with a config, or with a point of its search space."""
    problems: dict[str, None] = {}  # A dict keeps the order and drops what repeats.
    for name, variant in variants(config):
        problem = None if variant.is_offline else env_problem(variant.env)
        try:
            if problem is None:
                variant.validate()
        except (ValueError, TypeError, KeyError, ImportError) as error:
            problem = f"{error}" + (f" (at {name})" if name else "")
        if problem is not None:
            problems[problem] = None
    return list(problems)


def use_single_process(config: AlgorithmConfig) -> None:
    """Lets a config sample and learn in the trial's own process, with as many environments."""
    runners = config.num_env_runners
    config.env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=max(1, runners) * config.num_envs_per_env_runner,
    )
    config.learners(num_learners=0)
    if hasattr(config, "merge_unit"):
        # Without env-runner processes, each environment is a worker.
        config.merge_unit = "env"


def _set(config: AlgorithmConfig, name: str, value: Any) -> None:
    if name == "model_config":
        config.rl_module(model_config=value)
    elif name == "env":
        config.environment(value)
    else:
        config.update_from_dict({name: as_search_space(value)})


def as_search_space(value: Any) -> Any:
    """Returns a value with every `{"grid_search": [...]}` in it as Tune's grid search.

    Tune's own marker is that very dict; this checks its form.
    """
    if isinstance(value, dict):
        if set(value) == {"grid_search"} and not isinstance(value["grid_search"], list):
            raise ValueError(f"`grid_search` takes a list; found {value['grid_search']!r}")
        return {key: as_search_space(item) for key, item in value.items()}
    return value


def _current(config: AlgorithmConfig, name: str) -> Any:
    if name != "model_config":
        return config.to_dict().get(name)
    model_config = config.model_config
    if dataclasses.is_dataclass(model_config) and not isinstance(model_config, type):
        return dataclasses.asdict(model_config)
    return model_config


def _nested(current: Any, path: list[str], value: Any, what: str) -> dict[str, Any]:
    if current is not None and not isinstance(current, Mapping):
        raise InputError(f"{what}: {'.'.join(path)!r} does not lie in a dict; it is {current!r}")
    result = copy.deepcopy(dict(current or {}))
    head, *rest = path
    result[head] = _nested(result.get(head), rest, value, what) if rest else value
    return result
