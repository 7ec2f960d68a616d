"""Reads training files: Python that defines `config`, or Tune experiments in YAML or JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.cluster import InputError, nearest, own_traceback
from rllib_weighted.core.envs import env_problem

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import ResultGrid, TuneConfig

# Reads what a user types: JSON options, `KEY=VALUE` settings, stop criteria


# Names of stop criteria that RLlib's old API stack reported, and what reports the same today.
OLD_STOP_NAMES = {
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_return_mean": "env_runners/episode_return_mean",
    "env_runners/episode_reward_mean": "env_runners/episode_return_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled": "num_env_steps_sampled_lifetime",
    "iterations": "training_iteration",
}


def parse_json(text: str, what: str) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The JSON text.
        what: What holds it, for the message: `--stop`, or a file's name.

    Raises:
        InputError: The text is not JSON. The message points at the position.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if text.strip() else ""
        # A window around the position, so that the caret stays under it on a narrow terminal.
        start = max(0, error.colno - 1 - 40)
        shown = line[start : start + 76]
        caret = " " * (error.colno - 1 - start) + "^"
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{what} is not valid JSON: {error.msg} ({where})\n\n  {shown}\n  {caret}\n\n"
            'Names and texts stand in double quotes, e.g. {"training_iteration": 10}; '
            "on a shell, put single quotes around the whole."
        ) from None


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Returns the dict of a JSON text; see `parse_json`."""
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object {{...}}; found {_kind(value)}: {text}")
    return value


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits `KEY=VALUE`; VALUE is read as JSON, or taken as text where it is none.

    Raises:
        InputError: There is no `=`, or no KEY before it.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set must be KEY=VALUE, e.g. --set lr=0.0003; found {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        # A text that begins like JSON is a typing error, not a text.
        if value.lstrip()[:1] in ("{", "[", '"'):
            return key, parse_json(value, f"--set {key}")
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of several `--set KEY=VALUE`; the last of a key counts."""
    return dict(parse_setting(text) for text in texts)


def read_stop(stop: Mapping[str, Any] | None, what: str) -> dict[str, float]:
    """Returns checked stop criteria as Tune takes them: flat keys with `/`, numbers.

    Names of the old API stack become those that are reported today.

    Args:
        stop: Criteria, possibly nested; any one of them that is reached ends a trial.
        what: Where they come from, for the message.

    Raises:
        InputError: `stop` is not a dict, or a value is not a number.
    """
    if stop is None:
        return {}
    if not isinstance(stop, Mapping):
        raise InputError(
            f"{what}: `stop` must be a dict of metric to number, e.g. "
            f'{{"training_iteration": 10}}; found {_kind(stop)}: {stop!r}'
        )
    flat = _flatten(stop)
    wrong = {key: value for key, value in flat.items() if not _is_number(value)}
    if wrong:
        found = ", ".join(f"{key!r} is {_kind(value)} {value!r}" for key, value in wrong.items())
        raise InputError(f"{what}: every value of `stop` must be a number; found: {found}")
    return {OLD_STOP_NAMES.get(key, key): value for key, value in flat.items()}


def merge_stop(stop: Mapping[str, Any], override: str | None) -> dict[str, float]:
    """Returns a file's stop criteria with those of `--stop JSON` over them.

    A criterion set to `null` in the JSON is removed.
    """
    merged = dict(stop)
    if override is not None:
        given = _flatten(parse_json_object(override, "--stop"))
        removed = {OLD_STOP_NAMES.get(key, key) for key, value in given.items() if value is None}
        kept = {key: value for key, value in given.items() if value is not None}
        merged.update(read_stop(kept, "--stop"))
        merged = {key: value for key, value in merged.items() if key not in removed}
    return merged


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and not math.isnan(value)


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a dict",
    }
    return names.get(type(value), f"a {type(value).__name__}")


# Puts settings by name on an `AlgorithmConfig`, and refuses names that it does not have


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


MODULE_NAME = "__rllib_train_file__"
_OPTIONAL_KEYS = {"num_samples", "checkpoint_freq", "checkpoint_at_end", "storage_path"}
_SPEC_KEYS = {"run", "env", "stop", "config"} | _OPTIONAL_KEYS


@dataclass
class TrainFile:
    """What a training file asks for.

    Args:
        config: The algorithm's config; may hold Tune search spaces.
        stop: Flat stop criteria: a trial ends as soon as one is reached.
        name: Stem of the experiment's name.
        path: The file itself; None when there is none.
        tune_config: A file's own scheduler or search (`tune_config`), if it defines one.
        num_samples: How often each point of the search space is run, if the file says so.
        checkpoint_freq: Rounds between checkpoints, if the file says so.
        checkpoint_at_end: Whether a last checkpoint is written, if the file says so.
        storage_path: Where results go, if the file says so.
        arguments: `algo`, `env` and `config` of the command line, when there is no file.
    """

    config: AlgorithmConfig
    stop: dict[str, float] = field(default_factory=dict)
    name: str = "train"
    path: Path | None = None
    tune_config: TuneConfig | None = None
    num_samples: int | None = None
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool | None = None
    storage_path: str | None = None
    arguments: dict[str, Any] | None = None


def load_file(path: str | Path) -> TrainFile:
    """Returns what a training file with a single experiment asks for; see `load_experiments`."""
    experiments = load_experiments(path)
    if len(experiments) > 1:
        names = ", ".join(experiment.name for experiment in experiments)
        raise InputError(f"{path} holds {len(experiments)} experiments ({names}), not one")
    return experiments[0]


def load_experiments(path: str | Path) -> list[TrainFile]:
    """Reads a training file.

    Args:
        path: A `.py` file that defines `config` (an AlgorithmConfig) and optionally `stop` and
            `tune_config`; or a `.yaml`, `.yml` or `.json` file of Tune experiments,
            `{name: {run: ..., env: ..., stop: ..., config: ...}}`.

    Raises:
        InputError: The file is missing, cannot be read, raises, or does not define what it must.
    """
    path = Path(path).expanduser().resolve()
    readers = {".py": _load_python, ".yaml": _load_yaml, ".yml": _load_yaml, ".json": _load_json}
    if path.suffix not in readers:
        raise InputError(f"{path}: a training file ends in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(_missing(path))
    return readers[path.suffix](path)


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder, not a training file"
    siblings = path.parent.glob("*") if path.parent.is_dir() else []
    hint = nearest(path.name, [sibling.name for sibling in siblings])
    return f"there is no file {path}{hint}"


def _load_python(path: Path) -> list[TrainFile]:
    found = _execute(path)
    config = found.get("config")
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig

    if not isinstance(config, AlgorithmConfig):
        raise InputError(_no_config(path, found))
    tune_config = found.get("tune_config")
    if tune_config is not None and not isinstance(tune_config, TuneConfig):
        raise InputError(f"{path}: `tune_config` must be a ray.tune.TuneConfig: {tune_config!r}")
    stop = read_stop(found.get("stop"), str(path))
    return [
        TrainFile(
            config=config.copy(copy_frozen=False),
            stop=stop,
            name=path.stem,
            path=path,
            tune_config=tune_config,
        )
    ]


def _execute(path: Path) -> dict[str, Any]:
    """Runs a Python file as a module of its own and returns the names it defines."""
    import ray.cloudpickle as cloudpickle

    module = types.ModuleType(MODULE_NAME)
    module.__file__ = str(path)
    sys.modules[MODULE_NAME] = module
    # No worker process can import this module: what it defines travels by value.
    cloudpickle.register_pickle_by_value(module)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        if error.filename != str(path):
            raise InputError(f"{path} raised:\n\n{own_traceback(error, path)}") from None
        raise InputError(f"{path} is not Python:\n\n{own_traceback(error, path)}") from None
    except SystemExit as error:
        raise InputError(f"{path} left by itself with sys.exit({error.code!r})") from None
    except Exception as error:
        raise InputError(f"{path} raised:\n\n{own_traceback(error, path)}") from None
    return module.__dict__


def _no_config(path: Path, found: dict[str, Any]) -> str:
    example = "config = WeightedPPOConfig().environment('CartPole-v1')"
    if "config" in found:
        value = found["config"]
        hint = " (a function: call it)" if callable(value) else ""
        return (
            f"{path}: `config` must be an AlgorithmConfig, e.g. `{example}`; "
            f"found a {type(value).__name__}{hint}"
        )
    names = [
        f"{name} ({type(value).__name__})"
        for name, value in found.items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType | type)
    ]
    defined = ", ".join(names) or "no names"
    return f"{path} does not define `config`, e.g. `{example}`; it defines: {defined}"


def _load_json(path: Path) -> list[TrainFile]:
    return _experiments(path, parse_json_object(path.read_text(), str(path)))


def _load_yaml(path: Path) -> list[TrainFile]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    return _experiments(path, content)


def _experiments(path: Path, content: Any) -> list[TrainFile]:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} must hold experiments: name: {{run: ..., env: ..., config: ...}}")
    return [_experiment(path, str(name), spec) for name, spec in content.items()]


def _experiment(path: Path, name: str, spec: Any) -> TrainFile:
    what = f"{path}: experiment {name!r}"
    if not isinstance(spec, dict) or "run" not in spec:
        raise InputError(f"{what} must be a dict that names its algorithm, e.g. run: WeightedPPO")
    _refuse_unknown(what, spec, _SPEC_KEYS)
    config = algorithm_config(str(spec["run"]))
    settings = spec.get("config") or {}
    if not isinstance(settings, dict):
        raise InputError(f"{what}: `config` must be a dict of settings; found {settings!r}")
    if spec.get("env") is not None:
        settings = {"env": spec["env"], **settings}
    apply_settings(config, settings, what)
    optional = {key: spec[key] for key in spec if key in _OPTIONAL_KEYS}
    return TrainFile(
        config=config, stop=read_stop(spec.get("stop"), what), name=name, path=path, **optional
    )


def _refuse_unknown(what: str, given: Iterable[str], known: set[str]) -> None:
    unknown = [f"{key!r}{nearest(key, known)}" for key in given if key not in known]
    if unknown:
        raise InputError(
            f"{what} has unknown keys: {', '.join(unknown)} (known: {', '.join(sorted(known))})"
        )


# What a training is asked for and what it leaves behind


@dataclass(frozen=True)
class TrainOptions:
    """The options of `rllib train`, with the same meaning.

    Args:
        stop: Stop criteria as JSON, over those of the file; `null` removes one.
        settings: `KEY=VALUE` texts, over those of the file.
        num_samples: How often each point of the search space is run.
        storage_path: Where results go: a folder or a URI.
        name: The experiment's name; its results lie in `storage_path/name`.
        checkpoint_freq: Rounds between checkpoints; 0 writes none on the way. None writes one a
            minute and keeps the last three.
        checkpoint_at_end: Whether a trial that ends writes a checkpoint.
        resume: Continue an experiment instead of starting one.
        ray_address: The Ray cluster to join.
        ray_num_cpus: CPUs that a local Ray counts with.
        local_mode: Samples and learns in a single process, for debugging.
        verbose: Shows Ray's logs.
    """

    stop: str | None = None
    settings: tuple[str, ...] = ()
    num_samples: int | None = None
    storage_path: str | None = None
    name: str | None = None
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool | None = None
    resume: bool = False
    ray_address: str | None = None
    ray_num_cpus: int | None = None
    local_mode: bool = False
    verbose: bool = False

    def fixed_at_start(self) -> list[str]:
        """Returns the given options that have no effect on an experiment that is resumed."""
        given = {
            "--num-samples": self.num_samples,
            "--checkpoint-freq": self.checkpoint_freq,
            "--checkpoint-at-end": self.checkpoint_at_end,
        }
        return [name for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Args:
        results: Tune's results, one per trial.
        experiment: The experiment's folder or URI.
        exit_code: 0, or 130 or 143 if it was interrupted (and can be resumed).
        checkpoints: The last checkpoint of each trial that has one.
    """

    results: ResultGrid
    experiment: str
    exit_code: int = 0
    checkpoints: list[str] = field(default_factory=list)
