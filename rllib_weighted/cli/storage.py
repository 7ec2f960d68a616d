"""Where experiments lie, on a local disk or a remote file system."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from rllib_weighted.cli.cluster import InputError, nearest

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# Whether an S3-compatible store can be used: asked before anything starts, and quickly


_AMAZON = "Amazon S3"
_PROBE = "_rllib_write_test"
_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN")
# pyarrow's own would wait 100 seconds for an endpoint that takes connections and never answers.
_TIMEOUT_S = 5
_MAX_ATTEMPTS = 2


def check_store(uri: str, *, writes: bool) -> None:
    """Asks for a bucket, and for what is to be done in it.

    Args:
        uri: `s3://bucket/path`, with `?endpoint_override=`, `?region=` and `?scheme=` as pyarrow
            reads them. The environment gives what is not there: `AWS_ENDPOINT_URL`,
            `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` …
        writes: Whether it must be possible to write there, too.

    Raises:
        InputError: The bucket is missing, the store refuses, or does not answer.
    """
    from pyarrow import fs

    parts = urlsplit(uri)
    credentials, _, bucket = parts.netloc.rpartition("@")
    path = bucket + parts.path.rstrip("/")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    options: dict[str, str] = {
        key: query[key] for key in ("endpoint_override", "region", "scheme") if key in query
    }
    # pyarrow looks for endpoint and region of a URI by itself, not for a file system made by hand.
    endpoint = _endpoint(query)
    if endpoint:
        options["endpoint_override"] = endpoint
    if credentials:
        key, _, secret = credentials.partition(":")
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    try:
        if not endpoint and "region" not in options:
            options["region"] = fs.resolve_s3_region(bucket)
        filesystem = fs.S3FileSystem(
            **options,
            connect_timeout=_TIMEOUT_S,
            request_timeout=_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
        )
        exists = filesystem.get_file_info(bucket).type != fs.FileType.NotFound
        if exists:
            filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if exists and writes:
            probe = f"{path}/{_PROBE}_{secrets.token_hex(4)}"
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"can be removed")
            filesystem.delete_file(probe)
    except OSError as error:
        raise InputError(_explained(error, bucket, endpoint or _AMAZON)) from None
    if not exists:
        raise InputError(_missing(bucket, endpoint or _AMAZON))


def _endpoint(query: dict[str, str]) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    from_environment = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return query.get("endpoint_override") or from_environment


def _missing(bucket: str, endpoint: str) -> str:
    return f"there is no bucket {bucket!r} at {endpoint}: create it, or name another one"


def _explained(error: OSError, bucket: str, endpoint: str) -> str:
    detail = re.sub(r" \(Request ID: \w+\)", "", str(error))
    if any(code in detail for code in _REFUSALS):
        return (
            f"{endpoint} refuses access to the bucket {bucket!r}: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY should be those of a user who may list, read and write there. "
            f"It says: {detail}"
        )
    if re.search(r"[Bb]ucket '.*' not found", detail):
        return _missing(bucket, endpoint)
    if "NETWORK_CONNECTION" in detail:
        return (
            f"no answer from {endpoint}: AWS_ENDPOINT_URL (or `?endpoint_override=` in the URI) "
            f"should be the address of an S3-compatible store. {detail}"
        )
    return f"cannot use the bucket {bucket!r} at {endpoint}: {detail}"


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
