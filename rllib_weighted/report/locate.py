"""Finds the trials under any number of folders, local or remote."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyarrow import fs

from rllib_weighted.records.reading import HistoryFolder, Locations
from rllib_weighted.records.schema import HISTORY_DIR, is_hidden, resolve
from rllib_weighted.report.errors import ReportError

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
