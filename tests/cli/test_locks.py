"""One process at a time trains in an experiment's folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rllib_weighted.cli import InputError, locks
from rllib_weighted.cli.locks import CLAIM_PREFIX, LOCK_FILE, Owner, locked


def lock(
    folder: Path, filesystem: fs.FileSystem | None = None, **more: Any
) -> contextlib.AbstractContextManager[None]:
    values: dict[str, Any] = {"on_lost": print, "say": print, **more}
    return locked(filesystem or fs.LocalFileSystem(), str(folder), str(folder), **values)


HOLDS = """
import sys, time
from pyarrow import fs
from rllib_weighted.cli import locks

filesystem = fs.{filesystem}
with locks.locked(filesystem, sys.argv[1], sys.argv[1], on_lost=print, say=print):
    print("held", flush=True)
    time.sleep(600)
"""
LOCAL = "LocalFileSystem()"
REMOTE = "SubTreeFileSystem('/', fs.LocalFileSystem())"  # A store that has no `flock`.


def remote() -> fs.FileSystem:
    return fs.SubTreeFileSystem("/", fs.LocalFileSystem())


@contextlib.contextmanager
def holder(folder: Path, filesystem: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    code = HOLDS.format(filesystem=filesystem)
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# On a local disk


def test_a_running_experiment_is_refused_with_who_and_what_to_do(tmp_path: Path) -> None:
    with (
        holder(tmp_path / "run", LOCAL) as process,
        pytest.raises(InputError) as caught,
        lock(tmp_path / "run"),
    ):
        pass
    text = str(caught.value)
    host = os.uname().nodename
    assert f"{tmp_path}/run is being trained by " in text
    assert f" on {host}, process {process.pid}, since 2" in text
    assert f"stop it (kill {process.pid} on {host}), which saves a checkpoint, and --res" in text
    assert "choose another --name" in text


def test_the_lock_does_not_outlive_its_process(tmp_path: Path) -> None:
    with holder(tmp_path / "run", LOCAL) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock(tmp_path / "run"):
            pass


def test_nor_does_it_live_on_in_a_child_of_it(tmp_path: Path) -> None:
    """Ray's processes are children, and may end seconds later."""
    with lock(tmp_path / "run"):
        child = subprocess.Popen(["sleep", "600"])
    try:
        with lock(tmp_path / "run"):
            pass
    finally:
        child.kill()
        child.wait()


def test_two_of_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock(tmp_path / "run"):
            pass
        with lock(tmp_path / "other"):
            pass


@pytest.mark.parametrize("filesystem", [fs.LocalFileSystem(), remote()])
def test_a_lock_leaves_nothing_behind(tmp_path: Path, filesystem: fs.FileSystem) -> None:
    with lock(tmp_path / "new", filesystem):
        assert (tmp_path / "new").is_dir()
    assert not any((tmp_path / "new").glob("*"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tuner.pkl").touch()
    with lock(tmp_path / "old", filesystem):
        pass
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["tuner.pkl"]


def test_many_at_once(tmp_path: Path) -> None:
    """Nobody gets in beside another one, while the lock file comes and goes."""
    inside, most, served = [0], [0], [0]

    def work() -> None:
        for _ in range(50):
            with contextlib.suppress(InputError), lock(tmp_path / "run"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                served[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert served[0] > 1  # How many get in depends on the machine.


def test_where_the_disk_cannot_lock_a_claim_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with lock(tmp_path / "run"):
        assert len(claims(tmp_path / "run")) == 1
        assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot write to .*/file/run"),
        lock(tmp_path / "file/run"),
    ):
        pass


# On a remote store


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    class Store(fs.SubTreeFileSystem):
        def open_output_stream(self, *args: Any, **kwargs: Any) -> Any:
            raise OSError("s3://KEY:SECRET@bucket is read-only")

    store = Store("/", fs.LocalFileSystem())
    with pytest.raises(InputError, match=r"cannot lock .*: s3://bucket is"), lock(tmp_path, store):
        pass


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims lapse after a second and a half."""
    monkeypatch.setattr(locks, "LEASE_S", 1.5)
    monkeypatch.setattr(locks, "_RENEW_S", 0.2)
    monkeypatch.setattr(locks, "_POLL_S", 0.1)


def claims(folder: Path) -> list[Path]:
    return list(folder.glob(f"{CLAIM_PREFIX}*"))


def claim(folder: Path, **owner: Any) -> Path:
    path = folder / f"{CLAIM_PREFIX}somebody"
    who = Owner(user="eve", host="far", pid=7, since="2026-01-02 03:04:05")
    path.write_text(json.dumps(asdict(replace(who, **owner))))
    return path


@pytest.mark.usefixtures("brief")
def test_a_claim_that_is_renewed_is_respected(tmp_path: Path) -> None:
    path = claim(tmp_path)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.3):
            path.touch()

    thread = threading.Thread(target=renew)
    thread.start()
    said: list[str] = []
    try:
        with (
            pytest.raises(InputError, match=r"by eve on far, process 7, since 2026-01-02 03:04:05"),
            lock(tmp_path, remote(), say=said.append),
        ):
            pass
    finally:
        over.set()
        thread.join()
    assert "eve on far, process 7" in said[0]
    assert path.exists()


@pytest.mark.usefixtures("brief")
def test_a_claim_of_a_lost_node_lapses(tmp_path: Path) -> None:
    path = claim(tmp_path)
    said: list[str] = []
    began = time.monotonic()
    with lock(tmp_path, remote(), say=said.append):
        assert time.monotonic() - began > 1
        assert not path.exists()
    assert len(said) == 1


def test_a_claim_of_a_process_that_has_ended_here_counts_for_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "run", REMOTE) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with lock(tmp_path / "run", remote()):
            assert time.monotonic() - began < 5
            assert len(claims(tmp_path / "run")) == 1


@pytest.mark.usefixtures("brief")
def test_the_own_claim_is_renewed(tmp_path: Path) -> None:
    with lock(tmp_path, remote()):
        (path,) = claims(tmp_path)
        before = path.stat().st_mtime_ns
        time.sleep(1)
        assert path.stat().st_mtime_ns > before
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock(tmp_path, remote()):
            pass


@pytest.mark.usefixtures("brief")
def test_of_those_who_claim_at_once_one_at_most_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks.time, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 10))
    inside, most, refused = [0], [0], [0]
    everybody = threading.Barrier(4)

    def work() -> None:
        everybody.wait()
        try:
            with lock(tmp_path, remote()):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                everybody_done.wait()
        except InputError:
            refused[0] += 1

    everybody_done = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    threading.Event().wait(3)
    everybody_done.set()
    for thread in threads:
        thread.join()
    assert most[0] <= 1
    assert most[0] + refused[0] == 4


@pytest.mark.usefixtures("brief")
def test_who_comes_back_after_too_long_finds_out(tmp_path: Path) -> None:
    """Its claim lapsed while the store was out of reach, and somebody else goes on."""
    lost: list[str] = []
    away = threading.Event()

    class Store(fs.SubTreeFileSystem):
        def open_output_stream(self, *args: Any, **kwargs: Any) -> Any:
            if away.is_set():
                raise OSError("away")
            return super().open_output_stream(*args, **kwargs)

    with lock(tmp_path, Store("/", fs.LocalFileSystem()), on_lost=lost.append):
        away.set()
        time.sleep(1.6)
        with lock(tmp_path, remote()):
            away.clear()
            time.sleep(1)
    assert len(lost) == 1
    assert f"has been taken over by {Owner.of_this_process().user} on" in lost[0]


def test_an_owner_of_another_machine_is_never_known_to_be_gone() -> None:
    me = Owner.of_this_process()
    assert not me.is_gone
    assert replace(me, started="0").is_gone  # Its number is another process's now.
    assert replace(me, pid=2**22 + 1).is_gone
    assert not replace(me, pid=2**22 + 1, boot="another").is_gone
    assert not replace(me, pid=2**22 + 1, boot="").is_gone
    assert Owner.parse("") is Owner.parse("[]") is None
