"""One trial in which something is wrong, beside trials that are as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, MergeHistory
from rllib_weighted.report import Results, compute, load_results
from rllib_weighted.report import results as module
from rllib_weighted.report.page import render
from rllib_weighted.report.trials import Trial
from tests.report.helpers import curve, params, worker_record, write_trial


def write_good(root: Path) -> None:
    for seed in (1, 2):
        write_trial(root / f"good_{seed}", curve(10.0 + seed), seed=seed)


def reported(root: Path) -> Results:
    """The results, from which a whole page was made."""
    results = load_results(root)
    assert "average" in render(compute(results), [])
    assert results.runs["path"].str.contains("good_").sum() == 2
    return results


def write_history(trial: Path, workers: list[int], rounds: tuple[int, ...] = (1, 2, 3)) -> None:
    path = str(trial / HISTORY_DIR)
    store = MergeHistory(fs.LocalFileSystem(), path, trial_id=trial.name, flush_seconds=1e9)
    for number in rounds:
        store.append(number, 100 * number, [worker_record(i, 0.5, 1.0) for i in workers])
    store.close()


@pytest.mark.parametrize("workers", [[0, -5], [0, 2_000_000_000], [-(2**31), 1], [0, 2]])
def test_worker_numbers_that_cannot_be(workers: list[int], tmp_path: Path) -> None:
    write_good(tmp_path)
    bad = write_trial(tmp_path / "bad", curve(9.0), seed=0, history=False)  # The lowest seed.
    write_history(bad, workers)
    results = reported(tmp_path)
    assert len(results.runs) == 3  # Its progress is as good as any.
    (problem,) = results.problems
    assert problem == (
        f"left out {bad}/{HISTORY_DIR}: a worker's number should be from 0 to 1, found numbers "
        f"from {min(workers):,} to {max(workers):,}"
    )
    assert results.runs.set_index("path").loc[str(bad), "has_weights"] == False  # noqa: E712


def test_a_round_number_that_cannot_be(tmp_path: Path) -> None:
    write_good(tmp_path)
    bad = write_trial(tmp_path / "bad", curve(9.0), seed=0, history=False)
    write_history(bad, [0, 1], (1, 2**56))
    (problem,) = reported(tmp_path).problems
    assert "a round's number should be from 0 to 9,007,199,254,740,992, found" in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 10**30),
        ("seed", -(2**63)),
        ("seed", True),
        ("seed", 1.5),
        ("min_weight", float("inf")),
        ("min_weight", 10**400),
        ("min_weight", {"a": 1}),
        ("num_env_runners", 10**30),
        ("num_env_runners", "many"),
        ("num_envs_per_env_runner", float("inf")),
        ("evaluation_interval", -3),
        ("evaluation_interval", 10**30),
        ("merge_options", [1]),
        ("merge_strategy", None),
        ("merge_strategy", ["average"]),
        ("env", {"x": None}),
        ("env", None),
    ],
)
def test_settings_that_cannot_be(name: str, value: Any, tmp_path: Path) -> None:
    write_good(tmp_path)
    write_trial(tmp_path / "bad", curve(9.0))
    config = params(**{"merge_strategy": "reward_weighted", "merge_unit": "env", name: value})
    (tmp_path / "bad" / "params.json").write_text(json.dumps(config))
    reported(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("training_iteration", "-1"),
        ("training_iteration", "1e300"),
        ("training_iteration", "inf"),
        ("num_env_steps_sampled_lifetime", "-100"),
        ("num_env_steps_sampled_lifetime", "1e18"),
    ],
)
def test_counts_that_cannot_be(column: str, value: str, tmp_path: Path) -> None:
    write_good(tmp_path)
    bad = write_trial(tmp_path / "bad", curve(9.0), history=False)
    (bad / "result.json").unlink()
    file = bad / "progress.csv"
    header, *lines = file.read_text().splitlines()
    cells = lines[3].split(",")
    cells[header.split(",").index(column)] = value
    lines[3] = ",".join(cells)
    file.write_text("\r\n".join([header, *lines, ""]))
    results = reported(tmp_path)
    assert len(results.runs) == 2
    (problem, *_) = results.problems
    assert problem == f"left out {file}: {column} should be a count, found {float(value):g}"


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyError("x"), RecursionError()])
def test_whatever_a_trial_does_to_its_reader(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_good(tmp_path)
    write_trial(tmp_path / "bad", curve(9.0))
    read = module.read_settings

    def fail(trial: Trial) -> Any:
        if trial.path.endswith("bad"):
            raise error
        return read(trial)

    monkeypatch.setattr(module, "read_settings", fail)
    results = reported(tmp_path)
    (problem,) = results.problems
    assert problem == f"left out {tmp_path}/bad: {type(error).__name__}: {error}"


def test_whatever_a_history_does_to_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_good(tmp_path)

    def fail(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(module, "worker_shares", fail)
    (problem,) = reported(tmp_path).problems
    assert problem == (f"left out the merge history of {tmp_path}/good_1: MemoryError: no room")
