from __future__ import annotations

import logging
import math
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, SCHEMA, MergeHistory, read_history
from tests.records.helpers import (
    BadDisk,
    append_rounds,
    history_on,
    local_history,
    names_in,
    record,
    rounds_of,
)

COLUMNS = [
    ("trial_id", "string"),
    ("round", "int64"),
    ("env_steps", "int64"),
    ("worker", "int32"),
    ("env_runner", "int32"),
    ("env_index", "int32"),
    ("seed", "int64"),
    ("signal", "double"),
    ("share", "double"),
    ("weight", "double"),
    ("loss", "double"),
    ("episode_return", "double"),
    ("num_episodes", "int32"),
    ("dropped", "bool"),
    ("drift", "double"),
    ("signal_age", "int32"),
    ("gradient_noise", "double"),
    ("gradient_agreement", "double"),
]
NULLABLE = {"env_index", "seed", "signal", "loss", "episode_return", "drift"}
NULLABLE |= {"signal_age", "gradient_noise", "gradient_agreement"}


def test_columns_types_and_what_may_be_null() -> None:
    assert [(field.name, str(field.type)) for field in SCHEMA] == COLUMNS
    assert {field.name for field in SCHEMA if field.nullable} == NULLABLE
    assert SCHEMA.metadata == {b"rllib_weighted.history": b"1"}


def test_a_file_is_plain_parquet_with_the_schema(tmp_path: Path) -> None:
    history = local_history(tmp_path)
    append_rounds(history, [1])
    history.flush()
    (path,) = tmp_path.iterdir()
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert {**table.schema.metadata, **SCHEMA.metadata} == table.schema.metadata
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_every_value_comes_back(tmp_path: Path) -> None:
    history = local_history(tmp_path, "trial é")
    records = [
        record(0, seed=2**62, signal=-1.5, share=0.125, weight=1.125, loss=3e-300, num_episodes=0),
        record(1, env_runner=2, env_index=None, seed=None, episode_return=-math.inf, dropped=True),
    ]
    history.append(7, 4096, records)
    history.flush()
    rows = read_history(tmp_path).to_pylist()
    assert rows == [
        {"trial_id": "trial é", "round": 7, "env_steps": 4096, **vars(item)} for item in records
    ]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_is_missing_or_nan_is_null(tmp_path: Path, missing: float | None) -> None:
    history = local_history(tmp_path)
    history.append(1, 10, [record(signal=missing, loss=missing, episode_return=missing)])
    history.flush()
    (row,) = read_history(tmp_path).to_pylist()
    assert row["signal"] is None
    assert row["loss"] is None
    assert row["episode_return"] is None


def test_nothing_is_created_before_the_first_rows_are_flushed(tmp_path: Path) -> None:
    history = local_history(tmp_path / "trial" / HISTORY_DIR)
    history.flush()
    history.append(1, 10, [])
    history.flush()
    append_rounds(history, [2])
    assert names_in(tmp_path) == []
    history.flush()
    assert len(names_in(tmp_path / "trial" / HISTORY_DIR)) == 1
    history.flush()
    assert len(names_in(tmp_path / "trial" / HISTORY_DIR)) == 1


def test_a_file_is_named_by_its_rounds_and_names_sort_by_them(tmp_path: Path) -> None:
    history = local_history(tmp_path)
    append_rounds(history, range(1, 4))
    history.flush()
    append_rounds(history, range(4, 13))
    history.flush()
    first, second = names_in(tmp_path)
    assert re.fullmatch(r"rounds-00000001-00000003-[0-9a-f]+\.parquet", first)
    assert re.fullmatch(r"rounds-00000004-00000012-[0-9a-f]+\.parquet", second)


def test_append_flushes_when_the_time_since_the_last_flush_is_over(tmp_path: Path) -> None:
    now = 1000.0
    history = MergeHistory(
        fs.LocalFileSystem(), str(tmp_path), trial_id="a", flush_seconds=60, clock=lambda: now
    )
    written = []
    for seconds in (0, 59, 60, 61, 119, 121):
        now = 1000.0 + seconds
        append_rounds(history, [seconds])
        written.append(len(names_in(tmp_path)))
    assert written == [0, 0, 1, 1, 1, 2]
    assert rounds_of(read_history(tmp_path)) == [0, 59, 60, 61, 119, 121]


def test_zero_flush_seconds_write_every_round(tmp_path: Path) -> None:
    history = MergeHistory(fs.LocalFileSystem(), str(tmp_path), trial_id="a", flush_seconds=0)
    append_rounds(history, range(3))
    assert len(names_in(tmp_path)) == 3


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_negative_or_nan_flush_seconds_are_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"`flush_seconds`=.* should be 0 .* or more seconds"):
        MergeHistory(fs.LocalFileSystem(), str(tmp_path), trial_id="a", flush_seconds=seconds)


def test_a_negative_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`round`=-1 should be 0 or more"):
        append_rounds(local_history(tmp_path), [-1])


@pytest.mark.parametrize("changes", [{"seed": 2**63}, {"env_index": 2**31}])
def test_a_value_that_does_not_fit_is_refused_and_the_other_rounds_are_written(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    history = local_history(tmp_path)
    append_rounds(history, [1])
    with pytest.raises((OverflowError, pa.ArrowInvalid)):
        append_rounds(history, [2], **changes)
    append_rounds(history, [3])
    history.flush()
    assert rounds_of(read_history(tmp_path)) == [1, 3]


def test_close_writes_the_rest_and_ends_appending(tmp_path: Path) -> None:
    history = local_history(tmp_path)
    append_rounds(history, [1])
    history.close()
    history.close()
    assert rounds_of(read_history(tmp_path)) == [1]
    with pytest.raises(ValueError, match="is closed: open a new one"):
        append_rounds(history, [2])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_failed_flush_keeps_the_rows_for_the_next(
    tmp_path: Path, fail_at: int, after: bool
) -> None:
    folder = tmp_path / HISTORY_DIR
    disk = BadDisk(fail_at, after=after, error=OSError("no space left"))
    history = history_on(disk, folder)
    append_rounds(history, [1, 2])
    with pytest.raises(OSError, match="no space left"):
        history.flush()
    assert disk.operations[-1] == ["create_dir", "write", "move"][fail_at]
    landed = disk.operations[-1] == "move" and after
    assert rounds_of(read_history(folder)) == ([1, 2] if landed else [])

    disk.fail_at = math.inf
    append_rounds(history, [3])
    history.flush()
    assert pq.read_table(folder)["round"].to_pylist() == [1, 1, 2, 2, 3, 3]
    assert len(names_in(folder)) == 1  # no temporary file is left either


def test_a_failed_flush_leaves_earlier_files_readable(tmp_path: Path) -> None:
    disk = BadDisk(error=OSError("gone"))
    history = history_on(disk, tmp_path)
    append_rounds(history, [1])
    history.flush()
    disk.fail_at = len(disk.operations) + 1
    append_rounds(history, [2])
    with pytest.raises(OSError, match="gone"):
        history.flush()
    assert rounds_of(read_history(tmp_path)) == [1]


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / HISTORY_DIR
    history = local_history(folder)
    append_rounds(history, [1])
    history.flush()
    shutil.rmtree(folder)
    append_rounds(history, [2])
    with pytest.raises(FileNotFoundError):
        history.flush()
    history.flush()
    assert rounds_of(read_history(folder)) == [2]


def test_truncating_after_a_failed_flush_that_did_land_doubles_nothing(tmp_path: Path) -> None:
    disk = BadDisk(2, after=True, error=OSError("timed out"))
    history = history_on(disk, tmp_path)
    append_rounds(history, [1, 2, 3])
    with pytest.raises(OSError, match="timed out"):
        history.flush()
    disk.fail_at = math.inf
    history.truncate(2)
    history.flush()
    assert pq.read_table(tmp_path)["round"].to_pylist() == [1, 1, 2, 2]


def test_append_survives_an_outage_and_logs_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = BadDisk(0, error=OSError("no route to host"))
    history = MergeHistory(disk, str(tmp_path), trial_id="a", flush_seconds=0)
    with caplog.at_level(logging.WARNING):
        append_rounds(history, [1, 2, 3])
        assert [entry.message for entry in caplog.records] == [
            "Could not write rounds 1 to 1 of the merge history to "
            f"{tmp_path} (no route to host). They are kept in memory and tried again; further "
            "failures are not logged."
        ]
        disk.fail_at = math.inf
        append_rounds(history, [4])
        assert rounds_of(read_history(tmp_path)) == [1, 2, 3, 4]
        disk.fail_at = 0
        append_rounds(history, [5])
    assert len(caplog.records) == 2  # a second outage is news


def test_while_the_store_is_away_it_is_tried_only_at_the_flush_interval(tmp_path: Path) -> None:
    now = 0.0
    disk = BadDisk(0, error=OSError("away"))
    history = MergeHistory(disk, str(tmp_path), trial_id="a", flush_seconds=10, clock=lambda: now)
    for second in range(31):
        now = float(second)
        append_rounds(history, [second])
    assert disk.operations == ["create_dir"] * 3


@pytest.mark.parametrize("location", [".", HISTORY_DIR, HISTORY_DIR + "/"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "uri", "path"])
def test_a_history_is_read_from_the_trial_folder_or_its_history_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = f"{tmp_path}/{location}" if location != "." else str(tmp_path)
    where = {
        "absolute": absolute,
        "relative": location,
        "uri": f"file://{absolute}",
        "path": Path(absolute),
    }[kind]
    history = local_history(tmp_path / HISTORY_DIR)
    append_rounds(history, [1])
    history.close()
    assert rounds_of(read_history(where)) == [1]


def test_an_unknown_kind_of_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'nostore://x' should be a local path or a URI"):
        read_history("nostore://x")
