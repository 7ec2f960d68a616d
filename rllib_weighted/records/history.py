"""Writes the merge history of a trial: Parquet files, a row per (round, worker).

Every flush adds one file. It is written under a temporary name that readers skip and moved to its
own name when whole, so nothing is ever appended to or seen half written, and an object store does
as well as a disk. Shortening works by the same move onto an existing name (see
`MergeHistory.truncate`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from rllib_weighted.records.metrics import WorkerRecord
from rllib_weighted.records.origin import ORIGIN_KEY, SETTINGS_KEY, encode_settings, origin
from rllib_weighted.records.reading import UNREADABLE, read_file
from rllib_weighted.records.schema import (
    HISTORY_DIR,
    SCHEMA,
    TEMPORARY_PREFIX,
    file_name,
    is_hidden,
    parse_file_name,
)

__all__ = ["HISTORY_DIR", "SCHEMA", "MergeHistory"]

logger = logging.getLogger(__name__)


class MergeHistory:
    """The merge history that one trial writes. One writer at a time, one thread.

    Args:
        filesystem: Where the history lies; any pyarrow filesystem.
        path: The history's folder in `filesystem`, by custom named `HISTORY_DIR`. Nothing is
            created before the first flush.
        trial_id: Identity of the trial, in every row.
        settings: What `resolved_settings` returns, for the metadata of every file; None leaves
            the settings out.
        flush_seconds: `append` flushes when this many seconds have passed since the last flush.
        clock: Returns seconds; only differences count.

    Raises:
        ValueError: `flush_seconds` is negative or NaN.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        path: str,
        *,
        trial_id: str,
        settings: Mapping[str, Any] | None = None,
        flush_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not flush_seconds >= 0:
            raise ValueError(
                f"`flush_seconds`={flush_seconds} should be 0 (flush every round) or more seconds"
            )
        self._filesystem = filesystem
        self._folder = path.rstrip("/") or path
        self._trial_id = trial_id
        self._metadata = {**SCHEMA.metadata, ORIGIN_KEY: json.dumps(origin())}
        if settings is not None:
            self.describe(settings)
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._last_flush = clock()
        self._buffer: list[tuple[int, pa.RecordBatch]] = []
        self._doubtful: set[str] = set()
        self._folder_made = False
        self._failing = False
        self._closed = False

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Has the files written from now on carry these settings; see `resolved_settings`.

        A restored trial calls it: it goes on with the settings of its checkpoint.
        """
        self._metadata[SETTINGS_KEY] = encode_settings(settings)

    def append(self, round: int, env_steps: int, records: Sequence[WorkerRecord]) -> None:
        """Add the rows of one round, and flush if it is time to.

        A flush that fails here is logged and tried again `flush_seconds` later: a store that is
        away for a while does not end the training.

        Args:
            round: Number of the round; rises from call to call.
            env_steps: Environment steps of the trial up to the end of the round.
            records: One record per worker. NaN in signal, loss and return is stored as null.

        Raises:
            ValueError: The history is closed, or the round negative.
            OverflowError, pyarrow.ArrowInvalid: A value does not fit its column of `SCHEMA`; the
                round is then not recorded.
        """
        if self._closed:
            raise ValueError(f"merge history {self._folder!r} is closed: open a new one to append")
        if round < 0:
            raise ValueError(f"`round`={round} should be 0 or more")
        if records:
            self._buffer.append((round, _batch(self._trial_id, round, env_steps, records)))
        if self._clock() - self._last_flush >= self._flush_seconds:
            with contextlib.suppress(OSError):  # flush() has logged it and keeps the rows
                self.flush()

    def flush(self) -> None:
        """Write what was appended since the last flush, as one file. Call it before a checkpoint.

        Raises:
            OSError: The store failed. The rows are kept, and the next flush writes them.
        """
        self._last_flush = self._clock()
        if not self._buffer:
            return
        rounds = [round for round, _ in self._buffer]
        table = pa.Table.from_batches([batch for _, batch in self._buffer], schema=SCHEMA)
        try:
            self._remove_doubtful()
            if not self._folder_made:
                self._filesystem.create_dir(self._folder, recursive=True)
                self._folder_made = True
            table = table.replace_schema_metadata(self._metadata)
            self._write(file_name(min(rounds), max(rounds)), table, is_new=True)
        except OSError as error:
            self._folder_made = False
            if not self._failing:
                logger.warning(
                    "Could not write rounds %d to %d of the merge history to %s (%s). They are "
                    "kept in memory and tried again; further failures are not logged.",
                    min(rounds),
                    max(rounds),
                    self._folder,
                    error,
                )
            self._failing = True
            raise
        self._buffer.clear()
        self._failing = False

    def truncate(self, last_round: int) -> None:
        """Remove every row after `last_round`; call it when a checkpoint of that round is restored.

        The order makes a kill at any point harmless. Files are handled from the newest rounds to
        the oldest, so what is left is at any time a history without gaps. A file that holds
        rounds on both sides is replaced by its shortened self in one move onto its own name:
        before it a reader finds the old file, after it the new one, never both or neither. Only
        then are rows gone, and only ones after `last_round`. After a kill, truncating again
        finishes the work. Files that are not a merge history are left alone.

        Args:
            last_round: The last round to keep.

        Raises:
            OSError: The store failed. Truncating again finishes the work.
        """
        self._buffer = [item for item in self._buffer if item[0] <= last_round]
        selector = fs.FileSelector(self._folder, allow_not_found=True)
        files = [info for info in self._filesystem.get_file_info(selector) if info.is_file]
        for info in files:
            if info.base_name.startswith(TEMPORARY_PREFIX):
                self._filesystem.delete_file(info.path)
        histories = [info for info in files if not is_hidden(info.base_name)]
        for info in sorted(histories, key=lambda info: info.base_name, reverse=True):
            self._truncate_file(info.path, info.base_name, last_round)

    def close(self) -> None:
        """Flush, and accept no more rounds. A second call does nothing.

        Raises:
            OSError: The store failed. The history stays open, so that closing can be tried again.
        """
        self.flush()
        self._closed = True

    def _truncate_file(self, path: str, name: str, last_round: int) -> None:
        bounds = parse_file_name(name)
        if bounds is not None and bounds[1] <= last_round:
            return
        if bounds is not None and bounds[0] > last_round:
            self._filesystem.delete_file(path)
            return
        try:
            table = read_file(self._filesystem, path)
            with self._filesystem.open_input_file(path) as source:
                before = pq.read_schema(source).metadata or {}
        except UNREADABLE as error:
            logger.warning("Left %s as it is: not a readable merge history (%s).", path, error)
            return
        # Whoever only shortens a history may know no settings.
        metadata = {k.decode(): v.decode() for k, v in before.items()} | self._metadata
        kept = table.filter(pc.less_equal(table["round"], last_round))
        if kept.num_rows == 0:
            self._filesystem.delete_file(path)
        elif kept.num_rows < table.num_rows:
            self._write(name, kept.replace_schema_metadata(metadata), is_new=False)

    def _write(self, name: str, table: pa.Table, *, is_new: bool) -> None:
        """Write a file of the folder so that it appears, or is replaced, whole."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        final = posixpath.join(self._folder, name)
        temporary = posixpath.join(self._folder, TEMPORARY_PREFIX + name)
        try:
            with self._filesystem.open_output_stream(temporary) as stream:
                stream.write(sink.getvalue())
            self._filesystem.move(temporary, final)
        except OSError:
            self._doubtful |= {temporary, final} if is_new else {temporary}
            raise

    def _remove_doubtful(self) -> None:
        """Remove what a failed write may have left.

        A store can report a failure for a move that it did carry out. The rows are still in the
        buffer and about to be written under another name: without this they would be there twice.
        """
        for path in sorted(self._doubtful):
            if self._filesystem.get_file_info(path).type != fs.FileType.NotFound:
                self._filesystem.delete_file(path)
            self._doubtful.discard(path)


def _batch(
    trial_id: str, round: int, env_steps: int, records: Sequence[WorkerRecord]
) -> pa.RecordBatch:
    """Return the rows of a round; the fields of `WorkerRecord` are the names of their columns."""
    rows = [
        {"trial_id": trial_id, "round": round, "env_steps": env_steps, **vars(record)}
        for record in records
    ]
    arrays = [
        # In a nullable column, pandas' rule: NaN is null.
        pa.array([row[field.name] for row in rows], field.type, from_pandas=field.nullable)
        for field in SCHEMA
    ]
    return pa.record_batch(arrays, schema=SCHEMA)
