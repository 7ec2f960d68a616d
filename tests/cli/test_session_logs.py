"""Tune's tables of results, after a kill and when a trial goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from rllib_weighted.cli.session import ProgressTable, forget_rounds_behind_checkpoint


class FakeTrial(SimpleNamespace):
    """What the functions need of Tune's trial."""

    __hash__ = object.__hash__


def trial(folder: Path, checkpoint: int | None = None) -> Any:
    metrics = {"training_iteration": checkpoint}
    return FakeTrial(
        latest_checkpoint_result=None if checkpoint is None else SimpleNamespace(metrics=metrics),
        storage=SimpleNamespace(storage_filesystem=LocalFileSystem(), trial_fs_path=str(folder)),
        local_path=str(folder),
        init_local_path=lambda: None,
        checkpoint=None,
    )


def write_logs(folder: Path, rounds: int) -> None:
    lines = [json.dumps({"training_iteration": k, "x": k / 2}) for k in range(1, rounds + 1)]
    (folder / "result.json").write_text("\n".join(lines) + "\n")
    rows = [f"{k / 2},{k}" for k in range(1, rounds + 1)]
    (folder / "progress.csv").write_text("\n".join(["x,training_iteration", *rows]) + "\n")


def rounds(folder: Path) -> tuple[list[int], list[int]]:
    results = (folder / "result.json").read_text().splitlines()
    with (folder / "progress.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return (
        [json.loads(line)["training_iteration"] for line in results],
        [int(row["training_iteration"]) for row in rows],
    )


@pytest.mark.parametrize(("checkpoint", "last"), [(3, 3), (5, 5), (9, 5), (None, 0)])
def test_rounds_behind_the_checkpoint_are_forgotten(
    tmp_path: Path, checkpoint: int | None, last: int
) -> None:
    write_logs(tmp_path, 5)
    forget_rounds_behind_checkpoint(trial(tmp_path, checkpoint))
    kept = list(range(1, last + 1))
    assert rounds(tmp_path) == (kept, kept)
    assert (tmp_path / "progress.csv").read_text().startswith("x,training_iteration\n")


def test_a_line_that_the_kill_has_torn_goes_too(tmp_path: Path) -> None:
    write_logs(tmp_path, 3)
    for name, torn in (("result.json", '{"training_iteration": 3, "x": 1'), ("progress.csv", "2.")):
        with (tmp_path / name).open("a") as stream:
            stream.write(torn)
    forget_rounds_behind_checkpoint(trial(tmp_path, 9))
    assert rounds(tmp_path) == ([1, 2, 3], [1, 2, 3])


def test_a_trial_without_files_is_left_alone(tmp_path: Path) -> None:
    forget_rounds_behind_checkpoint(trial(tmp_path, 3))
    assert list(tmp_path.iterdir()) == []


def test_rows_stay_under_the_header_of_an_earlier_process(tmp_path: Path) -> None:
    """Other columns, in another order: Tune's own logger would write them as they come."""
    write_logs(tmp_path, 2)
    logger = ProgressTable()
    one = trial(tmp_path)
    for number in (3, 4):
        result = {"new": 7, "training_iteration": number, "config": {}}
        logger.log_trial_result(number, one, result | ({"x": 1.5} if number == 4 else {}))
    logger.log_trial_end(one)
    with (tmp_path / "progress.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["training_iteration"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["x"] for row in rows] == ["0.5", "1.0", "", "1.5"]
    assert None not in rows[-1]


def test_a_new_table_has_the_columns_of_its_first_row(tmp_path: Path) -> None:
    logger, one = ProgressTable(), trial(tmp_path)
    logger.log_trial_result(1, one, {"a": 1, "b": {"c": 2}})
    logger.log_trial_result(2, one, {"b": {"c": 4}, "a": 3})
    logger.log_trial_end(one)
    assert (tmp_path / "progress.csv").read_text().split() == ["a,b/c", "1,2", "3,4"]
