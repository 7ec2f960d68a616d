from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rllib_weighted.records import SCHEMA, read_history
from rllib_weighted.records.origin import ORIGIN_KEY, origin, read_origin
from rllib_weighted.records.reading import HistoryFolder
from tests.records.helpers import append_rounds, local_history, write_trial


def folder_of(path: Path) -> HistoryFolder:
    return HistoryFolder.of(fs.LocalFileSystem(), str(path), [str(p) for p in path.iterdir()])


def test_it_names_versions_and_the_machine() -> None:
    found = origin()
    assert found["ray"] == importlib.metadata.version("ray")
    assert found["rllib-weighted"] == importlib.metadata.version("rllib-weighted")
    assert found["python"] == platform.python_version()
    assert int(found["cpus"]) >= 1


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert origin.__wrapped__()["ray"] == "not installed"


def test_every_file_says_what_it_was_recorded_with(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", "a", range(1, 4))
    assert read_origin(folder_of(folder)) == origin()


def test_a_shortened_file_still_says_so(tmp_path: Path) -> None:
    history = local_history(tmp_path / "h")
    append_rounds(history, range(1, 5))
    history.flush()
    history.truncate(2)
    assert read_origin(folder_of(tmp_path / "h")) == origin()


def test_readers_see_the_schema_alone(tmp_path: Path) -> None:
    write_trial(tmp_path / "trial", "a", range(1, 4))
    assert read_history(tmp_path).schema.equals(SCHEMA, check_metadata=True)


def with_metadata(path: Path, metadata: dict[str, str]) -> None:
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)


def test_files_that_say_nothing_or_nonsense(tmp_path: Path) -> None:
    with_metadata(tmp_path / "rounds-00000001-00000001-a.parquet", {ORIGIN_KEY: '{"ray": 2}'})
    assert read_origin(folder_of(tmp_path)) == {"ray": "2"}
    (tmp_path / "rounds-00000001-00000001-b.parquet").write_bytes(b"PAR1")
    with_metadata(tmp_path / "rounds-00000001-00000001-c.parquet", {ORIGIN_KEY: "{torn"})
    with_metadata(tmp_path / "rounds-00000001-00000001-d.parquet", {ORIGIN_KEY: json.dumps([1])})
    assert read_origin(folder_of(tmp_path)) == {"ray": "2"}
    with_metadata(tmp_path / "rounds-00000001-00000001-e.parquet", {"x": "y"})
    assert read_origin(folder_of(tmp_path)) == {}
    assert read_origin(HistoryFolder(fs.LocalFileSystem(), "/x", [])) == {}
