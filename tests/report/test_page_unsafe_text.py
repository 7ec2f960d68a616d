"""Names that a terminal, a page or a spreadsheet would obey."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from rllib_weighted.report import ReportError, compute, load_results, write_report
from rllib_weighted.report import page as page_module
from rllib_weighted.report.page import render
from tests.cli.test_main import failed, rllib
from tests.report.helpers import curve, write_trial

CONTROLS = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp\u2066\r\x00"
SHOWN = r"\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp\u2066\r\x00"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they have tests of their own."""
    monkeypatch.setattr(page_module, "draw_environments", lambda tables: iter(()))


def write(folder: Path, **changes: object) -> Path:
    for seed in (1, 2):
        for number, strategy in enumerate(("average", f"weighted{CONTROLS}")):
            settings = {"env": f"Pong{CONTROLS}", "merge_strategy": strategy, "seed": seed}
            settings |= {"env_config": {"a": CONTROLS}, f"own{CONTROLS}": CONTROLS, "lr": number}
            write_trial(folder / f"PPO_{seed}_{number}", curve(9.0 + seed), **settings | changes)
    return folder


def controls_in(text: str) -> set[str]:
    """What moves a cursor or reorders text; line ends are a file's own."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"}


@pytest.mark.usefixtures("quick")
def test_nothing_that_a_terminal_obeys_leaves_the_command(tmp_path: Path) -> None:
    write(tmp_path / "results")
    copy = tmp_path / "results" / f"copy{CONTROLS[:-1]}"  # A path holds no NUL.
    write_trial(copy / "PPO_1_0", curve(9.0))  # Left out: it has the id of another one.
    result = rllib("report", tmp_path / "results", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert controls_in(result.output) == set()
    assert r"Pong\x1b[2J" in result.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert controls_in(page) == set()
    assert SHOWN in page
    for file in (tmp_path / "out" / "tables").glob("*.csv"):
        assert controls_in(file.read_bytes().decode()) == set(), file
    runs = pd.read_parquet(tmp_path / "out" / "tables" / "runs.parquet")
    assert set(runs["env"]) == {f"Pong{SHOWN}"}


def test_nor_do_messages(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ReportError, match=r"^unknown metric") as error:
        load_results(tmp_path, metric=f"merge/{CONTROLS}")
    assert controls_in(str(error.value)) == set()
    missing = tmp_path / f"absent{CONTROLS[:-1]}"
    message = failed(rllib("report", missing))
    assert controls_in(message) == set()
    assert r"absent\x1b[2J" in message


def test_such_names_can_still_be_given(tmp_path: Path) -> None:
    results = load_results(write(tmp_path))
    tables = compute(results, threshold={f"Pong{CONTROLS}": 5.0}, baseline=f"weighted{CONTROLS}")
    assert [limit.value for limit in tables.thresholds.values()] == [5.0]
    assert tables.baseline == f"weighted{SHOWN}"


def test_environments_that_differ_in_such_characters_stay_apart(tmp_path: Path) -> None:
    write_trial(tmp_path / "a", env="Pong\x1b")
    write_trial(tmp_path / "b", env="Pong\x9b")
    assert load_results(tmp_path).envs == [r"Pong\x1b", r"Pong\x9b"]


def test_lone_surrogates_do_not_end_the_report(tmp_path: Path) -> None:
    changes = {"env": "\ud800", "\udfff": "\ud800", "env_config": {"\ud800": "\udc00"}}
    page = render(compute(load_results(write(tmp_path, **changes))), [])
    assert page.encode()
    assert r"\ud800" in page


FORMULAS = ("=1+1", "+a", "-a", "@SUM(A1)", "\t=1+1", "\r=1+1")


@pytest.mark.usefixtures("quick")
def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    for number, text in enumerate(FORMULAS):
        settings = {"env": text, "merge_strategy": text, "own": text, text: text}
        write_trial(tmp_path / "results" / f"t{number}", [-1.0, -0.5], **settings)
    write_report(load_results(tmp_path / "results"), tmp_path / "out")
    tables = tmp_path / "out" / "tables"
    for file in tables.glob("*.csv"):
        for cell in pd.read_csv(file, header=None, dtype=str).fillna("").to_numpy().ravel():
            is_number = re.fullmatch(r"-?[0-9.e+-]+", cell)
            assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
    runs = pd.read_csv(tables / "runs.csv")
    assert "'=1+1" in set(runs["env"])
    assert runs["final"].tolist() == [-0.5] * len(FORMULAS)  # Numbers stay numbers.
    whole = pd.read_parquet(tables / "runs.parquet")
    assert "=1+1" in set(whole["env"])  # Parquet is no spreadsheet's.
