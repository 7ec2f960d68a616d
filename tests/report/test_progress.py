from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rllib_weighted.report import progress as module
from rllib_weighted.report.progress import ENV_STEPS, ROUND, TIME, read_held_out, read_progress
from rllib_weighted.report.trials import Trial, find_trials
from tests.report.helpers import HELD_OUT, METRIC, STEPS, rows_of, write_csv, write_trial


def trial_in(folder: Path) -> Trial:
    return find_trials(folder)[0][0]


def test_a_whole_file(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0, 3.0])
    progress, problems = read_progress(trial_in(tmp_path), [METRIC])
    assert problems == []
    assert progress.rows[ROUND].tolist() == [1, 2, 3]
    assert progress.rows[ENV_STEPS].tolist() == [STEPS, 2 * STEPS, 3 * STEPS]
    assert progress.rows[TIME].tolist() == [2.0, 4.0, 6.0]
    assert progress.rows[METRIC].tolist() == [1.0, 2.0, 3.0]
    assert progress.finished
    assert progress.source == "progress.csv"
    assert progress.facts["trial_id"] == "t1"
    assert progress.facts["hostname"] == "machine"
    assert METRIC in progress.columns


def test_a_run_in_progress_is_not_finished(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", finished=False)
    progress, _ = read_progress(trial_in(tmp_path), [METRIC])
    assert not progress.finished


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("4,400.0,Fal", "a torn last line"),
        ("4,400.0,False\r\n", "1 lines with too few or too many values"),
    ],
)
def test_torn_lines_are_left_out_and_counted(tail: str, message: str, tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0, 3.0])
    file = tmp_path / "t1" / "progress.csv"
    file.write_bytes(file.read_bytes() + tail.encode())
    progress, problems = read_progress(trial_in(tmp_path), [METRIC])
    assert progress.rows[ROUND].tolist() == [1, 2, 3]
    assert problems == [f"left out {message} of {file}"]


def test_nan_and_empty_cells_are_nan(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, float("nan"), 3.0])
    progress, _ = read_progress(trial_in(tmp_path), [METRIC])
    assert np.isnan(progress.rows[METRIC]).tolist() == [False, True, False]


def test_rounds_that_a_restored_run_repeats_count_once(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    rows = rows_of([1.0, 2.0, 3.0, 4.0], trial_id="t1", finished=False, metrics=[METRIC])
    again = [{**row, METRIC: 10 * row[METRIC]} for row in rows[1:3]]
    write_csv(tmp_path / "t1" / "progress.csv", [*rows[:3], *again])
    progress, _ = read_progress(trial_in(tmp_path), [METRIC])
    assert progress.rows[ROUND].tolist() == [1, 2, 3]
    assert progress.rows[METRIC].tolist() == [1.0, 20.0, 30.0]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\x00\xff\x00\n\x01"])
def test_a_foreign_table_is_replaced_by_the_results(content: bytes, tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0])
    (tmp_path / "t1" / "progress.csv").write_bytes(content)
    progress, (problem,) = read_progress(trial_in(tmp_path), [METRIC])
    assert progress.source == "result.json"
    assert progress.rows[METRIC].tolist() == [1.0, 2.0]
    assert progress.rows[TIME].tolist() == [2.0, 4.0]
    assert progress.finished
    assert problem.startswith(f"left out {tmp_path}/t1/progress.csv: ")


def test_a_metric_that_the_table_lacks_comes_from_the_results(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0, 3.0], held_out={2: 7.0})
    progress, _ = read_progress(trial_in(tmp_path), [HELD_OUT])
    assert progress.source == "result.json"
    assert np.nan_to_num(progress.rows[HELD_OUT], nan=-1).tolist() == [-1, 7.0, -1]


def test_torn_results(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0], progress=False)
    file = tmp_path / "t1" / "result.json"
    file.write_text(file.read_text() + '[1]\n{"training_iteration": 3, "num_env')
    progress, problems = read_progress(trial_in(tmp_path), [METRIC])
    assert progress.rows[ROUND].tolist() == [1, 2]
    assert problems == [f"left out 2 torn or foreign lines of {file}"]


def test_nothing_to_read(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", progress=False)
    (tmp_path / "t1" / "result.json").write_text("")
    progress, problems = read_progress(trial_in(tmp_path), [METRIC])
    assert progress.rows.empty
    assert problems == []


VALUES = {round: float(round) for round in range(5, 101, 5)}


@pytest.mark.parametrize("block", [1 << 18, 100, 7])
@pytest.mark.parametrize(
    ("first_round", "expected"),
    [(91, [95.0, 100.0]), (96, [100.0]), (1, list(VALUES.values())), (101, [100.0])],
)
def test_held_out_returns_from_the_end(
    first_round: int,
    expected: list[float],
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # RLlib repeats the value in the round after an evaluation: rounds 6, 11, ... must not count.
    repeated = {round + 1: value for round, value in VALUES.items()}
    write_trial(tmp_path / "t1", [1.0] * 100, held_out={**repeated, **VALUES})
    monkeypatch.setattr(module, "_BLOCK", block)
    assert read_held_out(trial_in(tmp_path), first_round, 5) == expected


def test_the_last_evaluation_counts_if_there_was_none_since(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0] * 19, held_out={10: 3.0})
    assert read_held_out(trial_in(tmp_path), 18, 10) == [3.0]


def test_the_file_is_not_read_further_back_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trial(tmp_path / "t1", [1.0] * 1000, held_out={1000: 3.0, 1: 9.0})
    read: list[bytes] = []
    parse = module.parse_result
    monkeypatch.setattr(module, "parse_result", lambda line: read.append(line) or parse(line))
    assert read_held_out(trial_in(tmp_path), 990, 10) == [3.0]
    assert len(read) == 12  # 990 to 1000, and the one that ends it


def test_foreign_lines_are_skipped_from_the_end(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0], held_out={2: 3.0})
    file = tmp_path / "t1" / "result.json"
    file.write_text("[]\n" + file.read_text() + json.dumps({"training_iteration": "x"}) + "\n{")
    assert read_held_out(trial_in(tmp_path), 1, 1) == [3.0]
