"""Torn, foreign and rotten files among those of a history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_weighted.records import HISTORY_DIR, SCHEMA, read_history


def make_foreign_text(path: Path, _: Path) -> None:
    path.write_text("round,worker\n1,0\n")


def make_foreign_columns(path: Path, _: Path) -> None:
    pq.write_table(pa.table({"round": [1], "worker": [0]}), path)


def make_foreign_types(path: Path, whole: Path) -> None:
    table = pq.read_table(whole)
    words = pa.array(["much"] * table.num_rows)
    pq.write_table(table.set_column(table.schema.get_field_index("weight"), "weight", words), path)


def make_nulls(path: Path, whole: Path) -> None:
    table = pq.read_table(whole)
    nulls = pa.nulls(table.num_rows, pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("round"), "round", nulls), path)


def make_newer_version(path: Path, whole: Path) -> None:
    metadata = {"rllib_weighted.history": "2"}
    pq.write_table(pq.read_table(whole).replace_schema_metadata(metadata), path)


def make_torn(path: Path, whole: Path) -> None:
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def make_empty(path: Path, _: Path) -> None:
    path.touch()


def make_bit_rot(path: Path, whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    column = pq.ParquetFile(whole).metadata.row_group(0).column(SCHEMA.names.index("share"))
    content[column.data_page_offset - 1] ^= 0xFF  # the end of the shares' dictionary
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_foreign_text, "footer"),
        (make_foreign_columns, "it is not a merge history: it has no column trial_id, env_steps"),
        (make_foreign_types, "much"),
        (make_nulls, "null"),
        (make_newer_version, "its format is version 2, this reader knows version 1"),
        (make_torn, "footer"),
        (make_empty, "0 bytes"),
        (make_bit_rot, "(CRC|crc|checksum)"),
    ],
)
def test_foreign_and_torn_files_are_left_out_with_a_warning(
    experiment: Path, make: Callable[[Path, Path], None], reason: str
) -> None:
    expected = read_history(experiment)
    folder = experiment / "trial_1_b" / HISTORY_DIR
    (whole,) = folder.iterdir()
    bad = folder / "rounds-00000004-00000006-0123.parquet"
    make(bad, whole)
    with pytest.warns(UserWarning, match=rf"left out '{bad}': .*{reason}") as caught:
        table = read_history(experiment)
    assert len(caught) == 1
    assert table.equals(expected)


def test_if_nothing_can_be_read_the_table_is_empty(tmp_path: Path) -> None:
    (tmp_path / HISTORY_DIR).mkdir()
    make_empty(tmp_path / HISTORY_DIR / "x.parquet", tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        assert read_history(tmp_path).num_rows == 0
