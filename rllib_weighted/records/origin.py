"""What a merge history was recorded with, in each file's metadata: versions, machine, settings."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.parquet as pq

from rllib_weighted.records.reading import UNREADABLE, HistoryFolder

ORIGIN_KEY = "rllib_weighted.origin"
"""Key in a file's metadata of the versions and the machine, as a JSON object of texts."""

SETTINGS_KEY = "rllib_weighted.settings"
"""Key in a file's metadata of the run's settings, as the JSON object of `resolved_settings`."""

_DISTRIBUTIONS = ("rllib-weighted", "ray", "torch", "gymnasium", "numpy")

_IRRELEVANT = re.compile(
    r"""_(?!model_config$|train_batch_size_per_learner$|torch_lr_scheduler_classes$) .*
    | (evaluation_(?!interval$)|offline|input|output|callbacks|log|custom_resources|checkpoint
       |extra_python|local|tf|validate|ignore|max_num|max_missed|max_rounds|num_cpus|keep|policy_map|prelearner
       |materialize|map_batches|iter_batches|dataset|restart|create|fake|sync_filters|export)_? .*
    | .*_timeout_s | .*_per_iteration | .*_on_.* | model | policies | framework | render_env
    | stats_cls_lookup | placement_strategy | is_atari | in_evaluation | disable_env_checking
    | custom_eval_function | delay_between.* | enable_.* | metrics_episode.* | sampler_perf.*
    | num_consecutive.* | ope_.* | shuffle_buffer_size | simple_optimizer | sample_collector
    | trial_info""",
    re.VERBOSE,
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each distribution, "not installed" without one.

    They are read from the installation's metadata: nothing is imported.
    """
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def origin() -> dict[str, str]:
    """Return the machine, and the versions of Python and of the packages that matter."""
    return {
        **versions(_DISTRIBUTIONS),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": str(os.cpu_count()),
    }


def resolved_settings(
    config: Mapping[str, Any],
    *,
    merge_strategy: str,
    merge_options: Mapping[str, Any],
    min_weight: float | list[Any] | None,
    num_workers: int,
) -> dict[str, Any]:
    """Return the settings of a run as the merge history stores them, and the report reads them.

    The keys are the config's own names, with these differences:

    - ``merge_strategy``, ``merge_options``, ``min_weight`` and ``num_workers`` are the arguments
      below instead of what the user wrote, so that nobody has to resolve them a second time
    - settings that cannot change what is learned are left out (see `matters`)

    The report needs ``env``, ``seed`` and ``evaluation_interval`` of the config; all other
    settings (learning rate, batch size, number of learners, …) tell arms apart.

    Args:
        config: All settings by name, as `AlgorithmConfig.to_dict` returns them. Values without a
            JSON form are stored as text.
        merge_strategy: Registered name of the strategy; for a strategy object, that of its class.
        merge_options: The strategy's options that differ from its defaults, by name.
        min_weight: The minimum weight as a number (1/N if the user set none); a schedule as
            ``[[env steps, value], …]``; None if the strategy has no minimum weight.
        num_workers: Number of workers that are merged.
    """
    return {
        **{name: value for name, value in config.items() if matters(name)},
        "merge_strategy": merge_strategy,
        "merge_options": dict(merge_options),
        "min_weight": min_weight,
        "num_workers": num_workers,
    }


def matters(name: str) -> bool:
    """Whether a setting can change what is learned: not logging, fault tolerance, file formats."""
    return not _IRRELEVANT.fullmatch(name)


def without_addresses(text: str) -> str:
    """Return the text of a Python object without memory addresses, the same in every process."""
    return _ADDRESS.sub("", text)


def encode_settings(settings: Mapping[str, Any]) -> str:
    """Return settings as the JSON text that is stored under `SETTINGS_KEY`."""
    return json.dumps(
        settings, default=lambda value: without_addresses(str(value)), skipkeys=True, sort_keys=True
    )


def read_settings(folder: HistoryFolder) -> dict[str, Any]:
    """Return the settings of `resolved_settings` in the newest readable file; {} if it has none."""
    return _read_metadata(folder, SETTINGS_KEY)


def read_origin(folder: HistoryFolder) -> dict[str, str]:
    """Return what the newest readable file of a history was recorded with; {} if none says so."""
    return {str(name): str(value) for name, value in _read_metadata(folder, ORIGIN_KEY).items()}


def _read_metadata(folder: HistoryFolder, key: str) -> dict[str, Any]:
    """Return a JSON object from the metadata of the newest file in which it can be read."""
    for path in reversed(folder.files):
        try:
            with folder.filesystem.open_input_file(path) as source:
                text = (pq.read_schema(source).metadata or {}).get(key.encode())
            found = json.loads(text) if text is not None else {}
        except UNREADABLE:
            continue
        if isinstance(found, dict):
            return found
    return {}
