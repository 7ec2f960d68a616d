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
from rllib_weighted.cli.run_config import RunSettings, read_run, unused_names
from rllib_weighted.suggest import nearest, shown

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

# What a file may say of them; the command line's own are checked by Typer.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_samples": ("a whole number >= 1, or -1 for no end", lambda x: _is_count(x, -1) and x != 0),
    "checkpoint_freq": ("a whole number >= 0", lambda x: _is_count(x, 0)),
    "checkpoint_at_end": ("true or false", lambda x: isinstance(x, bool)),
    "storage_path": ("a folder or a URI", lambda x: isinstance(x, str)),
}
_OPTIONAL_KEYS = _RULES.keys()
_KEYS = {"run", "env", "stop", "config"} | _OPTIONAL_KEYS

_MAX_DEPTH = 50  # What copies and merges settings calls itself at each level.
_MAX_VALUES = 100_000
_MAX_NAME = 200  # Bytes; file systems end at 255, and Tune appends to the names of trials.

FILE_MODULE = "__rllib_train_file__"
"""The name under which a Python training file is loaded."""

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
        track: Where results go besides the experiment's folder: `"wandb"`, `"mlflow"`,
            `"tensorboard"`. A resumed experiment keeps those of its start if there are none here.
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
    track: Sequence[str] = _option(
        "--track",
        default=(),
        metavar="TRACKER",
        help="Send results to wandb, mlflow or tensorboard, too; may be repeated. Their usual "
        "environment variables count.",
    )
    verbose: bool = field(default=False, metadata={"option": VERBOSE})

    def __post_init__(self) -> None:
        if self.name and (folder_name(self.name) != self.name or not self.name.strip(".")):
            raise InputError(
                f"--name should be the name of one folder: visible characters without `/`, at most "
                f"{_MAX_NAME} bytes of them; found {shown(self.name)}: choose another name, and "
                "say with --storage-path where the folder lies"
            )

    def fixed_at_start(self) -> list[str]:
        """Returns the given options that have no effect on an experiment that is resumed."""
        names = ("num_samples", "checkpoint_freq", "checkpoint_at_end")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


def folder_name(text: str) -> str:
    """Returns a text as the name of a folder: `-` for `/` and what is not visible, the rest cut."""
    plain = "".join(char if char.isprintable() and char != "/" else "-" for char in text)
    return plain.encode()[:_MAX_NAME].decode(errors="ignore")


def takes_train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of `rllib train` to a command, which gets them as its argument `options`."""
    # Typer takes a repeated option only as a list.
    hints = {**get_type_hints(TrainOptions), "settings": list[str], "track": list[str]}
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
        name: Stem of the experiment's name; see `folder_name`.
        path: The file itself; None when there is none.
        tune_config: A file's own scheduler or search (`tune_config`), if it defines one.
        num_samples: How often each point of the search space is run, if the file says so.
        checkpoint_freq: Rounds between checkpoints, if the file says so.
        checkpoint_at_end: Whether a last checkpoint is written, if the file says so.
        storage_path: Where results go, if the file says so.
        arguments: `algo`, `env` and `config` of the command line, when there is no file.
        run: What the file says of the run itself: `run_config` and `callbacks`.
        warnings: What in the file looks like a mistake, a sentence each.
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
    run: RunSettings = field(default_factory=RunSettings)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = folder_name(self.name)

    def with_options(self, options: TrainOptions) -> TrainFile:
        """Returns what is asked for when the options' stop criteria and values go over these.

        Raises:
            InputError: `--stop` is wrong, or cannot go over what the file has; or the name would
                end up in the query of a URI.
        """
        if options.stop is not None and self.run.stopper is not None:
            raise InputError(
                f"--stop should be left out; found {shown(options.stop)}: the file's own stop "
                f"criterion is code ({shown(self.run.stopper)}), over which no other one goes"
            )
        values = {name: getattr(options, name) for name in _OPTIONAL_KEYS}
        given = {name: value for name, value in values.items() if value not in (None, "")}
        asked = dataclasses.replace(self, stop=merge_stop(self.stop, options.stop), **given)
        name = options.name or asked.name
        if "://" in (asked.storage_path or "") and set(name) & set("?#%"):
            raise InputError(
                f"--name should have none of `?`, `#` and `%`, which have a meaning in the URI "
                f"{asked.storage_path}; found {shown(name)}: choose another name"
            )
        return asked


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
        path: A `.py` file that defines `config` (an AlgorithmConfig) and optionally `stop`,
            `tune_config`, `run_config` and `callbacks`; or a `.yaml`, `.yml` or `.json` file of
            Tune experiments, `{name: {run: ..., env: ..., stop: ..., config: ...}}`.

    Raises:
        InputError: The file is missing, cannot be read, raises, or does not define what it must.
    """
    readers = {".py": _load_python, ".yaml": _load_text, ".yml": _load_text, ".json": _load_text}
    try:
        path = Path(path).expanduser().resolve()
        if path.suffix not in readers:
            raise InputError(f"{path}: a training file ends in {', '.join(readers)}")
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a training file")
        if not path.is_file():
            hint = nearest(path.name, [sibling.name for sibling in path.parent.glob("*")])
            raise InputError(f"there is no file {path}{hint}")
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: `~nobody`, or links in a circle.
        raise InputError(f"the training file {path} cannot be read: {error}") from None
    return readers[path.suffix](path, content)


def _load_python(path: Path, source: bytes) -> list[TrainFile]:
    found = _execute(path, source)
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig

    config, tune_config = found.get("config"), found.get("tune_config")
    if not isinstance(config, AlgorithmConfig):
        raise InputError(_no_config(path, found))
    if tune_config is not None and not isinstance(tune_config, TuneConfig):
        raise InputError(
            f"{path}: `tune_config` must be a ray.tune.TuneConfig; found {shown(tune_config)}"
        )
    run = read_run(found, str(path))
    stop = read_stop(None if run.stopper else run.stop, str(path))
    return [
        TrainFile(
            config.copy(copy_frozen=False),
            stop,
            path.stem,
            path,
            tune_config,
            storage_path=run.storage_path,
            run=run,
            warnings=unused_names(source, found, path),
        )
    ]


def _execute(path: Path, source: bytes) -> dict[str, Any]:  # A file may define anything.
    """Runs a Python file as a module and returns the names that it defines."""
    import ray.cloudpickle as cloudpickle

    module = types.ModuleType(FILE_MODULE)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    # Worker processes cannot import this module: pickle what it defines by value.
    cloudpickle.register_pickle_by_value(module)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
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


def _load_text(path: Path, encoded: bytes) -> list[TrainFile]:
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} should be text in UTF-8, found byte {encoded[error.start]:#04x} at position "
            f"{error.start}: save it as UTF-8"
        ) from None
    content = parse_json(text, str(path)) if path.suffix == ".json" else _parse_yaml(text, path)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} must hold experiments: name: {{run: ..., env: ..., config: ...}}; found "
            f"{_kind(content)}: {shown(content)}"
        )
    return [_read_experiment(path, str(name), spec) for name, spec in content.items()]


def _parse_yaml(text: str, path: Path) -> Any:  # Any YAML.
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise InputError(f"{path} is nested too deep: write it flatter") from None
    except Exception as error:  # PyYAML (6.0) lets through what a conversion raises: `!!int x`.
        raise InputError(f"{path} is not valid YAML: {error or shown(error)}") from None


def _read_experiment(path: Path, name: str, spec: object) -> TrainFile:
    what = f"{path}: experiment {name!r}"
    if not isinstance(spec, dict) or "run" not in spec:
        raise InputError(
            f"{what} must be a dict that names its algorithm, e.g. run: WeightedPPO; found "
            f"{shown(spec)}"
        )
    unknown = [f"{shown(key)}{nearest(key, _KEYS)}" for key in spec if key not in _KEYS]
    if unknown:
        known = ", ".join(sorted(_KEYS))
        raise InputError(f"{what} has unknown keys: {', '.join(unknown)} (known: {known})")
    config = algorithm_config(str(spec["run"]))
    settings = {} if spec.get("config") is None else spec["config"]
    if not isinstance(settings, dict):
        raise InputError(f"{what}: `config` must be a dict of settings; found {shown(settings)}")
    if spec.get("env") is not None:
        settings = {"env": spec["env"], **settings}
    apply_settings(config, settings, what)
    optional = {key: spec[key] for key in _OPTIONAL_KEYS & spec.keys()}
    for key, value in optional.items():
        should_be, holds = _RULES[key]
        if value is not None and not holds(value):
            raise InputError(f"{what}: `{key}` must be {should_be}; found {shown(value)}")
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
    _check_size(settings, what)
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


def _check_size(value: object, what: str) -> None:
    """Refuses what is nested so deep, or holds so much, that what handles it later would not end.

    YAML's aliases make both in a few bytes: `a: &a [*a]`, or nine lists of nine aliases each.
    """
    left: list[tuple[Any, int]] = [(value, 0)]
    num_values = 0
    while left:
        item, depth = left.pop()
        is_dict = isinstance(item, Mapping)
        inner = list(item.values()) if is_dict else item if isinstance(item, list | tuple) else ()
        num_values += len(inner)
        if depth > _MAX_DEPTH:
            raise InputError(
                f"{what} should be nested at most {_MAX_DEPTH} deep, found more, or a value that "
                "contains itself: write it flatter"
            )
        if num_values > _MAX_VALUES:
            raise InputError(
                f"{what} should hold at most {_MAX_VALUES:,} values (what an alias repeats counts "
                "each time), found more: read them from a file of their own"
            )
        left += [(child, depth + 1) for child in inner]


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
        raise InputError(f"--set must be KEY=VALUE, e.g. --set lr=0.0003; found {shown(text)}")
    try:
        return key, parse_json(value, f"--set {key}")
    except _NotJson:
        # What begins like JSON was meant as JSON: show the error.
        if value.lstrip()[:1] in ("{", "[", '"'):
            raise
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
            f'{{"training_iteration": 10}}; found {_kind(stop)}: {shown(stop)}'
        )
    flat = _flat(stop, what)
    wrong = {key: value for key, value in flat.items() if not _is_number(value)}
    if wrong:
        found = ", ".join(
            f"{shown(key)} is {_kind(value)} {shown(value)}" for key, value in wrong.items()
        )
        raise InputError(f"{what}: every value of `stop` must be a number; found: {found}")
    return flat


def merge_stop(stop: Mapping[str, float], override: str | None) -> dict[str, float]:
    """Returns a file's stop criteria with those of `--stop JSON` over them.

    A criterion set to `null` in the JSON is removed.
    """
    given = {} if override is None else _flat(parse_json_object(override, "--stop"), "--stop")
    read_stop({key: value for key, value in given.items() if value is not None}, "--stop")
    return {key: value for key, value in {**stop, **given}.items() if value is not None}


def _flat(stop: Mapping[str, Any], what: str) -> dict[str, Any]:  # Values are not checked yet.
    from ray.tune.utils import flatten_dict

    _check_size(stop, what)
    flat = flatten_dict({str(key): value for key, value in stop.items()})
    return {OLD_STOP_NAMES.get(key, key): value for key, value in flat.items()}


def _is_number(value: Any) -> bool:  # Whatever a user wrote.
    try:
        return not isinstance(value, bool) and not math.isnan(value)
    except (TypeError, OverflowError):  # No number, or a whole one that no float can hold.
        return False


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Returns the dict of a JSON text; see `parse_json`."""
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise InputError(
            f"{what} must be a JSON object {{...}}; found {_kind(value)}: {shown(value)}"
        )
    return value


class _NotJson(InputError):
    """A text is not JSON at all."""


def parse_json(text: str, what: str) -> Any:  # Any JSON.
    """Returns the value of a JSON text.

    Args:
        text: The JSON text.
        what: What holds it, for the message: `--stop`, or a file's name.

    Raises:
        InputError: The text is not JSON, and the message points at the position; or it is nested
            deeper, or has a longer number, than Python reads.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        # A window around the position, so that the caret stays under it on a narrow terminal.
        start = max(0, error.colno - 1 - 40)
        part = line[start : start + 76]
        caret = " " * (error.colno - 1 - start) + "^"
        where = f"line {error.lineno}, column {error.colno}"
        raise _NotJson(
            f"{what} is not valid JSON: {error.msg} ({where})\n\n  {part}\n  {caret}\n\n"
            'Names and texts stand in double quotes, e.g. {"training_iteration": 10}; '
            "on a shell, put single quotes around the whole."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what} should be nested at most {_MAX_DEPTH} deep and hold no whole number of more "
            f"than {sys.get_int_max_str_digits()} digits, found {shown(text)}: {error}"
        ) from None


def _kind(value: object) -> str:
    """Returns the type of a value in JSON's words: `null`, `a number`, `a text`, `a list`."""
    names = {"NoneType": "null", "bool": "a boolean", "str": "a text"}
    names |= dict.fromkeys(("int", "float"), "a number")
    return names.get(type(value).__name__, f"a {type(value).__name__}")
