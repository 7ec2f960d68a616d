from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rllib_weighted.records import (
    HISTORY_DIR,
    SCHEMA,
    MergeHistory,
    read_history,
    read_settings,
    resolved_settings,
)
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


SETTINGS = {
    "env": "CartPole-v1",
    "seed": 3,
    "lr": [[0, 0.1], [100, 0.01]],
    "num_learners": 2,
    "evaluation_interval": 5,
    "evaluation_duration": 10,
    "log_level": "WARN",
    "_secret": object(),
    "observation_fn": object(),
    "merge_strategy": "<what the user wrote>",
    "min_weight": None,
}
RESOLVED = {
    "merge_strategy": "reward_weighted",
    "merge_options": {"offset": "min"},
    "min_weight": 0.125,
    "num_workers": 8,
}


def recorded(folder: Path, settings: dict[str, Any] | None) -> dict[str, Any]:
    history = MergeHistory(fs.LocalFileSystem(), str(folder), trial_id="a", settings=settings)
    append_rounds(history, range(1, 5))
    history.close()
    return read_settings(folder_of(folder))


def test_settings_come_back_resolved_and_without_what_cannot_change_learning(
    tmp_path: Path,
) -> None:
    found = recorded(tmp_path, resolved_settings(SETTINGS, **RESOLVED))
    kept = ("env", "seed", "lr", "num_learners", "evaluation_interval")
    assert found == {
        **{name: SETTINGS[name] for name in kept},
        **RESOLVED,
        "observation_fn": "<object object>",  # without the address, which differs in every process
    }


def test_a_history_without_settings_has_none(tmp_path: Path) -> None:
    assert recorded(tmp_path, None) == {}


def test_the_newest_file_counts_and_a_shortened_one_keeps_them(tmp_path: Path) -> None:
    recorded(tmp_path, {"lr": 0.1})
    history = MergeHistory(
        fs.LocalFileSystem(), str(tmp_path), trial_id="a", settings={"lr": 0.2}, flush_seconds=1e9
    )
    history.truncate(2)
    assert read_settings(folder_of(tmp_path)) == {"lr": 0.2}
    append_rounds(history, [3])
    history.close()
    assert read_settings(folder_of(tmp_path)) == {"lr": 0.2}
    assert read_origin(folder_of(tmp_path)) == origin()


def test_readers_see_the_schema_alone_with_settings_too(tmp_path: Path) -> None:
    recorded(tmp_path / HISTORY_DIR, {"lr": 0.1})
    assert read_history(tmp_path).schema.equals(SCHEMA, check_metadata=True)
