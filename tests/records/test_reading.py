from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, SCHEMA, iter_history, read_history
from tests.records.helpers import append_rounds, history_on, local_history, rounds_of, write_trial


def test_an_experiment_is_read_sorted_by_trial_round_and_worker(experiment: Path) -> None:
    table = read_history(experiment)
    keys = [table[name].to_pylist() for name in ("trial_id", "round", "worker")]
    assert list(zip(*keys, strict=True)) == [
        *(("a", number, worker) for number in (1, 2) for worker in (0, 1)),
        *(("b", number, worker) for number in (1, 2, 3) for worker in (0, 1)),
    ]
    assert table.schema.equals(SCHEMA, check_metadata=True)


@pytest.mark.parametrize(
    "choose",
    [
        lambda root: root / "trial_1_b",
        lambda root: str(root / "trial_1_b"),
        lambda root: [root / "trial_1_b"],
        lambda root: root / "trial_1_b" / HISTORY_DIR,
        lambda root: f"{root}/trial_1_b/{HISTORY_DIR}/",
        lambda root: f"file://{root}/trial_1_b",
        lambda root: (root / "trial_1_b", root / "trial_1_b" / HISTORY_DIR),
        lambda root: [root / "trial_1_b", root / "nowhere"],
    ],
)
def test_what_a_location_may_be(experiment: Path, choose: Callable[[Path], object]) -> None:
    table = read_history(choose(experiment))  # type: ignore[arg-type]
    assert set(table["trial_id"].to_pylist()) == {"b"}
    assert rounds_of(table) == [1, 2, 3]


def test_many_locations_are_read_together(experiment: Path) -> None:
    both = [experiment / "trial_1_b", experiment / "trial_2_a"]
    assert read_history(both).equals(read_history(experiment))
    assert read_history([experiment, *both]).equals(read_history(experiment))


def test_locations_in_a_given_filesystem(experiment: Path) -> None:
    inside = fs.SubTreeFileSystem(str(experiment), fs.LocalFileSystem())
    assert read_history("trial_2_a", inside).equals(read_history(experiment / "trial_2_a"))
    assert read_history("", inside).equals(read_history(experiment))


def test_a_renamed_history_folder_given_itself_is_read(experiment: Path) -> None:
    (experiment / "trial_1_b" / HISTORY_DIR).rename(experiment / "saved")
    assert rounds_of(read_history(experiment / "saved")) == [1, 2, 3]


def test_where_there_is_none_the_table_is_empty(tmp_path: Path) -> None:
    for location in (tmp_path, tmp_path / "nowhere", []):
        table = read_history(location)
        assert table.num_rows == 0
        assert table.schema.equals(SCHEMA, check_metadata=True)


def test_columns_in_the_order_asked_for(experiment: Path) -> None:
    table = read_history(experiment, columns=["weight", "round"])
    assert table.column_names == ["weight", "round"]
    assert table.equals(read_history(experiment).select(["weight", "round"]))
    assert read_history([], columns=["weight"]).column_names == ["weight"]
    for part in iter_history(experiment, columns=["share"]):
        assert part.column_names == ["share"]


def test_an_unknown_column_is_named(experiment: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown columns \['reward'\]: a merge history has \["):
        read_history(experiment, columns=["round", "reward"])


def test_one_table_a_trial(experiment: Path) -> None:
    parts = list(iter_history(experiment))
    assert [(part["trial_id"][0].as_py(), part.num_rows) for part in parts] == [("b", 6), ("a", 4)]


def test_more_trials_than_are_read_ahead(tmp_path: Path) -> None:
    for number in range(40):
        write_trial(tmp_path / str(number), f"{number:02d}", range(2))
    table = read_history(tmp_path)
    assert table["trial_id"].to_pylist()[::4] == [f"{number:02d}" for number in range(40)]
    first = next(iter(iter_history(tmp_path)))  # leaving early is fine
    assert first.num_rows == 4


def test_a_file_as_location_is_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.warns(UserWarning, match="notes': it should be a folder, and is a file"):
        assert read_history(tmp_path / "notes").num_rows == 0


def test_hidden_files_are_skipped_silently(experiment: Path) -> None:
    expected = read_history(experiment)
    folder = experiment / "trial_1_b" / HISTORY_DIR
    (whole,) = folder.iterdir()
    for name in (f"_tmp-{whole.name}", ".crc", "_SUCCESS"):
        (folder / name).write_bytes(b"PAR1")
    assert read_history(experiment).equals(expected)


def test_a_file_of_another_writer_is_read_by_its_columns(tmp_path: Path) -> None:
    whole = read_history(write_trial(tmp_path / "x", "a", range(1, 3)))
    wide = pa.table(
        {
            name: whole[name].cast(pa.int64()) if whole[name].type == pa.int32() else whole[name]
            for name in reversed(whole.column_names)
        }
    ).append_column("note", pa.array(["?"] * whole.num_rows))
    (tmp_path / "y" / HISTORY_DIR).mkdir(parents=True)
    pq.write_table(wide, tmp_path / "y" / HISTORY_DIR / "part-0.parquet")
    assert read_history(tmp_path / "y").equals(whole)


def test_of_rows_that_are_there_twice_the_last_written_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("time.time_ns", lambda: int(next(seconds) * 1e9))
    for signal, rounds in [(3.0, range(2, 4)), (1.0, range(1, 5)), (2.0, range(3, 6))]:
        write_trial(tmp_path, "a", rounds, signal=signal)
    table = read_history(tmp_path)
    assert rounds_of(table) == [1, 2, 3, 4, 5]
    assert table["signal"].to_pylist()[::2] == [1.0, 3.0, 3.0, 2.0, 2.0]


def test_rounds_written_out_of_order_are_sorted(tmp_path: Path) -> None:
    history = local_history(tmp_path)
    append_rounds(history, [3, 1, 2])
    history.flush()
    table = read_history(tmp_path)
    assert rounds_of(table) == [1, 2, 3]
    assert table["env_steps"].to_pylist()[::2] == [100, 200, 300]


def test_two_trials_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    write_trial(tmp_path, "b", range(1, 3))
    write_trial(tmp_path, "a", range(1, 4))
    write_trial(tmp_path, "b", range(3, 4))
    table = read_history(tmp_path)
    assert table["trial_id"].to_pylist() == ["a"] * 6 + ["b"] * 6
    assert rounds_of(table) == [1, 2, 3, 1, 2, 3]


def test_of_a_trial_that_is_there_twice_the_first_folder_counts(experiment: Path) -> None:
    expected = read_history(experiment)
    copy = experiment.parent / "copy"
    shutil.copytree(experiment / "trial_1_b", copy)
    with pytest.warns(UserWarning, match=r"left out trial 'b' of .*copy.* same trial") as caught:
        table = read_history([experiment, copy])
    assert len(caught) == 1
    assert table.equals(expected)


def test_a_trial_that_went_on_in_another_folder_is_read_as_one(tmp_path: Path) -> None:
    write_trial(tmp_path / "2nd", "a", range(1, 4))
    write_trial(tmp_path / "1st", "a", range(4, 6))
    assert rounds_of(read_history(tmp_path)) == [1, 2, 3, 4, 5]


class Vanishing(fs.LocalFileSystem):
    """A disk from which files go between being listed and being opened."""

    def open_input_file(self, path: str, **_: object) -> pa.NativeFile:
        Path(path).unlink()
        return super().open_input_file(path)


def test_a_file_that_goes_while_reading_is_gone_without_a_warning(experiment: Path) -> None:
    assert read_history(str(experiment), Vanishing()).num_rows == 0


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    class Refusing(fs.LocalFileSystem):
        def get_file_info(self, _: object) -> object:
            raise PermissionError("access denied")

    with pytest.raises(PermissionError, match="access denied"):
        read_history(str(tmp_path), Refusing())


def test_many_rows_agree_with_a_plain_dictionary(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected: dict[tuple[str, int, int], float] = {}
    histories = {name: history_on(fs.LocalFileSystem(), tmp_path / name, name) for name in "cab"}
    for number in rng.permutation(100):
        for name, history in histories.items():
            if rng.random() < 0.3:
                continue
            value = float(rng.normal())
            append_rounds(history, [int(number)], signal=value)
            expected |= {(name, int(number), worker): value for worker in range(2)}
            if rng.random() < 0.2:
                history.flush()
    for history in histories.values():
        history.close()
    table = read_history([tmp_path / name for name in "cab"])
    rows = zip(
        *table.select(["trial_id", "round", "worker", "signal"]).to_pydict().values(), strict=True
    )
    assert [((t, r, w), s) for t, r, w, s in rows] == sorted(expected.items())
    assert not any(math.isnan(value) for value in expected.values())


def test_a_file_from_before_a_column_is_read_with_nulls(tmp_path: Path) -> None:
    history = local_history(tmp_path)
    append_rounds(history, [1])
    history.flush()
    (path,) = tmp_path.iterdir()
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["drift"]), path)
    found = read_history(tmp_path)
    assert found.schema == SCHEMA
    assert found["drift"].null_count == len(found) == len(table) > 0
    assert found.drop_columns(["drift"]).equals(table.drop_columns(["drift"]))
