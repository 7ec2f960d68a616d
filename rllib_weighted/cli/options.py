"""The options of `rllib train`, each spelled once: for the command line and for Python."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Option

from rllib_weighted.cli import InputError
from rllib_weighted.suggest import shown

if TYPE_CHECKING:
    pass
_MAX_NAME = 200  # Bytes; file systems end at 255, and Tune appends to the names of trials.

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
