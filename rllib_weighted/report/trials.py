"""Finds trials under any number of folders, local or remote, and reads their settings."""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import posixpath
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from rllib_weighted.records import origin
from rllib_weighted.records.reading import HistoryFolder, Locations, group
from rllib_weighted.records.schema import HISTORY_DIR, resolve
from rllib_weighted.text import printable

PARAMS = "params.json"
PROGRESS = "progress.csv"
RESULT = "result.json"
UNKNOWN = "unknown"

WITHOUT_MIN_WEIGHT = frozenset({"average", "sum", "actor_average", "actor_sum", "torchjd"})
"""Strategies that ignore `min_weight`: trials that differ in nothing else are the same."""

_TOLD_APART_ELSEWHERE = frozenset(
    ("env", "seed", "merge_strategy", "merge_options", "min_weight", "num_workers")
) | {"evaluation_interval", "merge_arm"}
"""Settings that have a field of `Settings`."""

_OBJECT = re.compile(r"(?:\w+\.)*(\w+)\((.*)\)", re.DOTALL)


class ReportError(ValueError):
    """Bad input: there is nothing to report on, or a name that the results do not know.

    Args:
        message: What is wrong; names in it may hold anything.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))


def listed(names: Iterable[str], most: int = 20) -> str:
    """Returns names as a list to be read, without repetitions and cut after `most`."""
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun: "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unknown(what: str, name: str, known: Iterable[str]) -> ReportError:
    """Returns the error for a name that is none of `known`, with the closest one first."""
    every = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, every, n=3, cutoff=0.6)
    names = listed([*close, *every]) or "none"
    return ReportError(f"unknown {what} {name!r}: these results have {names}")


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
    names = [os.fspath(location) for location in locations]
    trials: dict[tuple[str, str], Trial] = {}
    problems: list[str] = []
    for name in names:
        found, left_out = _trials_under(*_open(name, filesystem))
        for trial in found:
            trials.setdefault((trial.filesystem.type_name, trial.path), trial)
        problems += left_out
        if not found:
            problems.append(f"no trial under {name}")
    if not trials:
        details = "".join(f"\n- {problem}" for problem in problems[:5])
        raise ReportError(
            f"no trials in {', '.join(names) or 'no folder at all'}: give folders that Tune or "
            f"`rllib train` wrote, whose trials hold {PARAMS} and {PROGRESS}, or "
            f"{HISTORY_DIR}/*.parquet{details}"
        )
    return list(trials.values()), list(dict.fromkeys(problems))


def _open(location: str, filesystem: fs.FileSystem | None) -> tuple[fs.FileSystem, str]:
    """Returns a location's filesystem and its folder there."""
    try:
        place = location if filesystem is not None else os.path.expanduser(location)
        filesystem, path = resolve(place, filesystem)
        info = filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read {location}: {error}") from error
    if info.type == fs.FileType.NotFound:
        raise ReportError(f"there is no folder {location}")
    if info.is_file:
        raise ReportError(f"{location} should be a folder of trials, and is a file")
    return filesystem, posixpath.dirname(path) if info.base_name == HISTORY_DIR else path


def _trials_under(filesystem: fs.FileSystem, path: str) -> tuple[list[Trial], list[str]]:
    try:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise ReportError(f"cannot list {path}: {error}") from error
    files: dict[str, set[str]] = defaultdict(set)
    histories = {posixpath.dirname(found.path): found for found in group(filesystem, infos)}
    for info in infos:
        if info.is_file and info.base_name in (PARAMS, PROGRESS, RESULT):
            files[posixpath.dirname(info.path)].add(info.base_name)
    trials, problems = [], []
    for folder in sorted(files.keys() | histories.keys()):
        names, history = frozenset(files[folder]), histories.get(folder)
        if PARAMS in names or history is not None:
            trials.append(Trial(filesystem, folder, names, history))
        else:
            what = f"{', '.join(sorted(names))} without {PARAMS}"
            problems.append(f"left out {folder}: {what} is not a trial of Tune")
    return trials, problems


@dataclass(frozen=True)
class Settings:
    """Settings of one trial.

    Attributes:
        env: The environment.
        strategy: `merge_strategy`; for algorithms without one, the algorithm's name.
        options: The strategy's options as text, or "".
        min_weight: The minimum weight as a number, 1/N if it is not set; NaN if the strategy has
            none or it is a schedule.
        schedule: The minimum weight's schedule as text, or "".
        num_workers: Workers that are merged; 0 if unknown.
        seed: The trial's seed; None if it has none.
        evaluation_interval: Rounds from one evaluation to the next; 0 without evaluation.
        name: What the user called its arm (`merge_arm`), or "".
        other: All other settings that can tell trials apart, as text.
    """

    env: str = UNKNOWN
    strategy: str = UNKNOWN
    options: str = ""
    min_weight: float = math.nan
    schedule: str = ""
    num_workers: int = 0
    seed: int | None = None
    evaluation_interval: int = 0
    name: str = ""
    other: dict[str, str] = field(default_factory=dict)


def read_settings(trial: Trial) -> tuple[Settings, str | None]:
    """Reads a trial's settings: from its merge history or, if it does not say, from `PARAMS`.

    Returns:
        The settings, all unknown if they cannot be read, and then also why.
    """
    recorded = origin.read_settings(trial.history) if trial.history is not None else {}
    if recorded:
        return recorded_settings(recorded), None
    if PARAMS not in trial.files:
        return Settings(), f"{trial.path} has no {PARAMS}: its settings are unknown"
    try:
        with trial.filesystem.open_input_stream(trial.file(PARAMS)) as stream:
            params = json.loads(stream.read())
        if not isinstance(params, dict):
            raise ValueError("it is not a JSON object")
        return parse_settings(params, posixpath.basename(trial.path)), None
    except (OSError, ValueError, RecursionError) as error:
        return Settings(), f"left out {trial.file(PARAMS)}, so its settings are unknown: {error}"


def recorded_settings(recorded: Mapping[str, Any]) -> Settings:
    """Returns settings that are resolved, as `records.resolved_settings` describes them."""
    min_weight: Any = recorded.get("min_weight")
    options = recorded.get("merge_options")
    is_number = _is_number(min_weight) and abs(min_weight) <= sys.float_info.max
    num_workers, seed, evaluation_interval = (
        value if _is_number(value) and isinstance(value, int) and abs(value) < 2**63 else None
        for value in map(recorded.get, ("num_workers", "seed", "evaluation_interval"))
    )
    return Settings(
        env=sys.intern(_text(recorded.get("env", UNKNOWN))),
        strategy=sys.intern(printable(str(recorded.get("merge_strategy", UNKNOWN)))),
        options=_text(options) if options else "",
        min_weight=float(min_weight) if is_number else math.nan,
        schedule="" if is_number or min_weight is None else _text(min_weight),
        num_workers=num_workers or 0,
        seed=seed,
        evaluation_interval=evaluation_interval or 0,
        name=sys.intern(_text(recorded.get("merge_arm") or "")),
        other={
            sys.intern(printable(name)): sys.intern(_text(value))
            for name, value in recorded.items()
            if name not in _TOLD_APART_ELSEWHERE and origin.matters(name)
        },
    )


def parse_settings(params: Mapping[str, Any], folder: str = "") -> Settings:
    """Returns the settings in a config as Tune writes it, where nothing is resolved.

    A strategy object is there as its printed form, and an unset minimum weight as null.

    Args:
        params: The config.
        folder: Name of the trial's folder, which begins with that of its algorithm.
    """
    if "merge_strategy" not in params:
        algorithm = re.split(r"[_\W]", folder, maxsplit=1)[0] or UNKNOWN
        return recorded_settings({**params, "merge_strategy": algorithm, "min_weight": None})
    strategy, options = str(params["merge_strategy"]), params.get("merge_options")
    if match := _OBJECT.fullmatch(strategy):
        strategy = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", match[1]).lower()
        options = _keywords(match[2])
    num_workers, min_weight = _num_workers(params), params.get("min_weight")
    if strategy in WITHOUT_MIN_WEIGHT:
        min_weight = None
    elif min_weight is None and num_workers:
        min_weight = 1 / num_workers
    resolved = {"merge_strategy": strategy, "merge_options": options, "min_weight": min_weight}
    return recorded_settings({**params, **resolved, "num_workers": num_workers})


def _keywords(arguments: str) -> Any:
    """Returns an object's printed arguments as a dict, or as they are if they cannot be read."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError):
        return arguments


def _num_workers(params: Mapping[str, Any]) -> int:
    try:
        runners = max(1, int(params.get("num_env_runners", 0)))
        envs = int(params.get("num_envs_per_env_runner", 1))
    except (TypeError, ValueError, OverflowError):
        return 0
    return runners * (envs if params.get("merge_unit") == "env" else 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """Returns a setting as text that can be shown, the same for equal values in any process."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return printable(origin.without_addresses(text))
