from __future__ import annotations

import posixpath
from pathlib import Path

import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR
from rllib_weighted.report.trials import ReportError, find_trials
from tests.report.helpers import write_trial


def names(*locations: Path) -> list[str]:
    return [posixpath.basename(trial.path) for trial in find_trials(list(locations))[0]]


def test_trials_at_any_depth_each_once(tmp_path: Path) -> None:
    write_trial(tmp_path / "a" / "t1")
    write_trial(tmp_path / "b" / "deep" / "t2", history=False)
    assert names(tmp_path) == ["t1", "t2"]
    assert names(tmp_path / "b", tmp_path, tmp_path / "a" / "t1") == ["t2", "t1"]
    (trial,), problems = find_trials(tmp_path / "a" / "t1")
    assert trial.files == {"params.json", "progress.csv", "result.json"}
    assert trial.history is not None
    assert problems == []


def test_a_merge_history_stands_for_its_trial(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    assert names(tmp_path / "t1" / HISTORY_DIR) == ["t1"]
    (tmp_path / "t1" / "params.json").unlink()
    (tmp_path / "t1" / "progress.csv").unlink()
    assert names(tmp_path) == ["t1"]


def test_another_tools_folder_is_named(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    (tmp_path / "sb3").mkdir()
    (tmp_path / "sb3" / "progress.csv").write_text("rollout/ep_rew_mean\n1\n")
    trials, problems = find_trials(tmp_path)
    assert len(trials) == 1
    assert problems == [
        f"left out {tmp_path}/sb3: progress.csv without params.json is not a trial of Tune"
    ]


def test_only_another_tools_results(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("rollout/ep_rew_mean\n1\n")
    with pytest.raises(ReportError, match=r"no trials in .*\n- left out .* is not a trial of Tune"):
        find_trials(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no trials in .*: give folders that Tune or `rllib"):
        find_trials(tmp_path)


def test_one_of_several_folders_is_empty(tmp_path: Path) -> None:
    write_trial(tmp_path / "full" / "t1")
    (tmp_path / "empty").mkdir()
    _, problems = find_trials([tmp_path / "full", tmp_path / "empty"])
    assert problems == [f"no trial under {tmp_path}/empty"]


def test_bad_locations(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ReportError, match="there is no folder"):
        find_trials(tmp_path / "absent")
    with pytest.raises(ReportError, match="should be a folder of trials, and is a file"):
        find_trials(file)
    with pytest.raises(ReportError, match="cannot read nothing://x"):
        find_trials("nothing://x")
    with pytest.raises(ReportError, match="no trials in no folder at all"):
        find_trials([])


def test_other_filesystems(tmp_path: Path) -> None:
    write_trial(tmp_path / "experiment" / "t1")
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    (trial,), _ = find_trials("experiment", store)
    assert trial.path == "experiment/t1"
    mock = fs._MockFileSystem()
    mock.create_dir("bucket/t1")
    with mock.open_output_stream("bucket/t1/params.json") as stream:
        stream.write(b"{}")
    assert [posixpath.basename(trial.path) for trial in find_trials("bucket", mock)[0]] == ["t1"]


def test_files_that_are_being_written_are_left_alone(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    (tmp_path / "t1" / HISTORY_DIR / "_tmp-x.parquet").touch()
    (trial,), _ = find_trials(tmp_path)
    assert trial.history is not None
    assert len(trial.history.files) == 1
