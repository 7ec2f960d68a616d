"""Trains what a training file or a config asks for; the verbs `train` and `train file`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from rllib_weighted.cli.errors import InputError
from rllib_weighted.cli.experiment import run_experiment
from rllib_weighted.cli.files import TrainFile, load_experiments, load_file
from rllib_weighted.cli.options import TrainOptions, TrainResult
from rllib_weighted.cli.parsing import parse_json_object
from rllib_weighted.cli.settings import algorithm_config, apply_settings
from rllib_weighted.cli.storage import child, reach_storage, read_record, storage_root


def run_file(
    path: str | Path, options: TrainOptions | None = None, *, console: Console | None = None
) -> TrainResult:
    """Trains what a training file with a single experiment asks for.

    Args:
        path: The file; see `load_experiments`.
        options: What the command's options say.
        console: Where progress is shown; None takes the standard output.

    Raises:
        InputError: Something is wrong with the file or the options; nothing was started.
        TrainingError: A trial failed.
    """
    return run_experiment(load_file(path), options or TrainOptions(), console=console)


def run_experiments(
    path: str | Path, options: TrainOptions, *, console: Console | None = None
) -> list[TrainResult]:
    """Trains the experiments of a file one after the other; see `run_file`."""
    experiments = load_experiments(path)
    results: list[TrainResult] = []
    for experiment in experiments:
        named = options
        if options.name and len(experiments) > 1:
            named = dataclasses.replace(options, name=f"{options.name}_{experiment.name}")
        results.append(run_experiment(experiment, named, console=console))
        if results[-1].exit_code:
            break
    return results


def run_algorithm(
    algo: str,
    env: str | None = None,
    config: str | dict[str, Any] = "{}",
    options: TrainOptions | None = None,
    *,
    console: Console | None = None,
) -> TrainResult:
    """Trains an algorithm by name: `rllib train --algo ... --env ... --config JSON`.

    Args:
        algo: Its name, e.g. `"WeightedPPO"`.
        env: The environment's name; None takes that of `config`.
        config: Settings by name, as a dict or as JSON text.
        options: What the command's options say.
        console: Where progress is shown; None takes the standard output.

    Raises:
        InputError: Something is wrong with what is asked; nothing was started.
        TrainingError: A trial failed.
    """
    settings = parse_json_object(config, "--config") if isinstance(config, str) else config
    built = algorithm_config(algo)
    apply_settings(built, {**({"env": env} if env else {}), **settings}, "--config")
    asked = TrainFile(
        config=built,
        name=f"{algo}_{built.env}".replace("/", "-").replace(":", "-"),
        arguments={"algo": algo, "env": env, "config": settings},
    )
    return run_experiment(asked, options or TrainOptions(), console=console)


def resume_by_name(options: TrainOptions, *, console: Console | None = None) -> TrainResult:
    """Continues an experiment by its name alone: `rllib train --resume --name N`.

    Raises:
        InputError: There is no such experiment, or its folder does not say how it was started.
    """
    if not options.name:
        raise InputError("--resume needs --name, or the training file: rllib train file FILE")
    root = storage_root(options.storage_path)
    reach_storage(root)
    record = read_record(child(root, options.name))
    if record is None:
        raise InputError(
            f"nothing to resume: {root} holds no experiment "
            f"{options.name!r} that the `rllib` command started"
        )
    if record.arguments:
        return run_algorithm(**record.arguments, options=options, console=console)
    for experiment in load_experiments(record.file or ""):
        if experiment.name == record.experiment:
            return run_experiment(experiment, options, console=console)
    raise InputError(f"{record.file} no longer holds the experiment {record.experiment!r}")


def train_file_main(file: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Does what `rllib train file FILE` does; the last line of a training file that runs itself.

    Args:
        file: The training file: pass `__file__`.
        argv: Options as on the command line; None takes those of this process.

    Raises:
        SystemExit: Always, with the command's exit status.
    """
    from rllib_weighted.cli.main import main

    main(["train", "file", file, *(sys.argv[1:] if argv is None else argv)])
