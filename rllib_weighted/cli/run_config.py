"""What a training file may say of the run itself: `run_config`, `callbacks`, and names not taken.

The command has storage, names, checkpoints and callbacks of its own. What a file's `run_config`
says takes the place of their defaults, and the command's options go over it. What the command could
not heed is refused: nothing that a file defines is silently without effect.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli import InputError
from rllib_weighted.suggest import shown

if TYPE_CHECKING:
    from ray.tune import Callback, CheckpointConfig, RunConfig, Stopper

KNOWN_NAMES = ("config", "stop", "tune_config", "run_config", "callbacks")
_ALIKE = 0.82  # Of difflib: `run_cfg` is meant as `run_config`, `env_config` is not.

# What of a `RunConfig` the command cannot heed, and the remedy.
_REFUSED = {
    "storage_filesystem": "give `storage_path` as a URI, e.g. 's3://bucket/path'",
    "progress_reporter": "the command shows progress itself",
    "verbose": "the command shows progress itself, and Ray's logs with -v",
    "worker_runtime_env": "use ray.tune.RunConfig: this is a setting of Ray Train",
    "logging_config": "use ray.tune.RunConfig: this is a setting of Ray Train",
}


@dataclass(frozen=True)
class RunSettings:
    """What a training file says of the run.

    Args:
        callbacks: Tune's callbacks; the command's own come on top of them.
        name: The experiment's name, if the file gives one.
        storage_path: Where results go, if the file says so.
        stop: Stop criteria of any kind that Tune takes, not checked yet; None where there are none.
        others: Further arguments of `ray.tune.RunConfig`, to be handed on.
    """

    callbacks: Sequence[Callback] = ()
    name: str | None = None
    storage_path: str | None = None
    stop: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def checkpoint_config(
        self, *, frequency: int | None, at_end: bool | None, num_to_keep: int
    ) -> CheckpointConfig:
        """Returns when checkpoints are written and which are kept.

        Args:
            frequency: Rounds between checkpoints, as the command's options say; None leaves it to
                the file, and where that says nothing, checkpoints come by time.
            at_end: Whether the last round gets one, likewise.
            num_to_keep: How many are kept if they come by time and the file does not say.
        """
        from ray.tune import CheckpointConfig

        of_file = self.others.get("checkpoint_config") or CheckpointConfig()
        rounds = frequency if frequency is not None else self.checkpoint_frequency
        keep = of_file.num_to_keep
        if at_end is None:
            at_end = True if of_file.checkpoint_at_end is None else of_file.checkpoint_at_end
        return dataclasses.replace(
            of_file,
            num_to_keep=num_to_keep if keep is None and rounds is None else keep,
            checkpoint_frequency=rounds or 0,
            checkpoint_at_end=at_end,
        )

    @property
    def stopper(self) -> Stopper | Callable[..., bool] | None:
        """The stop criterion, if it is a `Stopper` or a function; None if it is a dict, or none."""
        is_code = callable(self.stop) and not isinstance(self.stop, type)
        return self.stop if is_code else None

    @property
    def checkpoint_frequency(self) -> int | None:
        """Rounds between checkpoints; None where the file leaves it open (0 is Ray's default)."""
        of_file = self.others.get("checkpoint_config")
        return (of_file.checkpoint_frequency or None) if of_file is not None else None


def read_run(found: Mapping[str, Any], what: str) -> RunSettings:
    """Returns what the names of a training file say of the run.

    Args:
        found: The names that the file defines.
        what: The file, for messages.

    Raises:
        InputError: `run_config` or `callbacks` is of the wrong kind, says what the command cannot
            heed, or says what `stop` says too.
    """
    callbacks = _checked_callbacks(found.get("callbacks"), f"{what}: `callbacks`")
    value = found.get("run_config")
    if value is None:
        return RunSettings(callbacks, stop=found.get("stop"))
    run_config = _tune_run_config(value, what)
    _refuse_unheeded(run_config, what)
    if run_config.stop is not None and found.get("stop") is not None:
        raise InputError(
            f"{what} should say once when to stop; found `stop` = {shown(found['stop'])} and "
            f"`run_config.stop` = {shown(run_config.stop)}: leave one of them out"
        )
    of_run = _checked_callbacks(run_config.callbacks, f"{what}: `run_config.callbacks`")
    names = ("failure_config", "checkpoint_config", "sync_config", "log_to_file")
    return RunSettings(
        callbacks=[*of_run, *callbacks],
        name=_checked_name(run_config.name, what),
        storage_path=_own_storage_path(run_config.storage_path),
        stop=run_config.stop if run_config.stop is not None else found.get("stop"),
        others={name: getattr(run_config, name) for name in names},
    )


def _tune_run_config(value: object, what: str) -> RunConfig:
    """Returns a `run_config` as Tune takes it; one of Ray Train with what both of them know."""
    import ray.train
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig

    base = RunConfig.__mro__[1]  # Ray 2.60 keeps the one that both were once derived from.
    if isinstance(value, base):
        return value  # type: ignore[return-value]
    if not isinstance(value, ray.train.RunConfig):
        hint = ": call it" if isinstance(value, type) else ""
        raise InputError(
            f"{what}: `run_config` should be a ray.tune.RunConfig; found {shown(value)}{hint}"
        )
    _refuse_unheeded(value, what)
    checkpoints, failures = value.checkpoint_config, value.failure_config
    return RunConfig(
        name=value.name,
        storage_path=value.storage_path,
        callbacks=value.callbacks,
        failure_config=FailureConfig(max_failures=failures.max_failures) if failures else None,
        checkpoint_config=CheckpointConfig(
            num_to_keep=checkpoints.num_to_keep,
            checkpoint_score_attribute=checkpoints.checkpoint_score_attribute,
            checkpoint_score_order=checkpoints.checkpoint_score_order,
        )
        if checkpoints
        else None,
    )


def _refuse_unheeded(run_config: Any, what: str) -> None:  # Of Tune or of Ray Train.
    default = type(run_config)()
    for name, remedy in _REFUSED.items():
        value = getattr(run_config, name, None)
        if value is not None and value != getattr(default, name, None):
            raise InputError(
                f"{what}: `run_config.{name}` should be left out; found {shown(value)}: {remedy}"
            )


def _own_storage_path(path: str | os.PathLike[str] | None) -> str | None:
    """Returns the storage that a `RunConfig` names; None if it is Ray's default."""
    from ray.tune import RunConfig

    if path is None or str(path) == str(RunConfig().storage_path):
        return None
    return os.fspath(path)


def _checked_name(name: object, what: str) -> str | None:
    from rllib_weighted.cli.options import folder_name

    if name is None:
        return None
    if not isinstance(name, str) or folder_name(name) != name or not name.strip("."):
        raise InputError(
            f"{what}: `run_config.name` should be the name of one folder; found {shown(name)}: "
            "choose another one, and say with `storage_path` where the folder lies"
        )
    return name


def _checked_callbacks(value: object, what: str) -> list[Callback]:
    from ray.rllib.callbacks.callbacks import RLlibCallback
    from ray.tune import Callback

    if value is None:
        return []
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if isinstance(item, Callback):
            continue
        kind = item if isinstance(item, type) else type(item)
        remedy = "derive yours from ray.tune.Callback"
        if issubclass(kind, RLlibCallback):
            remedy = "those of RLlib go into the config: config.callbacks(...)"
        elif issubclass(kind, Callback):
            remedy = "call it, Tune takes no classes"
        raise InputError(
            f"{what} should be a list of ray.tune.Callback objects; found {shown(item)}: {remedy}"
        )
    if items is not value:
        raise InputError(f"{what} should be a list; found {shown(value)}: put it into [ ]")
    return list(items)


# Names that look like a mistake


def unused_names(source: bytes, found: Mapping[str, object], path: Path) -> list[str]:
    """Returns a warning for every name of a training file that was probably meant as a known one.

    A file may define what it likes: imports, functions, classes, constants. A name is suspicious
    if the file assigns it and never reads it, and it is spelled much like a known name that the
    file does not define, or holds what only a known name can hold.

    Args:
        source: The file's text.
        found: The names that it defines.
        path: The file.
    """
    tree = ast.parse(source)
    read = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    missing = [name for name in KNOWN_NAMES if name not in found]
    warnings = []
    for name in _assigned(tree):
        if name in KNOWN_NAMES or name in read or name.startswith("_") or name not in found:
            continue
        if meant := _meant(name, found[name], missing):
            warnings.append(f"`{name}` in {path.name} is used by nothing; {meant}")
    return warnings


def _assigned(tree: ast.Module) -> list[str]:
    """Returns the names that a module assigns outside of functions and classes, in order."""
    names: dict[str, None] = {}
    todo: list[ast.AST] = list(reversed(tree.body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None
        todo += reversed(list(ast.iter_child_nodes(node)))
    return list(names)


def _meant(name: str, value: object, missing: Sequence[str]) -> str:
    """Returns what was meant by a name that nothing reads; "" if it is not known to be wrong."""
    from ray.tune import RunConfig, TuneConfig

    if _is_alike(name, "param_space"):
        return "search spaces go into the config: config.training(lr=tune.grid_search([...]))"
    kinds = {"run_config": RunConfig.__mro__[1], "tune_config": TuneConfig}
    for known, kind in kinds.items():
        if isinstance(value, kind) and known in missing:
            return f"did you mean {known!r}?"
    alike = [known for known in missing if _is_alike(name, known)]
    return f"did you mean {alike[0]!r}?" if alike else ""


def _is_alike(name: str, known: str) -> bool:
    return difflib.SequenceMatcher(None, name.lower(), known).ratio() >= _ALIKE
