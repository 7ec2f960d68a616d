"""Finds the trials under any number of folders, local or remote."""

from __future__ import annotations

import ast
import difflib
import json
import os
import posixpath
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from rllib_weighted.records.reading import HistoryFolder, Locations
from rllib_weighted.records.schema import HISTORY_DIR, is_hidden, resolve

# What a report cannot go on from, and the words for it


MOST_LISTED = 20


class ReportError(ValueError):
    """Bad input: there is nothing to report on, or a name that the results do not know."""


def listed(names: Iterable[str]) -> str:
    """Returns names as a list to be read, cut after `MOST_LISTED`."""
    every = list(dict.fromkeys(names))
    shown = ", ".join(every[:MOST_LISTED])
    more = len(every) - MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun: "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unknown(what: str, name: str, known: Iterable[str]) -> ReportError:
    """Returns the error for a name that is none of `known`, with the closest one first."""
    every = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, every, n=3, cutoff=0.6)
    ordered = [*close, *(other for other in every if other not in close)]
    return ReportError(f"unknown {what} {name!r}: these results have {listed(ordered) or 'none'}")


PARAMS = "params.json"
PROGRESS = "progress.csv"
RESULT = "result.json"


@dataclass(frozen=True)
class Trial:
    """A trial's folder.

    Attributes:
        filesystem: Where it lies.
        path: Its path there.
        files: Which of `PARAMS`, `PROGRESS` and `RESULT` it holds.
        history: Its merge history; None if it has none.
    """

    filesystem: fs.FileSystem = field(repr=False)
    path: str
    files: frozenset[str]
    history: HistoryFolder | None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return posixpath.basename(self.path)

    def file(self, name: str) -> str:
        """Returns the path of one of its files."""
        return f"{self.path}/{name}"


def find_trials(
    locations: Locations, filesystem: fs.FileSystem | None = None
) -> tuple[list[Trial], list[str]]:
    """Finds trials at any depth under the locations, each once.

    A trial is a folder with `PARAMS` or a merge history. A folder with only a `PROGRESS` or a
    `RESULT` is another tool's.

    Args:
        locations: One or many folders of trials, experiments or more: local paths, or URIs.
        filesystem: Where they lie; None to tell from each location.

    Returns:
        The trials, in the order of the locations and within one by path, and a sentence on each
        folder that was left out.

    Raises:
        ReportError: There is no location, or it is a file or cannot be listed, or none holds a
            trial.
    """
    if isinstance(locations, (str, os.PathLike)):
        locations = [locations]
    trials: dict[tuple[str, str], Trial] = {}
    problems: list[str] = []
    for location in locations:
        where, path = _open(location, filesystem)
        found, left_out = _trials_under(where, path)
        for trial in found:
            trials.setdefault((where.type_name, trial.path), trial)
        problems += left_out
        if not found:
            problems.append(f"no trial under {os.fspath(location)}")
    if not trials:
        raise ReportError(_nothing_found(locations, problems))
    return list(trials.values()), list(dict.fromkeys(problems))


def _nothing_found(locations: Iterable[str | os.PathLike[str]], problems: list[str]) -> str:
    shown = ", ".join(os.fspath(location) for location in locations)
    details = "".join(f"\n- {problem}" for problem in problems[:5])
    return (
        f"no trials in {shown or 'no folder at all'}: give folders that Tune or `rllib train` "
        f"wrote, whose trials hold {PARAMS} and {PROGRESS}, or {HISTORY_DIR}/*.parquet{details}"
    )


def _open(
    location: str | os.PathLike[str], filesystem: fs.FileSystem | None
) -> tuple[fs.FileSystem, str]:
    text = os.fspath(location)
    try:
        where, path = (filesystem, text) if filesystem is not None else resolve(_expanded(text))
        path = path.rstrip("/") or path
        info = where.get_file_info(path)
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read {text}: {error}") from error
    if info.type == fs.FileType.NotFound:
        raise ReportError(f"there is no folder {text}")
    if info.is_file:
        raise ReportError(f"{text} should be a folder of trials, and is a file")
    if posixpath.basename(path) == HISTORY_DIR:
        path = posixpath.dirname(path)
    return where, path


def _expanded(text: str) -> str:
    return os.path.expanduser(text) if text.startswith("~") else text


def _trials_under(filesystem: fs.FileSystem, path: str) -> tuple[list[Trial], list[str]]:
    try:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise ReportError(f"cannot list {path}: {error}") from error
    files: dict[str, set[str]] = {}
    histories: dict[str, list[str]] = {}
    for info in infos:
        if not info.is_file or is_hidden(info.base_name):
            continue
        folder = posixpath.dirname(info.path)
        if posixpath.basename(folder) == HISTORY_DIR:
            histories.setdefault(posixpath.dirname(folder), []).append(info.path)
        elif info.base_name in (PARAMS, PROGRESS, RESULT):
            files.setdefault(folder, set()).add(info.base_name)
    trials, problems = [], []
    for folder in sorted(files.keys() | histories.keys()):
        names = frozenset(files.get(folder, ()))
        history = None
        if folder in histories:
            history = HistoryFolder.of(filesystem, f"{folder}/{HISTORY_DIR}", histories[folder])
        if PARAMS in names or history is not None:
            trials.append(Trial(filesystem, folder, names, history))
        else:
            problems.append(
                f"left out {folder}: {', '.join(sorted(names))} without {PARAMS} is not a trial "
                "of Tune"
            )
    return trials, problems


# What a trial was run with: its `params.json`, as far as it can tell trials apart


WITHOUT_MIN_WEIGHT = frozenset({"average", "sum", "actor_average", "actor_sum"})
"""Strategies that ignore `min_weight`: trials that differ in nothing else are the same."""

UNKNOWN = "unknown"

_IGNORED = re.compile(
    r"""seed | env | merge_strategy | min_weight | merge_options | merge_arm
    | _(?!model_config$|train_batch_size_per_learner$|torch_lr_scheduler_classes$) .*
    | (evaluation|offline|input|output|callbacks|log|custom_resources|checkpoint|extra_python
       |local|tf|validate|ignore|max_num|num_cpus|keep|policy_map|prelearner|materialize
       |map_batches|iter_batches|dataset|restart|create|fake|sync_filters|export)_? .*
    | .*_timeout_s | .*_per_iteration | .*_on_.* | model | policies | framework | render_env
    | stats_cls_lookup | placement_strategy | is_atari | in_evaluation | disable_env_checking
    | custom_eval_function | delay_between.* | enable_.* | metrics_episode.* | sampler_perf.*
    | num_consecutive.* | ope_.* | shuffle_buffer_size | simple_optimizer | sample_collector
    | trial_info""",
    re.VERBOSE,
)
"""Settings that do not change what is learned, or that stand for themselves."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_OBJECT = re.compile(r"(?:\w+\.)*(\w+)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """Settings of one trial.

    Attributes:
        env: The environment.
        strategy: `merge_strategy`; for algorithms without one, the algorithm's name.
        options: The strategy's options.
        min_weight: The minimum weight as a number, 1/N if it is not set; NaN if the strategy has
            none or it is a schedule.
        schedule: The minimum weight's schedule as text, or "".
        num_workers: Workers that are merged; 0 if unknown.
        seed: The trial's seed; None if it has none.
        evaluation_interval: Rounds from one evaluation to the next; 0 without evaluation.
        other: All other settings that can tell trials apart, as text.
    """

    env: str = UNKNOWN
    strategy: str = UNKNOWN
    options: str = ""
    min_weight: float = float("nan")
    schedule: str = ""
    num_workers: int = 0
    seed: int | None = None
    evaluation_interval: int = 0
    other: dict[str, str] = field(default_factory=dict)


def read_settings(trial: Trial) -> tuple[Settings, str | None]:
    """Reads a trial's settings.

    Returns:
        The settings, all unknown if they cannot be read, and then also why.
    """
    if PARAMS not in trial.files:
        return Settings(), f"{trial.path} has no {PARAMS}: its settings are unknown"
    try:
        with trial.filesystem.open_input_stream(trial.file(PARAMS)) as stream:
            params = json.loads(stream.read())
        if not isinstance(params, dict):
            raise ValueError("it is not a JSON object")
        return parse_settings(params, trial.name), None
    except (OSError, ValueError, RecursionError) as error:
        return Settings(), f"left out {trial.file(PARAMS)}, so its settings are unknown: {error}"


def parse_settings(params: dict[str, Any], folder: str = "") -> Settings:
    """Returns the settings in a config.

    Args:
        params: The config as Tune writes it.
        folder: Name of the trial's folder, which begins with that of its algorithm.
    """
    strategy, options = _strategy(params, folder)
    num_workers = _num_workers(params) if "merge_strategy" in params else 0
    min_weight, schedule = float("nan"), ""
    if "merge_strategy" in params and strategy not in WITHOUT_MIN_WEIGHT:
        min_weight, schedule = _min_weight(params.get("min_weight"), num_workers)
    seed, interval = params.get("seed"), params.get("evaluation_interval")
    return Settings(
        env=sys.intern(_text(params.get("env", UNKNOWN))),
        strategy=sys.intern(strategy),
        options=options,
        min_weight=min_weight,
        schedule=schedule,
        num_workers=num_workers,
        seed=seed if isinstance(seed, int) else None,
        evaluation_interval=interval if isinstance(interval, int) else 0,
        other={
            sys.intern(name): sys.intern(_text(value))
            for name, value in params.items()
            if not _IGNORED.fullmatch(name)
        },
    )


def _strategy(params: dict[str, Any], folder: str) -> tuple[str, str]:
    """Returns the strategy's name and its options."""
    if "merge_strategy" not in params:
        return re.split(r"[_\W]", folder, maxsplit=1)[0] or UNKNOWN, ""
    given = str(params["merge_strategy"])
    options = params.get("merge_options") or {}
    match = _OBJECT.fullmatch(given)
    if match is None:
        return given, _text(options) if options else ""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", match[1]).lower()
    return name, _text(_keywords(match[2])) if match[2] else ""


def _keywords(arguments: str) -> Any:
    """Returns an object's printed arguments as a dict, or as they are if they cannot be read."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError):
        return arguments


def _num_workers(params: dict[str, Any]) -> int:
    try:
        runners = max(1, int(params.get("num_env_runners", 0)))
        envs = int(params.get("num_envs_per_env_runner", 1))
    except (TypeError, ValueError):
        return 0
    return runners * (envs if params.get("merge_unit") == "env" else 1)


def _min_weight(value: Any, num_workers: int) -> tuple[float, str]:
    if value is None:
        return (1 / num_workers if num_workers else float("nan")), ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), ""
    return float("nan"), _text(value)


def _text(value: Any) -> str:
    """Returns a setting as text, the same for equal values in any process."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return _ADDRESS.sub("", text)
