"""Reads what a user asks for: the options of `rllib train`, training files, `--set` and `--stop`.

Everything ends in a `TrainFile`: an algorithm's config and stop criteria. Wrong input raises an
`InputError` that says where it is and what is known.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
import math
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Option

from rllib_weighted._private import tune_registry
from rllib_weighted.cli import InputError
from rllib_weighted.suggest import nearest

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig

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

# Metrics of RLlib's old API stack that stop criteria name, and their names today.
OLD_STOP_NAMES = {
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_return_mean": "env_runners/episode_return_mean",
    "env_runners/episode_reward_mean": "env_runners/episode_return_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled": "num_env_steps_sampled_lifetime",
    "iterations": "training_iteration",
}

# Settings that are no attributes: RLlib translates these names itself.
_TRANSLATED = {"lambda", "framework", "callbacks", "input", "model_config", "multiagent"}

_OPTIONAL_KEYS = {"num_samples", "checkpoint_freq", "checkpoint_at_end", "storage_path"}
_KEYS = {"run", "env", "stop", "config"} | _OPTIONAL_KEYS

VERBOSE = Option("--verbose", "-v", "--log-info", help="Show Ray's logs.")


def _option(*names: str, default: object = None, **more: Any) -> Any:
    """Returns a field of `TrainOptions` that is also an option of the command line.

    Args:
        names: Its flags, if they are not just the field's name.
        default: The field's default.
        more: What else `typer.Option` takes.
    """
    return field(default=default, metadata={"option": Option(*names, **more)})


@dataclass(frozen=True)
class TrainOptions:
    """The options of `rllib train`, each spelled once: for the command line and for Python.

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
        storage_timeout: Seconds for which a remote storage may be away; None takes the config's
            `storage_timeout_s`.
        ray_address: The Ray cluster to join.
        ray_num_cpus: CPUs that a local Ray counts with.
        local_mode: Samples and learns in a single process, for debugging.
        verbose: Shows Ray's logs.
    """

    stop: str | None = _option(
        "--stop",
        "-s",
        metavar="JSON",
        help="Stop criteria over those of the file, e.g. "
        "'{\"training_iteration\": 10}'; null removes one.",
    )
    settings: Sequence[str] = _option(
        "--set",
        default=(),
        metavar="KEY=VALUE",
        help="A setting of the config; may be repeated. A dot reaches into a dict.",
    )
    num_samples: int | None = _option(min=1, help="Trials per point of the search.")
    storage_path: str | None = _option(
        help="Folder or URI of the results.", show_default="~/ray_results"
    )
    name: str | None = _option(
        "--name", "--experiment-name", "-n", help="Name of the experiment's folder."
    )
    checkpoint_freq: int | None = _option(
        min=0,
        help="Rounds between checkpoints, of which all are kept; 0 writes none on the way.",
        show_default="one a minute, the last three are kept",
    )
    checkpoint_at_end: bool | None = _option(help="Save when a trial ends.", show_default="on")
    resume: bool = _option(
        "--resume",
        default=False,
        help="Continue the experiment --name (or the newest of this file) from its last "
        "checkpoints, with the settings and samples of its start.",
    )
    storage_timeout: float | None = _option(
        min=0,
        metavar="SECONDS",
        help="How long a remote storage may be away before training ends.",
        show_default="storage_timeout_s of the config, else 300",
    )
    ray_address: str | None = _option(
        help="Ray cluster to join.", show_default="RAY_ADDRESS, else a local Ray of its own"
    )
    ray_num_cpus: int | None = _option(min=1, help="CPUs that a local Ray counts with.")
    local_mode: bool = _option(
        "--local-mode", default=False, help="Sample and learn in one process per trial, to debug."
    )
    verbose: bool = field(default=False, metadata={"option": VERBOSE})

    def fixed_at_start(self) -> list[str]:
        """Returns the given options that have no effect on an experiment that is resumed."""
        names = ("num_samples", "checkpoint_freq", "checkpoint_at_end")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


def takes_train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of `rllib train` to a command, which gets them as its argument `options`."""
    # Typer takes a repeated option only as a list.
    hints = {**get_type_hints(TrainOptions), "settings": list[str]}
    added = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=Annotated[hints[option.name], option.metadata["option"]],
        )
        for option in dataclasses.fields(TrainOptions)
    ]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:  # The command's arguments.
        options = TrainOptions(**{name: values.pop(name) for name in hints})
        command(**values, options=options)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "options"]
    vars(wrapper)["__signature__"] = signature.replace(parameters=[*own, *added])
    return wrapper


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
    arguments: dict[str, Any] | None = None  # Settings may be of any type.

    def with_options(self, options: TrainOptions) -> TrainFile:
        """Returns what is asked for when the options' stop criteria and values go over these."""
        values = {name: getattr(options, name) for name in _OPTIONAL_KEYS}
        given = {name: value for name, value in values.items() if value not in (None, "")}
        return dataclasses.replace(self, stop=merge_stop(self.stop, options.stop), **given)


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
    readers = {".py": _load_python, ".yaml": _load_text, ".yml": _load_text, ".json": _load_text}
    if path.suffix not in readers:
        raise InputError(f"{path}: a training file ends in {', '.join(readers)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a training file")
    if not path.is_file():
        hint = nearest(path.name, [sibling.name for sibling in path.parent.glob("*")])
        raise InputError(f"there is no file {path}{hint}")
    return readers[path.suffix](path)


def _load_python(path: Path) -> list[TrainFile]:
    found = _execute(path)
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig

    config, tune_config = found.get("config"), found.get("tune_config")
    if not isinstance(config, AlgorithmConfig):
        raise InputError(_no_config(path, found))
    if tune_config is not None and not isinstance(tune_config, TuneConfig):
        raise InputError(f"{path}: `tune_config` must be a ray.tune.TuneConfig: {tune_config!r}")
    stop = read_stop(found.get("stop"), str(path))
    config = config.copy(copy_frozen=False)
    return [TrainFile(config, stop, path.stem, path, tune_config)]


def _execute(path: Path) -> dict[str, Any]:  # A file may define anything.
    """Runs a Python file as a module and returns the names that it defines."""
    import ray.cloudpickle as cloudpickle

    module = types.ModuleType("__rllib_train_file__")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    # Worker processes cannot import this module: pickle what it defines by value.
    cloudpickle.register_pickle_by_value(module)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except SystemExit as error:
        raise InputError(f"{path} left by itself with sys.exit({error.code!r})") from None
    except Exception as error:
        is_its_syntax = isinstance(error, SyntaxError) and error.filename == str(path)
        what = "is not Python" if is_its_syntax else "raised"
        raise InputError(f"{path} {what}:\n\n{_own_traceback(error, path)}") from None
    return module.__dict__


def _own_traceback(error: BaseException, path: Path) -> str:
    """Returns the traceback of an error that a user's file raised, as Python would print it.

    Args:
        error: What the file raised.
        path: The file. Frames before its first one (ours, which executed it) are left out.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != str(path):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame)).rstrip()


def _no_config(path: Path, found: Mapping[str, object]) -> str:
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


def _load_text(path: Path) -> list[TrainFile]:
    import yaml

    text = path.read_text()
    try:
        is_json = path.suffix == ".json"
        content = parse_json_object(text, str(path)) if is_json else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} must hold experiments: name: {{run: ..., env: ..., config: ...}}")
    return [_read_experiment(path, str(name), spec) for name, spec in content.items()]


def _read_experiment(path: Path, name: str, spec: object) -> TrainFile:
    what = f"{path}: experiment {name!r}"
    if not isinstance(spec, dict) or "run" not in spec:
        raise InputError(f"{what} must be a dict that names its algorithm, e.g. run: WeightedPPO")
    unknown = [f"{key!r}{nearest(key, _KEYS)}" for key in spec if key not in _KEYS]
    if unknown:
        known = ", ".join(sorted(_KEYS))
        raise InputError(f"{what} has unknown keys: {', '.join(unknown)} (known: {known})")
    config = algorithm_config(str(spec["run"]))
    settings = spec.get("config") or {}
    if not isinstance(settings, dict):
        raise InputError(f"{what}: `config` must be a dict of settings; found {settings!r}")
    if spec.get("env") is not None:
        settings = {"env": spec["env"], **settings}
    apply_settings(config, settings, what)
    optional = {key: spec[key] for key in _OPTIONAL_KEYS & spec.keys()}
    return TrainFile(config, read_stop(spec.get("stop"), what), name, path, **optional)


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
        if tune_registry().contains(TRAINABLE_CLASS, name):
            return tune_registry().get(TRAINABLE_CLASS, name).get_default_config()
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
        settings: Names and values, which are of any type.
        what: Where they come from, for the message: `--set`, `--config`, or a file's name.

    Raises:
        InputError: Names that the config does not have (all of them at once), or a value that
            it refuses.
    """
    known = _setting_names(config)
    paths = {key: OLD_SETTINGS.get(key, key).split(".") for key in settings}
    unknown = [
        f"{key!r}{nearest(head, known)}" for key, (head, *_) in paths.items() if head not in known
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
        except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
            raise InputError(f"{what} {key}={settings[key]!r}: {error}") from None


def _setting_names(config: AlgorithmConfig) -> set[str]:
    """Returns the names that can be set on a config: public attributes and properties."""
    names = set(config.to_dict())
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
        raise InputError(f"{what}: {'.'.join(path)!r} does not lie in a dict; it is {current!r}")
    result = copy.deepcopy(dict(current or {}))
    head, *rest = path
    result[head] = _nested(result.get(head), rest, value, what) if rest else value
    return result


def _check_grids(value: object) -> None:
    """Refuses a `{"grid_search": ...}` (Tune's own marker of a grid) that holds no list."""
    if isinstance(value, dict):
        if set(value) == {"grid_search"} and not isinstance(value["grid_search"], list):
            raise ValueError(f"`grid_search` takes a list; found {value['grid_search']!r}")
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


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of several `--set KEY=VALUE`; the last of a key counts."""
    return dict(parse_setting(text) for text in texts)


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits `KEY=VALUE`; VALUE is read as JSON, or as plain text if it is not JSON.

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
        # What begins like JSON was meant as JSON: show the error.
        if value.lstrip()[:1] in ("{", "[", '"'):
            return key, parse_json(value, f"--set {key}")
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def read_stop(stop: object, what: str) -> dict[str, float]:
    """Checks stop criteria and returns them as Tune takes them: flat keys with `/`, and numbers.

    Names of the old API stack are replaced by today's.

    Args:
        stop: Criteria, possibly nested; any one of them that is reached ends a trial. None is
            the same as no criteria.
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
    flat = _flat(stop)
    wrong = {key: value for key, value in flat.items() if not _is_number(value)}
    if wrong:
        found = ", ".join(f"{key!r} is {_kind(value)} {value!r}" for key, value in wrong.items())
        raise InputError(f"{what}: every value of `stop` must be a number; found: {found}")
    return flat


def merge_stop(stop: Mapping[str, float], override: str | None) -> dict[str, float]:
    """Returns a file's stop criteria with those of `--stop JSON` over them.

    A criterion set to `null` in the JSON is removed.
    """
    given = {} if override is None else _flat(parse_json_object(override, "--stop"))
    read_stop({key: value for key, value in given.items() if value is not None}, "--stop")
    return {key: value for key, value in {**stop, **given}.items() if value is not None}


def _flat(stop: Mapping[str, Any]) -> dict[str, Any]:  # Not checked yet.
    from ray.tune.utils import flatten_dict

    return {OLD_STOP_NAMES.get(key, key): value for key, value in flatten_dict(dict(stop)).items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Returns the dict of a JSON text; see `parse_json`."""
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object {{...}}; found {_kind(value)}: {text}")
    return value


def parse_json(text: str, what: str) -> Any:  # Any JSON.
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


def _kind(value: object) -> str:
    """Returns the type of a value in JSON's words: `null`, `a number`, `a text`, `a list`."""
    names = {"NoneType": "null", "int": "a number", "float": "a number", "str": "a text"}
    kind = type(value).__name__
    return names.get(kind, "a boolean" if kind == "bool" else f"a {kind}")
