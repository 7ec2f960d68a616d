"""Tune's tables of results, after a kill and when a trial goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from rllib_weighted.cli.session import (
    ProgressTable,
    SessionCallback,
    TrainSession,
    forget_unreported_rounds,
    session,
    trim_logs,
)
from rllib_weighted.core.durable import DurableFileSystem
from rllib_weighted.fault_tolerance import RESCUE_DIR, rescued_iteration
from rllib_weighted.records import read_history, read_settings
from rllib_weighted.records.reading import HistoryFolder
from tests.cli.test_session import display
from tests.records.helpers import append_rounds, local_history


class FakeTrial(SimpleNamespace):
    """What the functions need of Tune's trial."""

    __hash__ = object.__hash__


def trial(folder: Path, checkpoint: int | None = None, **more: Any) -> Any:
    metrics = {"training_iteration": checkpoint}
    values: dict[str, Any] = {
        "latest_checkpoint_result": checkpoint and SimpleNamespace(metrics=metrics),
        "storage": SimpleNamespace(storage_filesystem=LocalFileSystem(), trial_fs_path=str(folder)),
        "local_path": str(folder),
        "init_local_path": lambda: None,
        "checkpoint": None,
        "trial_id": "a",
    }
    return FakeTrial(**values | more)


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
    trim_logs(trial(tmp_path, checkpoint))
    kept = list(range(1, last + 1))
    assert rounds(tmp_path) == (kept, kept)
    assert (tmp_path / "progress.csv").read_text().startswith("x,training_iteration\n")


def test_a_line_that_the_kill_has_torn_goes_too(tmp_path: Path) -> None:
    write_logs(tmp_path, 3)
    for name, torn in (("result.json", '{"training_iteration": 3, "x": 1'), ("progress.csv", "2.")):
        with (tmp_path / name).open("a") as stream:
            stream.write(torn)
    trim_logs(trial(tmp_path, 9))
    assert rounds(tmp_path) == ([1, 2, 3], [1, 2, 3])


def test_a_trial_without_files_is_left_alone(tmp_path: Path) -> None:
    trim_logs(trial(tmp_path, 3))
    assert list(tmp_path.iterdir()) == []


def rescue(folder: Path, iteration: int) -> Path:
    rescued = folder / RESCUE_DIR
    rescued.mkdir()
    (rescued / "rescue.json").write_text(json.dumps({"training_iteration": iteration}))
    return rescued


@pytest.mark.parametrize(("checkpoint", "rescued", "last"), [(None, 4, 4), (2, 4, 4), (4, 2, 4)])
def test_rounds_before_a_rescue_are_kept(
    tmp_path: Path, checkpoint: int | None, rescued: int, last: int
) -> None:
    """A trial goes on from the newer of its last checkpoint and what was rescued."""
    write_logs(tmp_path, 5)
    rescue(tmp_path, rescued)
    note = trim_logs(trial(tmp_path, checkpoint))
    assert rounds(tmp_path) == (list(range(1, last + 1)),) * 2
    assert (note is not None) == (rescued == last)
    assert rescued_iteration(LocalFileSystem(), str(tmp_path)) == rescued


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_a_rescue_that_the_logs_do_not_reach_is_left_aside(
    tmp_path: Path, checkpoint: int | None
) -> None:
    """The logs would have a hole; from the checkpoint, their rounds come again."""
    write_logs(tmp_path, 5)
    rescued = rescue(tmp_path, 7)
    note = trim_logs(trial(tmp_path, checkpoint))
    assert rounds(tmp_path) == (list(range(1, (checkpoint or 0) + 1)),) * 2
    assert f"after round {checkpoint or 0}; what was rescued after round 7 is left" in str(note)
    assert not rescued.exists()


def test_half_a_rescue_is_none(tmp_path: Path) -> None:
    write_logs(tmp_path, 5)
    rescue(tmp_path, 4).joinpath("rescue.json").write_text("")
    assert trim_logs(trial(tmp_path)) is None
    assert rounds(tmp_path) == ([], [])


def test_tune_goes_on_with_the_trimmed_logs(tmp_path: Path) -> None:
    """Without a checkpoint that it knows of, it does not fetch them, and begins new ones."""
    stored, own = tmp_path / "storage", tmp_path / "staging" / "trial"
    stored.mkdir()
    write_logs(stored, 5)
    rescue(stored, 4)
    trim_logs(trial(stored, local_path=str(own)))
    assert rounds(own) == rounds(stored) == ([1, 2, 3, 4],) * 2
    trim_logs(trial(stored, 2, local_path=str(own)))  # What is there is replaced.
    (stored / RESCUE_DIR / "rescue.json").unlink()
    trim_logs(trial(stored, local_path=str(own)))
    assert rounds(own) == ([], [])


def test_a_kill_while_logs_are_trimmed_leaves_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_logs(tmp_path, 5)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    staging = str(tmp_path / "staging")

    def killed(*names: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            trim_logs(trial(tmp_path, 3, local_path=staging))
    assert {path: path.read_bytes() for path in before} == before
    trim_logs(trial(tmp_path, 3, local_path=staging))
    assert rounds(tmp_path) == ([1, 2, 3], [1, 2, 3])


def test_logs_are_stored_before_tune_knows_of_a_checkpoint(tmp_path: Path) -> None:
    stored, own = tmp_path / "storage", tmp_path / "staging"
    own.mkdir()
    write_logs(own, 3)
    filesystem = DurableFileSystem(LocalFileSystem())
    storage = SimpleNamespace(storage_filesystem=filesystem, trial_fs_path=str(stored))
    one = trial(stored, storage=storage, local_path=str(own))
    stored.mkdir()
    callback = SessionCallback()
    with session(TrainSession(display(), None)):
        assert callback.get_state() is None
        assert list(stored.iterdir()) == []
        callback.on_trial_save(0, [one], one)
        callback.get_state()
        assert rounds(stored) == ([1, 2, 3], [1, 2, 3])
        write_logs(own, 4)
        callback.get_state()  # No other checkpoint: left to Tune.
        assert rounds(stored) == ([1, 2, 3], [1, 2, 3])
        stored.joinpath("result.json").unlink()
        callback.on_trial_save(0, [one], one)
        stored.joinpath("result.json").mkdir()
        with pytest.raises(OSError, match=r"result\.json"):
            callback.get_state()


def test_the_history_of_a_stopped_trial_ends_where_its_results_end(tmp_path: Path) -> None:
    folder = tmp_path / "merge_history"
    history = local_history(folder)
    history.describe({"lr": 0.5})
    append_rounds(history, range(1, 7))
    history.close()
    one = trial(tmp_path, last_result={"num_env_steps_sampled_lifetime": 500})
    forget_unreported_rounds(one)
    assert set(read_history(folder)["round"].to_pylist()) == {1, 2, 3, 4, 5}
    # The rest is as it was.
    files = [str(path) for path in folder.iterdir()]
    assert read_settings(HistoryFolder.of(LocalFileSystem(), str(folder), files)) == {"lr": 0.5}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    forget_unreported_rounds(one)
    forget_unreported_rounds(trial(tmp_path, last_result={}))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    forget_unreported_rounds(trial(tmp_path / "absent", last_result=one.last_result))


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
