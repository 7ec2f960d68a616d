"""Reads merge histories: finds them under any folders, leaves out what is not one, says so."""

from __future__ import annotations

import itertools
import os
import posixpath
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from rllib_weighted.records.schema import (
    ADDED_LATER,
    HISTORY_DIR,
    KEY_COLUMNS,
    SCHEMA,
    VERSION,
    VERSION_KEY,
    is_hidden,
    parse_file_name,
    resolve,
)

Locations = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What `read_file` raises for a file that is torn, foreign or out of reach."""

_NUM_THREADS = 8  # of which most wait for a remote store
_NUM_AHEAD = 16  # folders read before they are asked for: bounds the memory


class HistoryFolder(NamedTuple):
    """A folder with merge history files, these in the order of writing."""

    filesystem: fs.FileSystem
    path: str
    files: list[str]

    @classmethod
    def of(cls, filesystem: fs.FileSystem, path: str, files: Sequence[str]) -> HistoryFolder:
        """Return the folder with its files brought into the order of writing."""
        return cls(filesystem, path, sorted(files, key=_writing_order))


def read_history(
    locations: Locations,
    filesystem: fs.FileSystem | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read one or many merge histories into one table.

    See `iter_history`, which holds one trial in memory at a time, for the arguments, for what
    is left out with a warning, and for errors.

    Returns:
        The rows sorted by trial_id, round and worker, none of which are there twice; without any
        history, an empty table. Its schema is `SCHEMA`, or the `columns` of it.
    """
    names = _check_columns(columns)
    keys = list(dict.fromkeys([*KEY_COLUMNS, *names]))
    tables = list(iter_history(locations, filesystem, columns=keys))
    tables.sort(key=lambda table: (table["trial_id"][0].as_py(), table["round"][0].as_py()))
    if not tables:
        return _schema_of(names).empty_table()
    return pa.concat_tables(tables).select(names)


def iter_history(
    locations: Locations,
    filesystem: fs.FileSystem | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Read one or many merge histories, one trial's at a time.

    Files that are torn, foreign or out of reach are left out, and the others read. If a row (same
    trial, round and worker) is in a folder twice, the one written last counts. If two folders
    hold the same rounds of the same trial, as copies or runs without a trial id of their own do,
    the first folder's count. A file that is removed while being read is taken as gone.

    Args:
        locations: One or many folders: merge histories, or folders that contain some at any depth
            in folders named `HISTORY_DIR` (trials, experiments). Local paths or URIs, or paths
            in `filesystem`. One that does not exist contains none.
        filesystem: Where the locations lie; None to tell from each location.
        columns: Columns of `SCHEMA` to read; None for all.

    Yields:
        For each folder and trial, a table with at least one row, sorted by round and worker; the
        folders in the order of the locations, within one by path.

    Raises:
        ValueError: Unknown columns, or a URI that pyarrow cannot make a filesystem of.
        OSError: A location could not be listed.

    Warns:
        UserWarning: Names each file or folder that is left out, and why.
    """
    names = _check_columns(columns)
    keys = list(dict.fromkeys([*KEY_COLUMNS, *names]))
    seen: dict[str, list[_Span]] = {}
    for folder, (tables, problems) in _read_ahead(_find(locations, filesystem), keys):
        claims = [(table, _claim(seen, table, folder.path)) for table in tables]
        for problem in [*problems, *(text for _, text in claims if text)]:
            warnings.warn(problem, UserWarning, stacklevel=2)
        yield from (table.select(names) for table, problem in claims if not problem)


def read_file(
    filesystem: fs.FileSystem, path: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read one file of a merge history, its rows as they were written.

    Args:
        filesystem: Where the file lies.
        path: The file.
        columns: Columns of `SCHEMA` to read; None for all.

    Raises:
        UNREADABLE: The file is torn, foreign or out of reach.
    """
    names = list(SCHEMA.names if columns is None else columns)
    with (
        filesystem.open_input_file(path) as source,
        pq.ParquetFile(source, page_checksum_verification=True) as file,
    ):
        _check_schema(file.schema_arrow)
        table = file.read(columns=names, use_threads=False)
    for name in names:
        if name not in table.column_names:  # The file is older than the column.
            table = table.append_column(
                SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type)
            )
    schema = _schema_of(names)
    return table.select(names).cast(schema)


def _check_schema(schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY.encode(), VERSION.encode()).decode()
    if version != VERSION:
        raise ValueError(f"its format is version {version}, this reader knows version {VERSION}")
    needed = [name for name in SCHEMA.names if name not in ADDED_LATER]
    missing = [name for name in needed if name not in schema.names]
    if missing:
        raise ValueError(f"it is not a merge history: it has no column {', '.join(missing)}")


def _check_columns(columns: Sequence[str] | None) -> list[str]:
    names = list(SCHEMA.names if columns is None else columns)
    unknown = [name for name in names if name not in SCHEMA.names]
    if unknown:
        raise ValueError(f"unknown columns {unknown}: a merge history has {SCHEMA.names}")
    return names


def _schema_of(names: Sequence[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in names], metadata=SCHEMA.metadata)


_Span = tuple[int, int, str]  # first round, last round, folder


def _claim(seen: dict[str, list[_Span]], table: pa.Table, path: str) -> str | None:
    """Note a trial's rounds as those of a folder, or say why not: another one has them."""
    trial_id = table["trial_id"][0].as_py()
    first, last = table["round"][0].as_py(), table["round"][-1].as_py()
    spans = seen.setdefault(trial_id, [])
    for other_first, other_last, other in spans:
        if first <= other_last and other_first <= last:
            return (
                f"left out trial {trial_id!r} of {path!r}, rounds {first} to {last}: {other!r} has "
                "rounds of the same trial; a copy, or a second run with its id"
            )
    spans.append((first, last, path))
    return None


def _find(locations: Locations, filesystem: fs.FileSystem | None) -> Iterator[HistoryFolder]:
    """Yield the merge histories under the locations, each once."""
    if isinstance(locations, (str, os.PathLike)):
        locations = [locations]
    found: dict[str, list[fs.FileSystem]] = {}
    for location in locations:
        where, path = resolve(location, filesystem)
        if where.get_file_info(path).is_file:
            text = f"left out {path!r}: it should be a folder, and is a file"
            warnings.warn(text, UserWarning, stacklevel=4)
            continue
        selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
        for folder in group(where, where.get_file_info(selector), renamed=path):
            known = found.setdefault(folder.path, [])
            if where not in known:
                known.append(where)
                yield folder


def group(
    filesystem: fs.FileSystem, infos: Iterable[fs.FileInfo], renamed: str = ""
) -> list[HistoryFolder]:
    """Return the merge histories among listed files, by path.

    Args:
        filesystem: Where the files lie.
        infos: The files, and whatever else was listed.
        renamed: A folder that counts as a history, whatever it is called, if a file in it has a
            name as `file_name` gives it.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for info in infos:
        folder = posixpath.dirname(info.path)
        is_ours = folder.strip("/") == renamed.strip("/") and parse_file_name(info.base_name)
        if posixpath.basename(folder) != HISTORY_DIR and not is_ours:
            continue
        if info.is_file and not is_hidden(info.base_name):
            folders[folder].append(info.path)
    return [HistoryFolder.of(filesystem, *item) for item in sorted(folders.items())]


def _writing_order(path: str) -> tuple[str, str]:
    parts = parse_file_name(posixpath.basename(path))
    return ("" if parts is None else parts[2], path)


_Read = tuple[list[pa.Table], list[str]]


def _read_ahead(
    folders: Iterator[HistoryFolder], columns: list[str]
) -> Iterator[tuple[HistoryFolder, _Read]]:
    """Read folders in a few threads, a bounded number of them at a time."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        while batch := list(itertools.islice(folders, _NUM_AHEAD)):
            found = pool.map(read_folder, batch, itertools.repeat(columns))
            yield from zip(batch, found, strict=True)


def read_folder(folder: HistoryFolder, columns: list[str]) -> _Read:
    """Read a folder; see `iter_history` for what is left out.

    Args:
        folder: The folder.
        columns: Columns of `SCHEMA`; all of `KEY_COLUMNS` are among them.

    Returns:
        The tables, one per trial, and a sentence on each file that is left out.
    """
    tables: list[pa.Table] = []
    problems: list[str] = []
    for path in folder.files:
        try:
            tables.append(read_file(folder.filesystem, path, columns))
        except FileNotFoundError:
            continue  # removed since it was listed: by `truncate`, or as a whole
        except UNREADABLE as error:
            problems.append(f"left out {path!r}: {error}")
    if not tables:
        return [], problems
    return _split(pa.concat_tables(tables)), problems


def _split(table: pa.Table) -> list[pa.Table]:
    """Split rows in the order of writing by trial; sort them, and keep the last of equal keys."""
    trial_ids = table["trial_id"]
    codes = np.zeros(table.num_rows, dtype=np.int64)
    for code, trial_id in enumerate(sorted(pc.unique(trial_ids).to_pylist())):
        if code > 0:
            codes[pc.equal(trial_ids, trial_id).to_numpy()] = code
    keys = np.stack([codes, table["round"].to_numpy(), table["worker"].to_numpy()])
    order = np.lexsort(keys[::-1])  # stable
    keys = keys[:, order]
    is_last = np.ones(table.num_rows, dtype=bool)
    is_last[:-1] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    order, codes = order[is_last], keys[0, is_last]
    if not np.array_equal(order, np.arange(table.num_rows)):
        table = table.take(order)
    ends = np.flatnonzero(np.diff(codes, append=-1)) + 1
    starts = [0, *ends[:-1].tolist()] if len(ends) else []
    return [table.slice(a, z - a) for a, z in zip(starts, ends.tolist(), strict=True)]
