"""Settles what to train: name, settings and search, from the file, the options and the past."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.errors import InputError
from rllib_weighted.cli.files import TrainFile
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.parsing import parse_settings
from rllib_weighted.cli.settings import apply_settings, config_problems, use_single_process
from rllib_weighted.cli.storage import (
    ExperimentRecord,
    experiment_to_resume,
    make_storage,
    new_name,
    reach_storage,
    read_record,
    refuse_existing,
)

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig


def experiment_name(asked: TrainFile, options: TrainOptions, root: str) -> str:
    """Returns the name of the experiment to start, or to resume."""
    if options.resume:
        reach_storage(root)
        return experiment_to_resume(root, asked.name, options.name)
    make_storage(root)
    if options.name:
        refuse_existing(root, options.name)
    return options.name or new_name(asked.name)


def settled_record(asked: TrainFile, options: TrainOptions, experiment: str) -> ExperimentRecord:
    """Returns how this experiment is, or was, started.

    Raises:
        InputError: It is to be resumed with other settings than it was started with.
    """
    given = ExperimentRecord(
        file=str(asked.path) if asked.path else None,
        experiment=asked.name,
        arguments=asked.arguments,
        settings=list(options.settings),
        local_mode=options.local_mode,
    )
    before = read_record(experiment) if options.resume else None
    if before is None:
        return given
    if given.settings and parse_settings(given.settings) != parse_settings(before.settings):
        raise InputError(
            "a resumed experiment keeps its settings: it was started with "
            f"{_as_options(before.settings)}, not with {_as_options(given.settings)}. Leave --set "
            "away, or start a new experiment"
        )
    return dataclasses.replace(given, settings=before.settings, local_mode=before.local_mode)


def _as_options(settings: list[str]) -> str:
    return " ".join(f"--set {shlex.quote(text)}" for text in settings) or "no --set"


def settled_config(asked: TrainFile, record: ExperimentRecord) -> AlgorithmConfig:
    """Returns the checked config to train.

    Raises:
        InputError: Everything that is wrong with it.
    """
    config = asked.config.copy(copy_frozen=False)
    apply_settings(config, parse_settings(record.settings), "--set")
    if record.local_mode:
        use_single_process(config)
    problems = config_problems(config)
    if problems:
        where = asked.path or "the config"
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise InputError(f"{where} cannot be trained:{listed}")
    return config


def tune_config(asked: TrainFile, options: TrainOptions) -> TuneConfig:
    """Returns the scheduler and search of the file, with the number of samples asked for."""
    from ray.tune import TuneConfig

    tune_config = asked.tune_config or TuneConfig()
    num_samples = first(options.num_samples, asked.num_samples, tune_config.num_samples)
    return dataclasses.replace(tune_config, num_samples=num_samples)


def first(*values: Any) -> Any:
    """Returns the first value that is not None."""
    return next(value for value in values if value is not None)
