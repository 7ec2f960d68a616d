"""Where experiments lie, on a local disk or a remote file system."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.errors import InputError, nearest
from rllib_weighted.cli.object_store import check_store

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

DEFAULT_STORAGE = "~/ray_results"
RECORD_FILE = "rllib_train.json"
_STATE_FILE = "tuner.pkl"  # Tune writes it when an experiment starts.


@dataclass(frozen=True)
class ExperimentRecord:
    """How an experiment was started; lies in its folder, so that it can be resumed alike.

    Args:
        file: The training file, if there was one.
        experiment: Which of the file's experiments this is.
        arguments: `algo`, `env` and `config`, if there was no file.
        settings: The `--set KEY=VALUE` texts.
        local_mode: Whether `--local-mode` was on.
    """

    file: str | None = None
    experiment: str | None = None
    arguments: dict[str, Any] | None = None
    settings: list[str] = field(default_factory=list)
    local_mode: bool = False


def storage_root(storage_path: str | None) -> str:
    """Returns a storage path as an absolute local path, or as the URI that it is."""
    path = storage_path or os.environ.get("RAY_AIR_LOCAL_CACHE_DIR") or DEFAULT_STORAGE
    return path.rstrip("/") if is_remote(path) else str(Path(path).expanduser().resolve())


def is_remote(location: str) -> bool:
    """Whether a location is a URI, and not a local path."""
    return "://" in location


def child(location: str, *names: str) -> str:
    """Returns a location below another one; the query of a URI stays at its end."""
    path, mark, query = location.partition("?") if is_remote(location) else (location, "", "")
    return "/".join([path.rstrip("/"), *names]) + mark + query


def parent(location: str) -> str:
    """Returns the location above another one."""
    path, mark, query = location.partition("?") if is_remote(location) else (location, "", "")
    return path.rstrip("/").rpartition("/")[0] + mark + query


def locate(root: str, path: str) -> str:
    """Returns the location of a path in the file system of a storage, as Tune names its results."""
    _, own = open_storage(root)
    below = path.removeprefix(own).strip("/")
    return child(root, below) if is_remote(root) else path


def open_storage(path: str) -> tuple[FileSystem, str]:
    """Returns the file system of a path or URI, and the path inside it.

    Raises:
        InputError: There is no such file system, or it refuses.
    """
    from pyarrow import ArrowException, fs

    if not is_remote(path):
        return fs.LocalFileSystem(), path
    try:
        return fs.FileSystem.from_uri(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"cannot open the storage {path}: {error}") from None


def reach_storage(root: str, *, writes: bool = False) -> None:
    """Asks a remote storage whether it can be read, or written to.

    Raises:
        InputError: It cannot, and why.
    """
    if root.startswith("s3://"):
        check_store(root, writes=writes)


def make_storage(root: str) -> None:
    """Creates a storage if it is not there yet.

    Raises:
        InputError: It cannot be written to.
    """
    reach_storage(root, writes=True)
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
    from pyarrow import fs

    filesystem, path = open_storage(root)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    folders = [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]
    files = filesystem.get_file_info([f"{path}/{name}/{_STATE_FILE}" for name in folders])
    found = [
        (info.mtime_ns or 0, name)
        for name, info in zip(folders, files, strict=True)
        if info.type == fs.FileType.File
    ]
    return [name for _, name in sorted(found)]


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
        raise InputError(
            f"nothing to resume: no experiment {name!r} in {root}{nearest(name, names)}"
        )
    return name


def refuse_existing(root: str, name: str) -> None:
    """Raises InputError if the storage holds an experiment of that name already."""
    if name in experiment_names(root):
        raise InputError(
            f"there is an experiment {name!r} in {root} already: continue it with --resume, or "
            "choose another --name"
        )


def write_record(experiment: str, record: ExperimentRecord) -> None:
    """Writes how an experiment was started into its folder."""
    try:
        text = json.dumps(asdict(record), indent=2)
    except TypeError:  # A notebook's dict of settings may hold classes.
        text = json.dumps(asdict(replace(record, arguments=None)), indent=2)
    filesystem, path = open_storage(experiment)
    with filesystem.open_output_stream(f"{path}/{RECORD_FILE}") as stream:
        stream.write(text.encode())


def read_record(experiment: str) -> ExperimentRecord | None:
    """Returns how an experiment was started, or None if its folder does not say."""
    filesystem, path = open_storage(experiment)
    try:
        with filesystem.open_input_stream(f"{path}/{RECORD_FILE}") as stream:
            return ExperimentRecord(**json.loads(stream.read()))
    except (OSError, ValueError, TypeError):
        return None
