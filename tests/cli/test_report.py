"""`rllib report`: options, messages and exit statuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_weighted.cli import InputError
from rllib_weighted.cli.report import DEFAULT_OUT, parse_thresholds
from rllib_weighted.report.measures import HOLD
from tests.cli.test_main import failed, rllib
from tests.report.helpers import write_sweep, write_trial


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "results")


def test_it_prints_the_headline_and_where_the_report_is(sweep: Path, tmp_path: Path) -> None:
    result = rllib("report", sweep, "--threshold", "80", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "CartPole-v1, threshold 80" in result.stdout
    for part in ("average", "reward_weighted,", "m=0.5", "m=1"):  # Folded between words.
        assert part in result.stdout
    assert "3 of 3" in result.stdout
    assert "No difference to the baseline can be claimed" in result.stdout
    assert f"Report: {tmp_path}/out/report.html" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_it_writes_to_report_in_the_current_folder(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rllib("report", "results").exit_code == 0
    assert (tmp_path / "report" / "report.html").is_file()
    assert rllib("report", "results").exit_code == 0  # over its own


def test_several_folders_and_another_baseline(sweep: Path, tmp_path: Path) -> None:
    write_trial(tmp_path / "more" / "PPO_1", stock=True)
    args = ("--baseline", "PPO", "--hold", "1", "--out", tmp_path / "out")
    result = rllib("report", sweep, tmp_path / "more", *args)
    assert result.exit_code == 0, result.output
    assert "compared by" in result.stdout


def test_lines_that_go_into_a_pipe_are_not_folded(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = rllib("report", sweep, "--out", tmp_path / ("long" * 30) / "out").stdout.splitlines()
    assert max(map(len, shown)) > 100
    (line,) = [line for line in shown if "m=0.5" in line and "3 of 3" in line]
    assert line.split()[:2] == ["reward_weighted,", "m=0.5"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--baseline", "avrage"], "unknown baseline 'avrage': these results have average"),
        (["--metric", "merge/return"], "unknown metric 'merge/return': these results have merge/"),
        (["--threshold", "high"], "--threshold should be a number, or ENVIRONMENT=NUMBER"),
        (["--threshold", "Pong=3"], "unknown environment 'Pong': these results have CartPole-v1"),
        (["--threshold", "nan"], "should be a finite number, found nan"),
        (["--hold", "0"], "Invalid value for '--hold'"),
    ],
)
def test_bad_options(args: list[str], message: str, sweep: Path, tmp_path: Path) -> None:
    assert message in failed(rllib("report", sweep, *args, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_bad_folders(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no folder" in failed(rllib("report", tmp_path / "absent"))
    assert "no trials in" in failed(rllib("report", tmp_path / "empty"))
    assert "holds something else" in failed(rllib("report", sweep, "--out", sweep))
    assert "Missing argument" in failed(rllib("report"))
    (tmp_path / "file").touch()
    assert "cannot write the report" in failed(
        rllib("report", sweep, "--out", tmp_path / "file" / "below")
    )


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], None),
        (["475"], 475.0),
        (["-1e3"], -1000.0),
        (["CartPole-v1=475", "a=b=2"], {"CartPole-v1": 475.0, "a=b": 2.0}),
    ],
)
def test_thresholds(texts: list[str], expected: object) -> None:
    assert parse_thresholds(texts) == expected


def test_a_threshold_for_all_comes_alone() -> None:
    with pytest.raises(InputError, match="--threshold 3 is for all environments: give it alone"):
        parse_thresholds(["CartPole-v1=475", "3"])


def test_help_names_the_defaults() -> None:
    text = rllib("report", "--help").output
    assert f"[default: ({HOLD})" in text
    assert f"[default: (./{DEFAULT_OUT})]" in text


def test_arms_are_named_in_the_call(sweep: Path, tmp_path: Path) -> None:
    names = ("--name", "light=reward_weighted, m=0.5", "--name", "heavy=min_weight=1")
    result = rllib("report", sweep, *names, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in ("light", "heavy", "average"):
        assert name in result.stdout
    assert "reward_weighted" not in result.stdout
    assert "No arm is shown to be better than average." in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["light"], "--name should be NAME=ARM or NAME=SETTING=VALUE, found 'light'"),
        (["=average"], "--name should be NAME=ARM"),
        (["a=average", "a=reward_weighted"], "--name gives 'a' twice"),
        (["a=avrage"], "unknown arm 'avrage': these results have average"),
    ],
)
def test_bad_names(names: list[str], message: str, sweep: Path, tmp_path: Path) -> None:
    args = [part for name in names for part in ("--name", name)]
    assert message in failed(rllib("report", sweep, *args, "--out", tmp_path / "out"))
