"""Settles what an experiment trains: its record and its checked config, new or resumed."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING

from rllib_weighted.cli import InputError, storage
from rllib_weighted.cli.inputs import TrainFile
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.parsing import parse_settings
from rllib_weighted.cli.settings import apply_settings, use_single_process
from rllib_weighted.cli.storage import ExperimentRecord

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import TuneConfig


def tune_config_of(asked: TrainFile) -> TuneConfig:
    """Returns Tune's own configuration, with the number of samples that is asked for."""
    from ray.tune import TuneConfig

    tune_config = asked.tune_config or TuneConfig()
    if asked.num_samples is None:
        return tune_config
    return dataclasses.replace(tune_config, num_samples=asked.num_samples)


def checked_config(asked: TrainFile, options: TrainOptions) -> AlgorithmConfig:
    """Returns the config that a new experiment would train.

    Raises:
        InputError: Everything that is wrong with it.
    """
    return settled(asked, options, "")[1]


def settled(
    asked: TrainFile, options: TrainOptions, experiment: str
) -> tuple[ExperimentRecord, AlgorithmConfig]:
    """Returns how this experiment is, or was, started, and the checked config to train.

    Raises:
        InputError: It is to be resumed with other settings than it was started with, or everything
            that is wrong with the config.
    """
    record = _settled_record(asked, options, experiment)
    return record, _settled_config(asked, record)


def _settled_record(asked: TrainFile, options: TrainOptions, experiment: str) -> ExperimentRecord:
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
        metric=asked.tune_config.metric if asked.tune_config else None,
        mode=asked.tune_config.mode if asked.tune_config else None,
        trackers=list(options.track),
    )
    before = storage.read_record(experiment) if options.resume else None
    if before is None:
        return given
    asked_settings = parse_settings(given.settings)
    if asked_settings and asked_settings != parse_settings(before.settings):
        raise InputError(
            "a resumed experiment keeps its settings: it was started with "
            f"{_as_options(before.settings)}, not with {_as_options(given.settings)}. Leave --set "
            "away, or start a new experiment"
        )
    return dataclasses.replace(
        given,
        settings=before.settings,
        local_mode=before.local_mode,
        trackers=given.trackers or before.trackers,
    )


def _as_options(settings: list[str]) -> str:
    return " ".join(f"--set {shlex.quote(text)}" for text in settings) or "no --set"


def _settled_config(asked: TrainFile, record: ExperimentRecord) -> AlgorithmConfig:
    """Returns the checked config to train.

    Raises:
        InputError: Everything that is wrong with it.
    """
    from rllib_weighted.cli.sizing import config_problems

    config = asked.config.copy(copy_frozen=False)
    apply_settings(config, parse_settings(record.settings), "--set")
    if record.local_mode:
        use_single_process(config)
    problems = config_problems(config)
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise InputError(f"{asked.path or 'the config'} cannot be trained:{listed}")
    return config
