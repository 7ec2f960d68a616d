"""`rllib compare`: in what two runs or experiments differ."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rllib_weighted.cli import InputError
from rllib_weighted.cli.compare import compare_runs, setting_rows
from rllib_weighted.report.trials import Settings
from tests.cli.test_main import failed, rllib
from tests.report.helpers import write_trial


def compared(a: Path, b: Path, width: int = 80) -> list[str]:
    on = Console(file=io.StringIO(), width=width)
    compare_runs(str(a), str(b), console=on)
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue().splitlines()


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Returns the words after each line's first."""
    return {line.split()[0]: line.split()[1:] for line in lines if line}


def test_settings_that_differ_and_results(tmp_path: Path) -> None:
    a = write_trial(tmp_path / "one" / "t0", [9.0] * 3, lr=0.25, gamma=0.5)
    b = write_trial(tmp_path / "two" / "t0", [7.0] * 3, lr=0.5, gamma=0.5, merge_strategy="sum")
    shown = compared(a, b)
    assert shown[0].split() == ["A", str(a), "(1", "trial)"]
    found = rows(shown)
    assert found["lr"] == ["0.25", "0.5"]
    assert found["merge_strategy"] == ["average", "sum"]
    assert "gamma" not in found
    assert found["final"] == ["return", "9", "7"]


def test_a_run_and_itself(tmp_path: Path) -> None:
    a = write_trial(tmp_path / "t0", [9.0] * 3)
    assert "settings: no difference" in compared(a, a)
    assert "versions and machine: no difference" in compared(a, a)


def test_experiments_are_compared_arm_by_arm(tmp_path: Path) -> None:
    for name, returns in (("one", (8.0, 9.0)), ("two", (4.0, 6.0))):
        for seed, value in enumerate(returns):
            write_trial(tmp_path / name / f"a{seed}", [value] * 3, seed=seed)
            write_trial(tmp_path / name / f"s{seed}", [1.0] * 3, seed=seed, merge_strategy="sum")
    shown = compared(tmp_path / "one", tmp_path / "two")
    assert "settings: no difference" in shown
    (line,) = [line for line in shown if line.startswith("average: final return")]
    assert line.split()[3:] == ["8.5", "(8", "…", "9)", "5", "(4", "…", "6)"]
    (line,) = [line for line in shown if line.startswith("sum: final return")]
    assert line.split()[3:] == ["1", "1"]


def test_settings_of_several_trials_are_listed() -> None:
    a = [Settings(seed=seed, other={"lr": "0.1", "only_a": "x"}) for seed in (0, 1)]
    b = [Settings(seed=seed, other={"lr": "0.1"}) for seed in range(9)]
    assert setting_rows(a, b) == [
        ("seed", "0; 1", "0; 1; 2; 3; 4; 5 and 3 more"),
        ("only_a", "x", "–"),
    ]


def test_a_run_without_results_shows_its_settings(tmp_path: Path) -> None:
    a = write_trial(tmp_path / "one" / "t0", [9.0] * 3, lr=0.25)
    b = write_trial(tmp_path / "two" / "t0", [9.0] * 3, lr=0.5, history=False, progress=False)
    (b / "result.json").unlink(missing_ok=True)
    found = rows(compared(a, b))
    assert found["lr"] == ["0.25", "0.5"]
    assert found["final"] == ["return", "9", "–"]


def test_no_trial(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        compare_runs(str(tmp_path / "absent"), str(tmp_path))
    write_trial(tmp_path / "one" / "t0", [9.0] * 3)
    (tmp_path / "empty").mkdir()
    assert "no trials in" in failed(rllib("compare", tmp_path / "one", tmp_path / "empty"))
