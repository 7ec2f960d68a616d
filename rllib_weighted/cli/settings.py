"""Applies what a user sets to an algorithm's config; unknown names are told from known ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rllib_weighted._private import tune_registry
from rllib_weighted.cli import InputError
from rllib_weighted.cli.parsing import check_size
from rllib_weighted.suggest import nearest, shown

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

# Settings that are no attributes: RLlib translates these names itself.
_TRANSLATED = {"lambda", "framework", "callbacks", "input", "model_config", "multiagent"}


def algorithm_config(name: str) -> AlgorithmConfig:
    """Returns the default config of an algorithm named as in `--algo` or a file's `run`.

    Raises:
        InputError: There is no algorithm of that name.
    """
    from ray.rllib.algorithms.registry import ALGORITHMS
    from ray.tune.registry import TRAINABLE_CLASS

    try:
        if name in ALGORITHMS:
            # Not through Tune's registry, which would import every algorithm of RLlib.
            return ALGORITHMS[name]()[0].get_default_config()
        # Ray's registry makes ASCII of a name once Ray runs.
        if name.isascii() and tune_registry().contains(TRAINABLE_CLASS, name):
            return tune_registry().get(TRAINABLE_CLASS, name).get_default_config()
    except (ImportError, AttributeError) as error:
        raise InputError(f"algorithm {shown(name)} cannot be loaded: {error}") from None
    known = ["WeightedPPO", *sorted(ALGORITHMS)]
    raise InputError(
        f"unknown algorithm {shown(name)}{nearest(name, known)} (known: {', '.join(known)})"
    )


def apply_settings(config: AlgorithmConfig, settings: Mapping[str, Any], what: str) -> None:
    """Sets settings on a config in place.

    A dotted name reaches into a dict (`env_config.size`). A value `{"grid_search": [...]}`
    becomes a Tune grid.

    Args:
        config: An unfrozen config.
        settings: Names and values, which are of any type.
        what: Where they come from, for the message: `--set`, `--config`, or a file's name.

    Raises:
        InputError: Names that the config does not have (all of them at once), or a value that
            it refuses.
    """
    check_size(settings, what)
    known = _setting_names(config)
    paths = {key: OLD_SETTINGS.get(key, str(key)).split(".") for key in settings}
    unknown = [
        f"{shown(key)}{nearest(head, known)}"
        for key, (head, *rest) in paths.items()
        if head not in known or "" in rest
    ]
    if unknown:
        kind = type(config).__name__
        raise InputError(f"{what}: {kind} has no setting {'; and none '.join(unknown)}")
    for key, (head, *rest) in paths.items():
        value = settings[key]
        if rest:
            value = _nested(_current(config, head), rest, value, f"{what} {key}")
        try:
            if head == "model_config":
                config.rl_module(model_config=value)
            else:
                _check_grids(value)
                config.update_from_dict({head: value})
        except Exception as error:  # Whatever RLlib raises over a value of the wrong kind.
            raise InputError(f"{what} {key}={shown(settings[key])}: {error}") from None


def _setting_names(config: AlgorithmConfig) -> set[str]:
    """Returns the names that can be set on a config: public attributes and properties."""
    # The second are this package's: `to_dict` leaves some of them out while they are not changed.
    names = {*config.to_dict(), *(name for name in vars(config) if hasattr(type(config), name))}
    public = {name for name in names if not name.startswith("_")}
    hidden = {name[1:] for name in names - public}
    with_setter = {name for name in hidden if getattr(getattr(type(config), name, None), "fset", 0)}
    return public | with_setter | _TRANSLATED


def _current(config: AlgorithmConfig, name: str) -> object:
    if name != "model_config":
        return config.to_dict().get(name)
    model_config = config.model_config
    if dataclasses.is_dataclass(model_config) and not isinstance(model_config, type):
        return dataclasses.asdict(model_config)
    return model_config


def _nested(current: object, path: list[str], value: object, what: str) -> dict[str, object]:
    """Returns a copy of a dict (None counts as empty) with the value at `path` replaced."""
    if current is not None and not isinstance(current, Mapping):
        raise InputError(
            f"{what}: {'.'.join(path)!r} does not lie in a dict; it is {shown(current)}: leave "
            f"`.{'.'.join(path)}` out"
        )
    result = copy.deepcopy(dict(current or {}))
    head, *rest = path
    result[head] = _nested(result.get(head), rest, value, what) if rest else value
    return result


def _check_grids(value: object) -> None:
    """Refuses a `{"grid_search": ...}` (Tune's own marker of a grid) that holds no list."""
    if isinstance(value, dict):
        if set(value) == {"grid_search"} and not isinstance(value["grid_search"], list):
            raise ValueError(f"`grid_search` takes a list; found {shown(value['grid_search'])}")
        for item in value.values():
            _check_grids(item)


def use_single_process(config: AlgorithmConfig) -> None:
    """Moves sampling and learning into the trial's process; the number of environments stays."""
    num_envs = max(1, config.num_env_runners) * config.num_envs_per_env_runner
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
    config.learners(num_learners=0)
    if hasattr(config, "merge_unit"):
        # Without env-runner processes, each environment is a worker.
        config.merge_unit = "env"
