"""Reads training files: Python that defines `config`, or Tune experiments in YAML or JSON."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.errors import InputError, nearest, own_traceback
from rllib_weighted.cli.parsing import parse_json_object, read_stop
from rllib_weighted.cli.settings import algorithm_config, apply_settings

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig

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
