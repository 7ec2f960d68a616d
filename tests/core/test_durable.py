"""Files appear whole or not at all; a remote store that is away for a while is waited for."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from rllib_weighted.core import durable as durable_module
from rllib_weighted.core.durable import DurableFileSystem, durable, is_full


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(filesystem: fs.FileSystem, path: Path | str, content: bytes) -> None:
    with filesystem.open_output_stream(str(path)) as stream:
        stream.write(content)


# On a local disk


@pytest.fixture
def local() -> DurableFileSystem:
    return durable(fs.LocalFileSystem())


def test_a_file_has_its_old_content_until_it_is_whole(
    tmp_path: Path, local: DurableFileSystem
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    with local.open_output_stream(str(path)) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["result.json"]


def test_an_equal_file_is_left_as_it_is(tmp_path: Path, local: DurableFileSystem) -> None:
    """Most of what Tune copies is; forcing it to the disk again would take milliseconds each."""
    path, content = tmp_path / "result.json", bytes(3 * 2**20)
    path.write_bytes(content)
    before = path.stat()
    write(local, path, content)
    assert path.stat() == before
    write(local, path, content[:-1] + b"1")
    assert path.stat().st_ino != before.st_ino
    assert names(tmp_path) == ["result.json"]


def test_a_link_stays_a_link(tmp_path: Path, local: DurableFileSystem) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(local, tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


KILLED = """
import os, signal, sys
from pyarrow import fs
from rllib_weighted.core.durable import durable

filesystem = {filesystem}
with filesystem.open_output_stream(sys.argv[1]) as stream:
    stream.write(b"x" * 2**20)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path, filesystem: str) -> None:
    code = KILLED.format(filesystem=filesystem)
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    killed_while_writing(path, "durable(fs.LocalFileSystem())")
    assert path.read_bytes() == b"old"
    killed_while_writing(path, "fs.LocalFileSystem()")  # Negative control.
    assert path.read_bytes() != b"old"


FULL = """
import resource, signal, sys
from pyarrow import fs
from rllib_weighted.core.durable import durable, is_full

# What a write past the limit raises is EFBIG, where a full disk raises ENOSPC.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
filesystem = {filesystem}
try:
    fs.copy_files(sys.argv[1], sys.argv[2], destination_filesystem=filesystem)
except OSError as error:
    print(error)
else:
    print("written")
"""


def copied_to_a_full_disk(source: Path, target: Path, filesystem: str) -> str:
    code = FULL.format(filesystem=filesystem)
    command = [sys.executable, "-c", code, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_copy_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "storage" / "result.json"
    source.write_bytes(b"x" * 2**17)
    target.parent.mkdir()
    target.write_bytes(b"old")
    said = copied_to_a_full_disk(source, target, "durable(fs.LocalFileSystem())")
    assert "File too large" in said
    assert str(target) in said
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["result.json"]
    copied_to_a_full_disk(source, target, "fs.LocalFileSystem()")  # Negative control.
    assert target.read_bytes() != b"old"


def test_what_could_not_be_written_is_noted_until_it_is(
    tmp_path: Path, local: DurableFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "result.json"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*result\.json") as caught:
            write(local, path, b"new")
    assert is_full(caught.value)
    assert list(local.unwritten) == [str(path)]
    assert names(tmp_path) == []
    write(local, path, b"new")
    assert local.unwritten == {}


def test_a_torn_state_of_tune_does_not_replace_a_whole_one(
    tmp_path: Path, local: DurableFileSystem
) -> None:
    path = tmp_path / "experiment_state-2026-01-01.json"
    write(local, path, b'{"whole": 1}')
    with pytest.raises(OSError, match="still being written"):
        write(local, path, b'{"whole": 1, "to')
    assert json.loads(path.read_bytes()) == {"whole": 1}
    write(local, tmp_path / "result.json", b"{}\n{")  # Not a JSON document.


def test_everything_else_is_that_of_the_file_system(
    tmp_path: Path, local: DurableFileSystem
) -> None:
    folder = str(tmp_path / "a")
    local.create_dir(f"{folder}/b")
    write(local, f"{folder}/b/one", b"1")
    local.copy_file(f"{folder}/b/one", f"{folder}/two")
    local.move(f"{folder}/two", f"{folder}/three")
    with local.open_append_stream(f"{folder}/three") as stream:
        stream.write(b"23")
    assert local.open_input_file(f"{folder}/three").read() == b"123"
    assert local.open_input_stream(f"{folder}/three").read() == b"123"
    listed = local.get_file_info(fs.FileSelector(folder, recursive=True))
    assert sorted(info.base_name for info in listed) == ["b", "one", "three"]
    local.delete_dir_contents(f"{folder}/b")
    local.delete_file(f"{folder}/three")
    local.delete_dir(f"{folder}/b")
    assert os.listdir(folder) == []
    assert local == durable(fs.LocalFileSystem())
    assert durable(local) is local


def test_other_processes_get_the_disk_itself(local: DurableFileSystem) -> None:
    assert isinstance(pickle.loads(pickle.dumps(local)), fs.LocalFileSystem)
    assert copy.deepcopy({"filesystem": local})["filesystem"] is local


# In front of a remote store


class Flaky(fs.FileSystemHandler):
    """A store in memory that fails some of its calls."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.objects: dict[str, bytes] = {}
        self.calls = 0

    def call(self) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)

    def get_type_name(self) -> str:
        return "flaky"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self.call()
        types = (fs.FileType.NotFound, fs.FileType.File)
        return [fs.FileInfo(path, types[path in self.objects]) for path in paths]

    def open_input_file(self, path: str) -> Any:
        self.call()
        return pa.BufferReader(self.objects[path])

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.call()
        store, written = self.objects, []

        class Writer:
            closed = False

            def write(self, data: Any) -> None:
                written.append(bytes(data))

            def close(self) -> None:
                self.closed = True
                store[path] = b"".join(written)

        return pa.PythonFile(Writer(), mode="w")

    def delete_file(self, path: str) -> None:
        if path not in self.objects:
            raise FileNotFoundError(path)
        del self.objects[path]
        self.call()

    def move(self, src: str, dest: str) -> None:
        if src not in self.objects:
            raise FileNotFoundError(src)
        self.objects[dest] = self.objects.pop(src)
        self.call()

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = None  # type: ignore[assignment]
    get_file_info_selector = open_append_stream = open_input_stream = None  # type: ignore[assignment]


AWAY = OSError("When uploading: AWS Error NETWORK_CONNECTION during PutObject: curlCode: 7")
BUSY = OSError("AWS Error UNKNOWN (HTTP status 500) during PutObject operation")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes by sleeping alone."""
    slept: list[float] = []
    monkeypatch.setattr(durable_module.time, "sleep", slept.append)
    monkeypatch.setattr(durable_module.time, "monotonic", lambda: sum(slept))
    return slept


def store(*failures: Exception, timeout_s: float = 60) -> tuple[Flaky, DurableFileSystem]:
    handler = Flaky(list(failures))
    return handler, durable(fs.PyFileSystem(handler), timeout_s)


def test_a_store_that_is_away_is_tried_again_with_longer_and_longer_pauses(
    pauses: list[float],
) -> None:
    handler, filesystem = store(AWAY, BUSY, AWAY, BUSY)
    write(filesystem, "a/b", b"content")
    assert handler.objects == {"a/b": b"content"}
    assert [pause > 0.3 for pause in pauses] == [True] * 4
    assert pauses[3] > 2 * pauses[0]
    handler.failures = [AWAY]
    assert filesystem.open_input_stream("a/b").read() == b"content"


def test_the_limit_is_named_when_it_is_reached(pauses: list[float]) -> None:
    _handler, filesystem = store(*[AWAY] * 99, timeout_s=20)
    with pytest.raises(OSError, match=r"was away for 1\d s.*`storage_timeout_s`=20: .*NETWORK"):
        write(filesystem, "a/b", b"content")
    assert sum(pauses) <= 20
    assert list(filesystem.unwritten) == ["a/b"]


def test_without_patience_it_gives_up_at_once(pauses: list[float]) -> None:
    _handler, filesystem = store(AWAY, timeout_s=0)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        filesystem.get_file_info("a/b")
    assert pauses == []


@pytest.mark.parametrize(
    "final",
    [
        OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation"),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"),
        FileNotFoundError("a/b"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(final: OSError, pauses: list[float]) -> None:
    handler, filesystem = store(final)
    with pytest.raises(type(final), match=str(final).partition("(")[0]):
        filesystem.get_file_info("a/b")
    assert (pauses, handler.calls) == ([], 1)


@pytest.mark.parametrize("code", ["SIGNATURE_DOES_NOT_MATCH", "ACCESS_DENIED", "EXPIRED_TOKEN"])
def test_a_refusal_is_said_at_once(code: str, pauses: list[float]) -> None:
    handler, filesystem = store(OSError(f"AWS Error {code} during PutObject operation: no"))
    with pytest.raises(PermissionError, match=f"credentials changed, or run out.*{code}"):
        write(filesystem, "a/b", b"content")
    assert (pauses, handler.calls) == ([], 1)


def test_what_was_done_although_it_failed_is_not_done_twice(pauses: list[float]) -> None:
    handler, filesystem = store()
    handler.objects = {"a": b"1", "b": b"2"}
    handler.failures = [AWAY]
    filesystem.move("a", "c")
    handler.failures = [AWAY]
    filesystem.delete_file("b")
    assert handler.objects == {"c": b"1"}
    with pytest.raises(FileNotFoundError):  # Negative control: nothing had been done.
        filesystem.delete_file("b")


def test_credentials_stay_out_of_errors_and_logs(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    error = OSError("cannot reach s3://KEY:SECRET@bucket: AWS Error NETWORK_CONNECTION")
    _handler, filesystem = store(*[error] * 9, timeout_s=1)
    with pytest.raises(OSError, match="s3://bucket") as caught:
        filesystem.get_file_info("a")
    assert "SECRET" not in str(caught.value) + caplog.text
    assert "does not answer; trying for up to 1 s" in caplog.text


def test_a_store_that_comes_back(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    _handler, filesystem = store(AWAY, AWAY)
    filesystem.get_file_info("a")
    assert caplog.text.count("does not answer") == 1
    assert "The store answers again after 2 tries." in caplog.text
