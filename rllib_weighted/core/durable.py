"""A file system for results: files appear whole or not at all, and outages are waited for.

Tune copies its logs and its own state into the storage again and again, each time by emptying the
file and filling it (2.60): a kill, or a disk that is full, leaves half of it, or nothing. Through a
`DurableFileSystem` a file is written under another name, and moved onto its own when it is whole.
On a remote store, where an object appears whole by itself, every operation that fails for want of
an answer is tried again, up to a limit.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import posixpath
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from rllib_weighted.core import stores
from rllib_weighted.core.redaction import redact

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 300.0
"""Seconds for which a remote store may be away before a run gives up."""

TEMPORARY_PREFIX = "_tmp-"
"""Begins the name of a file that is still being written. `pyarrow.dataset`, Spark and others skip
names that begin with an underscore or a dot."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_BLOCK = 2**20
_IN_MEMORY = 32 * 2**20  # Bytes of a file that is on its way to a remote store.
_TUNE_STATE = "experiment_state-"  # Begins the names of Tune's own files of an experiment's state.

_T = TypeVar("_T")


class DurableFileSystem(fs.PyFileSystem):
    """A file system in front of another one.

    In other processes, and so in Tune's files, one in front of a local disk is that disk's own
    file system: only the process that starts a run rewrites files there.

    Args:
        inner: The file system.
        timeout_s: Seconds for which a failed operation of a remote one is tried again.
        location: URI of `inner` without credentials; other processes open it anew. None: they get
            `inner` itself.
    """

    def __init__(
        self,
        inner: fs.FileSystem,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        location: str | None = None,
    ) -> None:
        super().__init__(_Handler(inner, timeout_s))
        self.inner, self.timeout_s, self.location = inner, timeout_s, location

    @property
    def unwritten(self) -> dict[str, OSError]:
        """Files whose last version could not be written in this process, each with the reason."""
        return dict(self.handler.unwritten)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.inner, fs.LocalFileSystem):
            return fs.LocalFileSystem, ()
        if self.location is None:
            return DurableFileSystem, (self.inner, self.timeout_s)
        stores.publish(self.location)
        return _reopened, (self.location, self.timeout_s)

    def __copy__(self) -> DurableFileSystem:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DurableFileSystem:
        return self


def _reopened(location: str, timeout_s: float) -> DurableFileSystem:
    return DurableFileSystem(stores.open_uri(location), timeout_s, location)


def durable(filesystem: fs.FileSystem, timeout_s: float = DEFAULT_TIMEOUT_S) -> DurableFileSystem:
    """Returns a file system through which files are written whole; itself, if it is one already."""
    if isinstance(filesystem, DurableFileSystem):
        return filesystem
    return DurableFileSystem(filesystem, timeout_s)


def unwritten(filesystem: fs.FileSystem, folder: str) -> OSError | None:
    """Returns why a file in a folder could not be written in this process; None if all could.

    `pyarrow.fs.copy_files` (26.0) does not say when closing a file has failed.
    """
    if isinstance(filesystem, DurableFileSystem):
        for path, error in filesystem.unwritten.items():
            if path.startswith(f"{folder.rstrip('/')}/"):
                return error
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left, or no quota."""
    texts = ("No space left", "quota exceeded", f"[Errno {errno.ENOSPC}]")
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in texts)


def where_full(paths: Iterable[str], *, need: int = 2**20) -> list[str]:
    """Returns those of some local folders that have next to no space left; `need` is in bytes."""
    full = []
    for path in paths:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(path).free < need:
                full.append(path)
    return full


class _Stream:
    """What a file is written to; pyarrow wraps it.

    Args:
        file: Where the bytes go for now.
        noting: Inside it, errors name the file and are noted.
        commit: Gives the whole file its name.
        discard: Removes what was written, where there will be no whole file.
    """

    def __init__(
        self,
        file: IO[bytes],
        noting: Callable[[], AbstractContextManager[None]],
        commit: Callable[[IO[bytes]], None],
        discard: Callable[[], None],
    ) -> None:
        self._file, self._noting, self._commit, self._discard = file, noting, commit, discard
        self._problem: tuple[Any, ...] | None = None
        self.closed = False

    def write(self, data: Any) -> int:  # Anything with a buffer.
        try:
            with self._noting():
                return self._file.write(data)
        except OSError as error:
            # Not the error itself, whose traceback would keep this object alive.
            self._problem = error.errno, error.strerror, error.filename
            self._close_quietly()
            self._discard()
            raise

    def flush(self) -> None:
        """Does nothing: nobody can see the file yet."""

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with contextlib.ExitStack() as stack:
            stack.callback(self._discard)
            stack.callback(self._close_quietly)
            if self._problem is not None:
                raise OSError(*self._problem)
            with self._noting():
                self._commit(self._file)

    def _close_quietly(self) -> None:
        with contextlib.suppress(OSError):  # It would only flush what is going to be removed.
            self._file.close()

    def __del__(self) -> None:  # Of a copy that broke off: nobody has closed it.
        if not self.closed:
            self._close_quietly()
            self._discard()


class _Handler(fs.FileSystemHandler):
    """The operations of a `DurableFileSystem`, as pyarrow calls them."""

    def __init__(self, inner: fs.FileSystem, timeout_s: float) -> None:
        self.inner, self.timeout_s = inner, timeout_s
        self.is_local = isinstance(inner, fs.LocalFileSystem)
        self.unwritten: dict[str, OSError] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and bool(self.inner == other.inner)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return str(self.inner.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    # Reading

    def get_file_info(self, paths: list[str]) -> Any:
        return self._persist(lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self._persist(lambda: self.inner.get_file_info(selector))

    def open_input_stream(self, path: str) -> Any:
        if self.is_local:
            return self.inner.open_input_stream(path, compression=None)
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        if self.is_local:
            return self.inner.open_input_file(path)
        return self._persist(lambda: self._read(path))

    def _read(self, path: str) -> pa.BufferReader:
        """Reads a whole object, so that one whose reading breaks off can be read again."""
        with self.inner.open_input_file(path) as file:
            return pa.BufferReader(file.read_buffer())

    # Writing

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        stream = self._local_stream(path) if self.is_local else self._remote_stream(path, metadata)
        return pa.PythonFile(stream, mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self.inner.open_append_stream(path, compression=None, metadata=metadata)

    def _local_stream(self, path: str) -> _Stream:
        final = os.path.realpath(path)  # A link stays one.
        name = f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}"
        temporary = os.path.join(os.path.dirname(final), name)

        def commit(file: IO[bytes]) -> None:
            _refuse_torn_state(path, file)
            # Tune copies all files of all trials, every few seconds; most are those of before.
            if not _is_as_before(file, final):
                os.fsync(file.fileno())
                os.replace(temporary, final)
            self.unwritten.pop(path, None)

        with self._noting(path):
            file = open(temporary, "x+b")  # noqa: SIM115  # `_Stream` closes it.
        return _Stream(file, lambda: self._noting(path), commit, lambda: _remove(temporary))

    def _remote_stream(self, path: str, metadata: Any) -> _Stream:
        def commit(file: IO[bytes]) -> None:
            _refuse_torn_state(path, file)
            self._persist(lambda: self._upload(file, path, metadata))
            self.unwritten.pop(path, None)

        file: Any = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        return _Stream(file, lambda: self._noting(path), commit, lambda: None)

    def _upload(self, file: IO[bytes], path: str, metadata: Any) -> None:
        file.seek(0)
        with self.inner.open_output_stream(path, compression=None, metadata=metadata) as stream:
            shutil.copyfileobj(file, stream, _BLOCK)

    @contextlib.contextmanager
    def _noting(self, path: str) -> Iterator[None]:
        """Names the file in an error, and notes that it is not what it should be."""
        try:
            yield
        except OSError as error:
            named = error if error.errno is None else OSError(error.errno, error.strerror, path)
            self.unwritten[path] = named
            raise named from None

    # Changing

    def create_dir(self, path: str, recursive: bool) -> None:
        self._persist(lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        for lost in [name for name in self.unwritten if name.startswith(f"{path}/")]:
            del self.unwritten[lost]
        self._persist(lambda: self.inner.delete_dir(path), is_done=lambda: not self._has(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self._persist(lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        self.inner.delete_dir_contents("/", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self._persist(lambda: self.inner.delete_file(path), is_done=lambda: not self._has(path))

    def move(self, src: str, dest: str) -> None:
        self._persist(
            lambda: self.inner.move(src, dest),
            is_done=lambda: self._has(dest) and not self._has(src),
        )

    def copy_file(self, src: str, dest: str) -> None:
        self._persist(lambda: self.inner.copy_file(src, dest))

    def _has(self, path: str) -> bool:
        return bool(self.inner.get_file_info(path).type != fs.FileType.NotFound)

    def _persist(self, call: Callable[[], _T], *, is_done: Callable[[], bool] | None = None) -> Any:
        """Calls until it succeeds, fails for good, or has failed for `timeout_s` seconds.

        Args:
            call: The operation.
            is_done: Whether a call that has failed was carried out all the same; asked when it
                fails again because what it is about is gone.
        """
        if self.is_local:
            return call()
        began, pause, tries = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            try:
                result = call()
                if tries:
                    logger.warning("The store answers again after %d tries.", tries)
                return result
            except OSError as error:
                if tries and isinstance(error, FileNotFoundError) and is_done and is_done():
                    return None
                spent = time.monotonic() - began
                if stores.is_refusal(error):
                    raise PermissionError(
                        "the store refuses what it used to grant: have the credentials changed, or "
                        f"run out? It says: {redact(str(error))}"
                    ) from None
                if not stores.may_pass(error):
                    raise
                if spent + pause > self.timeout_s:
                    raise OSError(
                        f"the store was away for {spent:.0f} s, longer than `storage_timeout_s`="
                        f"{self.timeout_s:g}: {redact(str(error))}"
                    ) from None
                if not tries:
                    logger.warning(
                        "The store does not answer; trying for up to %g s (`storage_timeout_s`): "
                        "%s",
                        self.timeout_s,
                        redact(str(error)),
                    )
            tries += 1
            time.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _refuse_torn_state(path: str, written: IO[bytes]) -> None:
    """Keeps Tune's older state where the newer one is torn.

    Tune (2.60) may write its state anew while a thread of its copies the file. It comes again.

    Raises:
        OSError: What was written is not JSON.
    """
    if posixpath.basename(path).startswith(_TUNE_STATE):
        written.seek(0)
        try:
            json.load(written)
        except ValueError:
            raise OSError(errno.EAGAIN, "was still being written; it comes again") from None


def _is_as_before(file: IO[bytes], path: str) -> bool:
    """Whether a file that was just written is the same as the one that is there."""
    size = file.seek(0, os.SEEK_END)  # This flushes, too.
    try:
        with open(path, "rb") as before:
            if os.fstat(before.fileno()).st_size != size:
                return False
            file.seek(0)
            while block := file.read(_BLOCK):
                if before.read(_BLOCK) != block:
                    return False
            return True
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
