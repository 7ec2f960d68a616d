"""Reads training files: Python, YAML or JSON.

Everything ends in a `TrainFile`: an algorithm's config and stop criteria. Wrong input raises an
`InputError` that says where it is and what is known.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli import InputError
from rllib_weighted.cli.options import TrainOptions, folder_name
from rllib_weighted.cli.parsing import is_count, kind, merge_stop, parse_json, read_stop
from rllib_weighted.cli.run_config import RunSettings, read_run, unused_names
from rllib_weighted.cli.settings import algorithm_config, apply_settings
from rllib_weighted.suggest import nearest, shown

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig

# What a file may say of them; the command line's own are checked by Typer.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_samples": ("a whole number >= 1, or -1 for no end", lambda x: is_count(x, -1) and x != 0),
    "checkpoint_freq": ("a whole number >= 0", lambda x: is_count(x, 0)),
    "checkpoint_at_end": ("true or false", lambda x: isinstance(x, bool)),
    "storage_path": ("a folder or a URI", lambda x: isinstance(x, str)),
}
_OPTIONAL_KEYS = _RULES.keys()
_KEYS = {"run", "env", "stop", "config"} | _OPTIONAL_KEYS

FILE_MODULE = "__rllib_train_file__"
"""The name under which a Python training file is loaded."""


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
            f"{kind(content)}: {shown(content)}"
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
