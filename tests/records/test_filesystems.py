"""The same history on a disk, in a subtree, in pyarrow's mock store, behind fsspec and on S3."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import fsspec
import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, read_history
from rllib_weighted.records.schema import resolve
from tests.records.helpers import append_rounds, history_on, rounds_of

STORES = ["disk", "subtree", "mock", "fsspec memory", "fsspec disk", "s3"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[fs.FileSystem, str]:
    """A filesystem, and a folder in it that does not exist yet."""
    filesystems = {
        "disk": lambda: (fs.LocalFileSystem(), f"{tmp_path}/x"),
        "subtree": lambda: (fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "x"),
        "mock": lambda: (fs._MockFileSystem(), "bucket/x"),
        "fsspec memory": lambda: (through_fsspec("memory"), f"/{uuid.uuid4()}"),
        "fsspec disk": lambda: (through_fsspec("file"), f"{tmp_path}/x"),
        "s3": lambda: fs.FileSystem.from_uri(f"{request.getfixturevalue('s3_bucket')}/x"),
    }
    return filesystems[request.param]()


def through_fsspec(protocol: str) -> fs.FileSystem:
    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(protocol)))


def test_write_resume_and_read(store: tuple[fs.FileSystem, str]) -> None:
    filesystem, root = store
    folder = f"{root}/experiment/trial/{HISTORY_DIR}"
    assert read_history(root, filesystem).num_rows == 0

    history = history_on(filesystem, folder)
    history.truncate(0)
    for first in (1, 4, 7):
        append_rounds(history, range(first, first + 3))
        history.flush()
    assert rounds_of(read_history(root, filesystem)) == list(range(1, 10))

    with filesystem.open_output_stream(f"{folder}/_tmp-rounds.parquet") as stream:
        stream.write(b"torn")
    resumed = history_on(filesystem, folder)
    resumed.truncate(5)
    for location in (root, f"{root}/experiment", f"{root}/experiment/trial", folder):
        assert rounds_of(read_history(location, filesystem)) == [1, 2, 3, 4, 5]
    append_rounds(resumed, [6])
    resumed.close()
    assert rounds_of(read_history(root, filesystem)) == [1, 2, 3, 4, 5, 6]
    infos = filesystem.get_file_info(fs.FileSelector(folder))
    assert sorted(info.base_name.partition("-")[0] for info in infos) == ["rounds"] * 3


def test_a_uri_is_enough(s3_bucket: str) -> None:
    filesystem, path = resolve(f"{s3_bucket}/run/trial/{HISTORY_DIR}")
    with contextlib.closing(history_on(filesystem, path)) as history:
        append_rounds(history, [1, 2])
    assert rounds_of(read_history(s3_bucket)) == [1, 2]
    assert rounds_of(read_history(f"{s3_bucket}/run/trial")) == [1, 2]
    assert read_history(f"{s3_bucket}/other").num_rows == 0


def test_a_torn_file_is_named(store: tuple[fs.FileSystem, str]) -> None:
    filesystem, root = store
    history = history_on(filesystem, f"{root}/{HISTORY_DIR}")
    append_rounds(history, [1])
    history.close()
    with filesystem.open_output_stream(f"{root}/{HISTORY_DIR}/torn.parquet") as stream:
        stream.write(b"PAR1")
    with pytest.warns(UserWarning, match=r"left out '.*torn\.parquet': "):
        assert rounds_of(read_history(root, filesystem)) == [1]


def test_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/ray_results/run")[1] == f"{tmp_path}/ray_results/run"
    assert resolve("run~1")[1].endswith("/run~1")
