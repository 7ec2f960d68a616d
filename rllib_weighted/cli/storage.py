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
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow
from pyarrow import fs

from rllib_weighted.cli import InputError
from rllib_weighted.records.schema import is_uri, resolve
from rllib_weighted.suggest import nearest

DEFAULT_STORAGE = "~/ray_results"
RECORD_FILE = "rllib_train.json"
_STATE_FILE = "tuner.pkl"  # Tune writes it when an experiment starts.

_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN")
# pyarrow's default waits 100 seconds for an endpoint that accepts connections but never answers.
_TIMEOUT_S = 5
_MAX_ATTEMPTS = 2


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
    """Returns a location without a trailing slash; local paths become absolute."""
    return location.rstrip("/") if is_uri(location) else str(Path(location).expanduser().resolve())


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
        return resolve(location)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise InputError(f"cannot open the storage {location}: {error}") from None


def make_storage(root: str) -> None:
    """Creates a storage if it is not there yet.

    Raises:
        InputError: It cannot be written to.
    """
    check_store(root, writes=True)
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
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    folders = [entry.path for entry in entries if entry.type == fs.FileType.Directory]
    states = filesystem.get_file_info([f"{folder}/{_STATE_FILE}" for folder in folders])
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
    """

    file: str | None = None
    experiment: str | None = None
    arguments: dict[str, Any] | None = None  # Settings may be of any type.
    settings: list[str] = field(default_factory=list)
    local_mode: bool = False


def write_record(experiment: str, record: ExperimentRecord) -> None:
    """Writes how an experiment was started into its folder."""
    content = dataclasses.asdict(record)
    try:
        text = json.dumps(content, indent=2)
    except TypeError:  # A notebook's dict of settings may hold classes.
        text = json.dumps({**content, "arguments": None}, indent=2)
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


def check_store(root: str, *, writes: bool = False) -> None:
    """Asks an S3-compatible store, within seconds, whether it can be used.

    Args:
        root: A storage; only an S3 one is asked. `s3://bucket/path`, with `?endpoint_override=`,
            `?region=` and `?scheme=` as pyarrow reads them. The environment gives what is not
            there: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` …
        writes: Whether it must be possible to write there, too.

    Raises:
        InputError: The bucket is missing, the store refuses, or does not answer.
    """
    parts = urlsplit(root)
    if parts.scheme != "s3":
        return
    bucket = parts.netloc.rpartition("@")[2]
    path = bucket + parts.path.rstrip("/")
    query = dict(parse_qsl(parts.query))
    # pyarrow resolves endpoint and region only for file systems made from a URI.
    from_environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = query.get("endpoint_override") or from_environment
    try:
        filesystem = fs.S3FileSystem(
            access_key=unquote(parts.username) if parts.username else None,
            secret_key=unquote(parts.password or "") if parts.username else None,
            region=query.get("region") or (None if endpoint else fs.resolve_s3_region(bucket)),
            scheme=query.get("scheme"),
            endpoint_override=endpoint,
            connect_timeout=_TIMEOUT_S,
            request_timeout=_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
        )
        if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
            raise FileNotFoundError(f"Bucket '{bucket}' not found")
        filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if writes:
            probe = f"{path}/_rllib_write_test_{secrets.token_hex(4)}"
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"can be removed")
            filesystem.delete_file(probe)
    except OSError as error:
        raise InputError(_explained(error, bucket, endpoint or "Amazon S3")) from None


def _explained(error: OSError, bucket: str, endpoint: str) -> str:
    detail = re.sub(r" \(Request ID: \w+\)", "", str(error))
    if re.search(r"[Bb]ucket '.*' not found", detail):
        return f"there is no bucket {bucket!r} at {endpoint}: create it, or name another one"
    if any(code in detail for code in _REFUSALS):
        return (
            f"{endpoint} refuses access to the bucket {bucket!r}: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY should be those of a user who may list, read and write there. "
            f"It says: {detail}"
        )
    if "NETWORK_CONNECTION" in detail:
        return (
            f"no answer from {endpoint}: AWS_ENDPOINT_URL (or `?endpoint_override=` in the URI) "
            f"should be the address of an S3-compatible store. {detail}"
        )
    return f"cannot use the bucket {bucket!r} at {endpoint}: {detail}"
