"""The folders of experiments, on a local disk or an object store, and what is recorded there."""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow
from pyarrow import fs
from pydantic import TypeAdapter

from rllib_weighted.cli import InputError
from rllib_weighted.core import stores
from rllib_weighted.core.durable import TEMPORARY_PREFIX, DurableFileSystem, durable
from rllib_weighted.records.schema import is_uri, resolve
from rllib_weighted.suggest import nearest

DEFAULT_STORAGE = "~/ray_results"
RECORD_FILE = "rllib_train.json"
STATE_FILE = "tuner.pkl"  # Tune writes it when an experiment starts.
_SNAPSHOT = re.compile(r"experiment_state-.*\.json")  # And these while it runs.
_STALL_S = 5.0  # For the question whether a store can be used at all.


def storage_root(storage_path: str | None) -> str:
    """Returns where results go: the given path or URI, or the default; local paths absolute.

    Raises:
        InputError: A variable of older Rays is set, with which today's refuses to train.
    """
    for name in ("RAY_AIR_LOCAL_CACHE_DIR", "TUNE_RESULT_DIR"):
        if value := os.environ.get(name):
            raise InputError(
                f"the environment variable {name} should not be set, found {value!r}: Ray refuses "
                f"to train with it; unset it, and say --storage-path {value}"
            )
    return absolute(storage_path or DEFAULT_STORAGE)


def absolute(location: str) -> str:
    """Returns a location without a trailing slash; local paths become absolute.

    Raises:
        InputError: There is no such user (`~name`), or a URI names nothing (`s3://`).
    """
    if is_uri(location):
        if not is_uri(location.rstrip("/")):
            raise InputError(f"{location} should be a local path or a URI such as s3://bucket/path")
        return location.rstrip("/")
    try:
        return str(Path(location).expanduser().resolve())
    except RuntimeError as error:
        raise InputError(f"{location}: {error} Write the whole path") from None


def child(location: str, *names: str) -> str:
    """Returns a location below another one; the query of a URI stays at its end."""
    path, query = _split(location)
    return "/".join([path, *names]) + query


def parent(location: str) -> str:
    """Returns the location above another one."""
    path, query = _split(location)
    return posixpath.dirname(path) + query


def _split(location: str) -> tuple[str, str]:
    path, mark, query = location.partition("?") if is_uri(location) else (location, "", "")
    return path.rstrip("/"), mark + query


def locate(root: str, path: str) -> str:
    """Returns the location of a path inside a storage's file system; Tune reports such paths."""
    if not is_uri(root):
        return path
    _, own = open_storage(root)
    return child(root, path.removeprefix(own).strip("/"))


def open_storage(location: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a path or URI, and the path inside it.

    Raises:
        InputError: There is no such file system, or it refuses.
    """
    try:
        if not is_uri(location):
            return resolve(location)
        parts = urlsplit(location)
        if parts.scheme != "s3":
            return resolve(location)
        filesystem = stores.open_uri(location)
        return filesystem, stores.bucket(location) + parts.path.rstrip("/")
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise InputError(f"cannot open the storage {location}: {error}") from None


def durable_storage(root: str, timeout_s: float) -> tuple[DurableFileSystem, str]:
    """Returns the file system that a training writes its results through, and the path inside it.

    Args:
        root: The storage.
        timeout_s: Seconds for which a remote one may be away.
    """
    filesystem, path = open_storage(root)
    location = stores.public(root) if is_uri(root) else None
    return DurableFileSystem(filesystem, timeout_s, location), path


def check_snapshot(experiment: str) -> None:
    """Raises InputError if the newest state that Tune has saved of an experiment is torn.

    Tune (2.60) would train everything from the start.
    """
    filesystem, path = open_storage(experiment)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    snapshots = sorted(e.path for e in entries if _SNAPSHOT.fullmatch(e.base_name))
    if not snapshots:
        return
    try:
        with filesystem.open_input_stream(snapshots[-1]) as stream:
            json.loads(stream.read())
    except ValueError:
        older = len(snapshots) - 1
        raise InputError(
            f"cannot resume {experiment}: {snapshots[-1]} is torn, so that Tune does not know what "
            "was trained. "
            + (
                f"Remove it: an older one, {posixpath.basename(snapshots[-2])}, takes its place"
                if older
                else "Restore the file from a backup, or start a new experiment: its checkpoints "
                "can still be evaluated"
            )
        ) from None


def remove_temporary_files(experiment: str) -> None:
    """Removes what a killed training has left half written on a local disk."""
    filesystem, path = open_storage(experiment)
    if isinstance(filesystem, fs.LocalFileSystem):
        for pattern in (f"{TEMPORARY_PREFIX}*", f"*/{TEMPORARY_PREFIX}*"):
            for left in Path(path).glob(pattern):
                left.unlink(missing_ok=True)


def make_storage(root: str) -> None:
    """Creates a storage if it is not there yet.

    Raises:
        InputError: It cannot be written to.
    """
    filesystem, path = open_storage(root)
    try:
        filesystem.create_dir(path, recursive=True)
    except OSError as error:
        raise InputError(f"cannot write results to {root}: {error}") from None


def new_name(stem: str) -> str:
    """Returns a fresh experiment name: the stem and the time."""
    return f"{stem}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def experiment_names(root: str) -> list[str]:
    """Returns the names of the experiments in a storage, the oldest first."""
    filesystem, path = open_storage(root)
    try:
        entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        folders = [entry.path for entry in entries if entry.type == fs.FileType.Directory]
        states = filesystem.get_file_info([f"{folder}/{STATE_FILE}" for folder in folders])
    except OSError as error:
        raise InputError(f"the storage {root} cannot be read: {error}") from None
    started = sorted((state.mtime_ns or 0, state.path) for state in states if state.is_file)
    return [posixpath.basename(posixpath.dirname(path)) for _, path in started]


def experiment_to_resume(root: str, stem: str, name: str | None) -> str:
    """Returns the name of the experiment that `--resume` means.

    Args:
        root: The storage.
        stem: What names drawn by `new_name` for this training begin with.
        name: The name asked for; None means the newest of this training.

    Raises:
        InputError: There is none.
    """
    names = experiment_names(root)
    if name is None:
        drawn = re.compile(re.escape(stem) + r"_\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}")
        own = [known for known in names if drawn.fullmatch(known)]
        if own:
            return own[-1]
        raise InputError(
            f"nothing to resume: {root} holds no experiment of {stem!r}; name it with --name, "
            "or its folder with --storage-path"
        )
    if name not in names:
        hint = nearest(name, names)
        raise InputError(f"nothing to resume: no experiment {name!r} in {root}{hint}")
    return name


def refuse_existing(root: str, name: str) -> None:
    """Raises InputError if the storage holds an experiment of that name already."""
    if name in experiment_names(root):
        raise InputError(
            f"there is an experiment {name!r} in {root} already: continue it with --resume, or "
            "choose another --name"
        )


@dataclass(frozen=True)
class ExperimentRecord:
    """How an experiment was started; kept in its folder, so that it can be resumed the same way.

    Args:
        file: The training file, if there was one.
        experiment: Which of the file's experiments this is.
        arguments: `algo`, `env` and `config`, if there was no file.
        settings: The `--set KEY=VALUE` texts.
        local_mode: Whether `--local-mode` was on.
        metric: The metric of the file's `tune_config`, if it names one.
        mode: "max" or "min", likewise.
        trackers: What its results go to, besides its folder; see `cli/tracking.py`.
    """

    file: str | None = None
    experiment: str | None = None
    arguments: dict[str, Any] | None = None  # Settings may be of any type.
    settings: list[str] = field(default_factory=list)
    local_mode: bool = False
    metric: str | None = None
    mode: str | None = None
    trackers: list[str] = field(default_factory=list)


_ARGUMENTS = {"algo", "env", "config"}  # Of `run_algorithm`.


def write_record(experiment: str, record: ExperimentRecord) -> None:
    """Writes how an experiment was started into its folder."""
    content = dataclasses.asdict(record)
    try:
        text = json.dumps(content, indent=2)
    except TypeError:  # A notebook's dict of settings may hold classes.
        text = json.dumps({**content, "arguments": None}, indent=2)
    filesystem, path = open_storage(experiment)
    with durable(filesystem).open_output_stream(f"{path}/{RECORD_FILE}") as stream:
        stream.write(text.encode())


def read_record(experiment: str) -> ExperimentRecord | None:
    """Returns how an experiment was started, or None if its folder does not say."""
    filesystem, path = open_storage(experiment)
    try:
        with filesystem.open_input_stream(f"{path}/{RECORD_FILE}") as stream:
            record = ExperimentRecord(**json.loads(stream.read()))
        checked = TypeAdapter(ExperimentRecord).validate_python(dataclasses.asdict(record))
    except (OSError, ValueError, TypeError, RecursionError):  # Damaged, or of another tool.
        return None
    names = set(checked.arguments or _ARGUMENTS)
    return checked if names == _ARGUMENTS else None


def check_store(root: str, *, writes: bool = False) -> None:
    """Asks a disk or, within seconds, an S3-compatible store whether it can be used.

    Args:
        root: A storage; of remote ones only an S3 one is asked. See `s3_filesystem` for its URI.
        writes: Whether it must be possible to write there, too.

    Raises:
        InputError: The bucket is missing, the store refuses, or does not answer.
    """
    if not is_uri(root):
        there = next(path for path in (root, *map(str, Path(root).parents)) if os.path.exists(path))
        if writes and not (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)):
            raise InputError(
                f"cannot write results to {root}: {there} should be a folder that you may write to"
            )
        return
    try:
        parts = urlsplit(root)
    except ValueError as error:
        raise InputError(
            f"the storage {root} should be a local path or a URI such as s3://bucket/path: {error}"
        ) from None
    if parts.scheme != "s3":
        open_storage(root)
        return
    bucket = stores.bucket(root)
    path = bucket + parts.path.rstrip("/")
    try:
        filesystem = stores.s3_filesystem(root, stall_s=_STALL_S)
        if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
            raise FileNotFoundError(f"Bucket '{bucket}' not found")
        filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if writes:
            probe = f"{path}/_rllib_write_test_{secrets.token_hex(4)}"
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"can be removed")
            filesystem.delete_file(probe)
    except OSError as error:
        raise InputError(stores.explained(error, root)) from None
