from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rllib_weighted.records import read_history
from rllib_weighted.records.schema import TEMPORARY_PREFIX
from tests.records.helpers import (
    BadDisk,
    Killed,
    append_rounds,
    history_on,
    local_history,
    names_in,
    rounds_of,
)


def write_three_files(folder: Path) -> None:
    """Rounds 1 to 9, three a file."""
    history = local_history(folder)
    for first in (1, 4, 7):
        append_rounds(history, range(first, first + 3))
        history.flush()


def rounds_in_files(folder: Path) -> list[list[int]]:
    """Rounds of each file, as any other Parquet reader meets them."""
    tables = [pq.read_table(folder / name) for name in names_in(folder)]
    return [table["round"].to_pylist()[::2] for table in tables]


@pytest.mark.parametrize(
    ("last_round", "expected"),
    [
        (-1, []),
        (0, []),
        (1, [[1]]),
        (3, [[1, 2, 3]]),
        (4, [[1, 2, 3], [4]]),
        (5, [[1, 2, 3], [4, 5]]),
        (6, [[1, 2, 3], [4, 5, 6]]),
        (9, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (100, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_rows_after_the_last_round_go_and_all_others_stay(
    tmp_path: Path, last_round: int, expected: list[list[int]]
) -> None:
    write_three_files(tmp_path)
    before = read_history(tmp_path).to_pylist()
    local_history(tmp_path).truncate(last_round)
    assert rounds_in_files(tmp_path) == expected
    assert read_history(tmp_path).to_pylist() == [x for x in before if x["round"] <= last_round]


def test_files_that_need_no_change_are_not_touched(tmp_path: Path) -> None:
    write_three_files(tmp_path)
    local_history(tmp_path).truncate(5)
    disk = BadDisk()
    history_on(disk, tmp_path).truncate(5)  # the second file is named after its rounds 4 to 6
    assert disk.operations == []


def test_the_buffer_is_truncated_too(tmp_path: Path) -> None:
    history = local_history(tmp_path)
    append_rounds(history, [1, 2, 3])
    history.truncate(2)
    history.flush()
    assert rounds_of(read_history(tmp_path)) == [1, 2]


def test_without_a_folder_nothing_is_created(tmp_path: Path) -> None:
    local_history(tmp_path / "none").truncate(0)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("last_round", [0, 2, 3, 5, 9])
def test_resuming_leaves_no_row_twice(tmp_path: Path, last_round: int) -> None:
    write_three_files(tmp_path)
    resumed = local_history(tmp_path)
    resumed.truncate(last_round)
    append_rounds(resumed, range(last_round + 1, 12), signal=-1.0)
    resumed.close()
    assert sorted(itertools.chain(*rounds_in_files(tmp_path))) == list(range(1, 12))
    table = read_history(tmp_path)
    assert rounds_of(table) == list(range(1, 12))
    redone = [
        r
        for r, s in zip(*table.select(["round", "signal"]).columns, strict=True)
        if s.as_py() == -1.0
    ]
    assert {r.as_py() for r in redone} == set(range(last_round + 1, 12))


def test_truncating_again_to_an_earlier_round(tmp_path: Path) -> None:
    write_three_files(tmp_path)
    for last_round, expected in [(8, [7, 8]), (7, [7]), (5, [4, 5])]:
        local_history(tmp_path).truncate(last_round)
        assert rounds_in_files(tmp_path)[-1] == expected


def test_temporary_files_are_removed(tmp_path: Path) -> None:
    write_three_files(tmp_path)
    names = names_in(tmp_path)
    (tmp_path / f"{TEMPORARY_PREFIX}{names[0]}").write_bytes(b"PAR1 and no more")
    local_history(tmp_path).truncate(9)
    assert names_in(tmp_path) == names


def test_what_is_not_a_merge_history_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_three_files(tmp_path)
    foreign = {"notes.txt": "mine", "_SUCCESS": "", ".hidden": "x"}
    for name, content in foreign.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "sub").mkdir()
    with caplog.at_level(logging.WARNING):
        local_history(tmp_path).truncate(0)
    assert names_in(tmp_path) == sorted([*foreign, "sub"])
    assert [entry.message for entry in caplog.records] != []
    assert "notes.txt as it is: not a readable merge history" in caplog.text


def test_a_history_file_under_another_name_is_truncated_too(tmp_path: Path) -> None:
    write_three_files(tmp_path)
    merged = read_history(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    pq.write_table(merged, tmp_path / "merged.parquet")
    local_history(tmp_path).truncate(5)
    assert rounds_in_files(tmp_path) == [[1, 2, 3, 4, 5]]
    local_history(tmp_path).truncate(0)
    assert names_in(tmp_path) == []


def truncate_and_die(folder: Path, fail_at: int, after: bool, last_round: int) -> bool:
    """Return whether it did die, or was done before."""
    try:
        history_on(BadDisk(fail_at, after=after), folder).truncate(last_round)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", range(6))
def test_a_kill_at_any_point_of_truncating_neither_loses_nor_doubles_rows(
    tmp_path: Path, fail_at: int, after: bool
) -> None:
    write_three_files(tmp_path)
    (tmp_path / f"{TEMPORARY_PREFIX}x.parquet").write_bytes(b"torn")
    # The operations are: the temporary file, rounds 7 to 9, a write and a move for rounds 4 to 6.
    assert truncate_and_die(tmp_path, fail_at, after, last_round=4) == (fail_at < 4)

    # Another reader, who resolves nothing, finds each row once, and a history without gaps.
    rows = [pq.read_table(path) for path in tmp_path.iterdir() if path.name[0] != "_"]
    seen = sorted(number for table in rows for number in table["round"].to_pylist()[::2])
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= 4

    resumed = local_history(tmp_path)
    resumed.truncate(4)
    append_rounds(resumed, range(5, 8))
    resumed.close()
    assert rounds_of(read_history(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    assert not any(name.startswith("_") for name in names_in(tmp_path))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", range(3))
def test_a_kill_at_any_point_of_a_flush_leaves_all_of_its_rows_or_none(
    tmp_path: Path, fail_at: int, after: bool
) -> None:
    write_three_files(tmp_path)
    dying = history_on(BadDisk(fail_at, after=after), tmp_path)
    append_rounds(dying, [10, 11])
    with pytest.raises(Killed):
        dying.flush()
    moved = fail_at == 2 and after
    assert rounds_of(read_history(tmp_path)) == list(range(1, 12 if moved else 10))

    resumed = local_history(tmp_path)
    resumed.truncate(9)
    append_rounds(resumed, [10])
    resumed.close()
    assert sorted(itertools.chain(*rounds_in_files(tmp_path))) == list(range(1, 11))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail_at", range(3))
def test_after_a_failed_truncation_the_same_history_goes_on(
    tmp_path: Path, fail_at: int, after: bool
) -> None:
    write_three_files(tmp_path)
    disk = BadDisk(fail_at, after=after, error=OSError("away"))
    history = history_on(disk, tmp_path)
    with pytest.raises(OSError, match="away"):
        history.truncate(4)
    disk.fail_at = math.inf
    history.truncate(4)
    append_rounds(history, [5])
    history.close()
    assert rounds_in_files(tmp_path) == [[1, 2, 3], [4], [5]]
