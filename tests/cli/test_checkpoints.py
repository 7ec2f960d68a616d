"""Which checkpoint of a folder is meant."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rllib_weighted.cli import InputError, storage
from rllib_weighted.cli.checkpoints import find_checkpoint
from rllib_weighted.cli.storage import ExperimentRecord


def write_trial(
    folder: Path,
    returns: Mapping[int, float],
    saved: Mapping[int, int],
    key: str = "merge/episode_return_mean",
) -> None:
    """Writes what Tune and RLlib do: round -> return, and checkpoint -> round."""
    folder.mkdir(parents=True)
    above, name = key.split("/")
    rows = [
        {"training_iteration": round_, "done": False, above: {name: value, "other": 1e9}}
        for round_, value in returns.items()
    ]
    (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, round_ in saved.items():
        checkpoint = folder / f"checkpoint_{number:06d}"
        checkpoint.mkdir()
        mark = checkpoint / "rllib_checkpoint.json"
        mark.write_text("{}")
        os.utime(mark, (number, number))
        state = pickle.dumps({"training_iteration": round_})
        (checkpoint / "algorithm_state.pkl").write_bytes(state)


def found(folder: Path, **options: Any) -> str:
    return str(Path(find_checkpoint(folder, **options)).relative_to(folder))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_trial(tmp_path / "a", {1: 10.0, 2: 90.0, 3: 40.0}, {0: 1, 1: 2, 2: 3})
    write_trial(tmp_path / "b", {1: 20.0, 2: float("nan"), 3: 70.0}, {3: 2, 4: 3})
    return tmp_path


def test_the_best_of_several_trials_and_the_newest_of_one(sweep: Path) -> None:
    assert found(sweep) == "a/checkpoint_000001"
    assert found(sweep / "a") == "checkpoint_000002"


def test_asked_for(sweep: Path) -> None:
    assert found(sweep, best=False) == "b/checkpoint_000004"
    assert found(sweep / "a", best=True) == "checkpoint_000001"
    assert found(sweep / "a" / "checkpoint_000000", best=True) == "."


@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [
        ("merge/episode_return_mean", "min", "a/checkpoint_000000"),
        ("merge/episode_return_mean", "max", "a/checkpoint_000001"),
        ("training_iteration", "min", "a/checkpoint_000000"),
    ],
)
def test_the_metric_of_the_sweep_decides(
    sweep: Path, metric: str, mode: str, expected: str
) -> None:
    storage.write_record(str(sweep), ExperimentRecord(metric=metric, mode=mode))
    assert found(sweep) == expected


def test_stock_ppo_has_its_own_metric(tmp_path: Path) -> None:
    key = "env_runners/episode_return_mean"
    write_trial(tmp_path / "a", {1: 5.0, 2: 1.0}, {0: 1, 1: 2}, key)
    write_trial(tmp_path / "b", {1: 4.0}, {2: 1}, key)
    assert found(tmp_path) == "a/checkpoint_000000"


def test_a_round_that_is_there_twice_counts_as_it_was_last(sweep: Path) -> None:
    """A resumed trial has trained it again, and the checkpoint is of that."""
    log = sweep / "a" / "result.json"
    row = {"training_iteration": 2, "merge": {"episode_return_mean": 0.0}}
    log.write_text(log.read_text() + json.dumps(row) + "\n" + '{"training_iterat')
    assert found(sweep) == "b/checkpoint_000004"


@pytest.mark.parametrize("torn", ["algorithm_state.pkl", "../result.json"])
def test_without_values_it_is_the_newest_or_an_error(sweep: Path, torn: str) -> None:
    for checkpoint in sweep.glob("*/checkpoint_*"):
        (checkpoint / torn).write_bytes(b"\x80")
    assert found(sweep) == "b/checkpoint_000004"
    with pytest.raises(InputError, match=r"found none: --last takes the newest"):
        find_checkpoint(sweep, best=True)
