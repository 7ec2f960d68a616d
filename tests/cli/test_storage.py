"""Names and folders of experiments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rllib_weighted.cli import InputError
from rllib_weighted.cli.storage import (
    RECORD_FILE,
    ExperimentRecord,
    child,
    experiment_to_resume,
    new_name,
    open_storage,
    parent,
    read_record,
    refuse_existing,
    storage_root,
    write_record,
)


def experiment(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "tuner.pkl").write_bytes(b"")
    return folder


def test_storage_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage_root(None) == str(tmp_path / "ray_results")
    assert storage_root("~/results") == str(tmp_path / "results")
    assert storage_root("s3://bucket/folder/") == "s3://bucket/folder"


@pytest.mark.parametrize("name", ["RAY_AIR_LOCAL_CACHE_DIR", "TUNE_RESULT_DIR"])
def test_a_variable_with_which_ray_refuses_to_train_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "/old/results")
    for path in (None, "/new/results"):
        with pytest.raises(InputError, match=f"{name} should not be set.*/old/results.*unset it"):
            storage_root(path)


def test_newest_of_a_file_is_resumed(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(["a_2026-01-02_03-04-05", "a_2026-01-01_03-04-05", "a_long_name"]):
        folder = experiment(tmp_path, name)
        os.utime(folder / "tuner.pkl", (1000 - age, 1000 - age))
    assert experiment_to_resume(str(tmp_path), "a", None) == "a_2026-01-02_03-04-05"
    assert experiment_to_resume(str(tmp_path), "a", "a_long_name") == "a_long_name"


def test_drawn_names_are_found_again(tmp_path: Path) -> None:
    name = new_name("bipedal")
    experiment(tmp_path, name)
    assert experiment_to_resume(str(tmp_path), "bipedal", None) == name


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no experiment of 'a'"):
        experiment_to_resume(str(tmp_path / "absent"), "a", None)
    experiment(tmp_path, "first")
    (tmp_path / "no_experiment").mkdir()
    with pytest.raises(InputError, match=r"no experiment 'frist' in .*did you mean 'first'"):
        experiment_to_resume(str(tmp_path), "a", "frist")
    with pytest.raises(InputError, match="no experiment 'no_experiment'"):
        experiment_to_resume(str(tmp_path), "a", "no_experiment")


def test_existing_name_is_refused(tmp_path: Path) -> None:
    experiment(tmp_path, "taken")
    with pytest.raises(InputError, match="continue it with --resume, or choose another --name"):
        refuse_existing(str(tmp_path), "taken")
    refuse_existing(str(tmp_path), "free")


def test_record_comes_back(tmp_path: Path) -> None:
    record = ExperimentRecord(file="/a/b.py", experiment="b", settings=["lr=1"], local_mode=True)
    write_record(str(tmp_path), record)
    assert read_record(str(tmp_path)) == record


def test_record_without_what_json_cannot_hold(tmp_path: Path) -> None:
    write_record(str(tmp_path), ExperimentRecord(arguments={"config": {"callbacks": object()}}))
    assert read_record(str(tmp_path)) == ExperimentRecord()


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"of": "another tool"})])
def test_damaged_or_foreign_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    assert read_record(str(tmp_path)) is None


def test_unknown_file_system() -> None:
    with pytest.raises(InputError, match="cannot open the storage nothing://x"):
        open_storage("nothing://x/y")


@pytest.mark.parametrize(
    ("location", "below", "above"),
    [
        ("/results", "/results/run", "/"),
        ("/results?x", "/results?x/run", "/"),
        ("s3://b/results/", "s3://b/results/run", "s3://b"),
        ("s3://b/results?region=x", "s3://b/results/run?region=x", "s3://b?region=x"),
    ],
)
def test_the_query_of_a_uri_stays_at_its_end(location: str, below: str, above: str) -> None:
    assert child(location, "run") == below
    assert parent(below) == location.replace("/?", "?").rstrip("/")
    assert parent(location).rstrip("/") == above.rstrip("/")
