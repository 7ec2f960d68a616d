"""The options of `rllib train`, each spelled once: for the command line and for Python."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

Verbose = Annotated[bool, typer.Option("--verbose", "-v", "--log-info", help="Show Ray's logs.")]


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

    stop: Annotated[
        str | None,
        typer.Option(
            "--stop",
            "-s",
            metavar="JSON",
            help="Stop criteria over those of the file, e.g. "
            "'{\"training_iteration\": 10}'; null removes one.",
        ),
    ] = None
    settings: Annotated[
        Sequence[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the config; may be repeated. A dot reaches into a dict.",
        ),
    ] = ()
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Trials per point of the search.")
    ] = None
    storage_path: Annotated[
        str | None,
        typer.Option(help="Folder or URI of the results.", show_default="~/ray_results"),
    ] = None
    name: Annotated[
        str | None,
        typer.Option("--name", "--experiment-name", "-n", help="Name of the experiment's folder."),
    ] = None
    checkpoint_freq: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rounds between checkpoints, of which all are kept; 0 writes none on the way.",
            show_default="one a minute, the last three are kept",
        ),
    ] = None
    checkpoint_at_end: Annotated[
        bool | None, typer.Option(help="Save when a trial ends.", show_default="on")
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the experiment --name (or the newest of this file) from its last "
            "checkpoints, with the settings and samples of its start.",
        ),
    ] = False
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to join.", show_default="RAY_ADDRESS, else a local Ray of its own"
        ),
    ] = None
    ray_num_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs that a local Ray counts with.")
    ] = None
    local_mode: Annotated[
        bool,
        typer.Option("--local-mode", help="Sample and learn in one process per trial, to debug."),
    ] = False
    verbose: Verbose = False

    def fixed_at_start(self) -> list[str]:
        """Returns the given options that have no effect on an experiment that is resumed."""
        names = ("num_samples", "checkpoint_freq", "checkpoint_at_end")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


def takes_train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of `rllib train` to a command, which gets them as its argument `options`."""
    hints = get_type_hints(TrainOptions, include_extras=True)
    # Typer takes a repeated option only as a list.
    hints["settings"] = Annotated[list[str], hints["settings"].__metadata__[0]]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(TrainOptions)
    ]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:  # The command's arguments.
        options = TrainOptions(**{name: values.pop(name) for name in hints})
        command(**values, options=options)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "options"]
    vars(wrapper)["__signature__"] = signature.replace(parameters=[*own, *added])
    return wrapper
