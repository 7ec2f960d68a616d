"""The merge history on disk: its columns, the names of its files, where it lies."""

from __future__ import annotations

import os
import posixpath
import re
import secrets
import time

import pyarrow as pa
from pyarrow import fs

from rllib_weighted.core.durable import TEMPORARY_PREFIX as TEMPORARY_PREFIX

HISTORY_DIR = "merge_history"
"""Name of the folder, inside a trial's folder, that holds the trial's merge history."""

VERSION_KEY = "rllib_weighted.history"
"""Key in the schema's metadata of the version of the format."""

VERSION = "1"

SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("round", pa.int64(), nullable=False),
        pa.field("env_steps", pa.int64(), nullable=False),
        pa.field("worker", pa.int32(), nullable=False),
        pa.field("env_runner", pa.int32(), nullable=False),
        pa.field("env_index", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("signal", pa.float64()),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("loss", pa.float64()),
        pa.field("episode_return", pa.float64()),
        pa.field("num_episodes", pa.int32(), nullable=False),
        pa.field("dropped", pa.bool_(), nullable=False),
        pa.field("drift", pa.float64()),
        pa.field("signal_age", pa.int32()),
        pa.field("gradient_noise", pa.float64()),
        pa.field("gradient_agreement", pa.float64()),
    ],
    metadata={VERSION_KEY: VERSION},
)
"""Columns of a merge history: a row per (round, worker). `env_steps` counts environment steps of
the whole trial up to the end of the round."""

ADDED_LATER = ("drift", "signal_age", "gradient_noise", "gradient_agreement")
"""Columns that older files of this version lack; they are read as null."""

KEY_COLUMNS = ("trial_id", "round", "worker")
"""What names a row: no two rows of a history agree in all three."""

_FILE_NAME = re.compile(r"rounds-(\d{8,})-(\d{8,})-([0-9a-f]+)\.parquet")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def file_name(first_round: int, last_round: int) -> str:
    """Return a new name for a file with the rounds `first_round` to `last_round`.

    Its last part is unique and, as it begins with the time of day in milliseconds, sorts by the
    time of writing.
    """
    token = f"{time.time_ns() // 1_000_000:011x}{secrets.token_hex(3)}"
    return f"rounds-{first_round:08d}-{last_round:08d}-{token}.parquet"


def parse_file_name(name: str) -> tuple[int, int, str] | None:
    """Return first round, last round and unique part of a file's name; None if it is not ours.

    The rounds are bounds: a file that `MergeHistory.truncate` has shortened keeps its name.
    """
    match = _FILE_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), match[3])


def is_hidden(name: str) -> bool:
    """Whether readers skip a file of this name: still being written, or not for reading."""
    return name.startswith(("_", "."))


def is_uri(location: str) -> bool:
    """Whether a location is a URI such as ``s3://bucket/results``, and not a local path."""
    return _URI.match(location) is not None


def resolve(
    location: str | os.PathLike[str], filesystem: fs.FileSystem | None = None
) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a location and its path there, without a trailing slash.

    Args:
        location: A local path, absolute or not, or a URI such as ``s3://bucket/results``; a path
            in `filesystem` if that is given.
        filesystem: Where the location lies; None to tell from the location.

    Raises:
        ValueError: The location is a URI that pyarrow cannot make a filesystem of.
    """
    path = os.fspath(location)
    if filesystem is None and not is_uri(path):
        return fs.LocalFileSystem(), os.path.abspath(path).replace(os.sep, posixpath.sep)
    if filesystem is None:
        try:
            filesystem, path = fs.FileSystem.from_uri(path)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"location {path!r} should be a local path or a URI that pyarrow.fs knows "
                f"(file://, s3://, gs://, ...): {error}. For another store, pass its filesystem."
            ) from error
    return filesystem, path.rstrip("/") or path
