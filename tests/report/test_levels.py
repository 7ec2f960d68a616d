"""What a report says of levels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, MergeHistory
from rllib_weighted.report import load_results, write_report
from rllib_weighted.report.levels import levels_view
from rllib_weighted.report.tables import compute
from tests.report.helpers import STEPS, worker_record, write_trial

# Round -> of each of two workers, the levels of its episodes and their returns.
PLAYED: dict[int, list[dict[str, Any]]] = {
    1: [
        {"levels": [0, 1], "level_returns": [1.0, 2.0]},
        {"levels": [2], "level_returns": [math.nan]},
    ],
    2: [{"levels": [1], "level_returns": [4.0]}, {"levels": [], "level_returns": []}],
    3: [{"levels": [1], "level_returns": [6.0]}, {"levels": [1], "level_returns": [8.0]}],
}


def _write(folder: Path, rounds: dict[int, list[dict[str, Any]]], **changes: Any) -> None:
    write_trial(folder, history=False, **changes)
    store = MergeHistory(fs.LocalFileSystem(), str(folder / HISTORY_DIR), trial_id=folder.name)
    for number, workers in rounds.items():
        records = [worker_record(i, 0.5, 10.0, **changes) for i, changes in enumerate(workers)]
        store.append(number, STEPS * number, records)
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "results" / "levels", PLAYED, env_seeding="prioritized")
    _write(tmp_path / "results" / "stream", {n: [{}, {}] for n in PLAYED}, env_seeding="stream")
    return tmp_path / "results"


def test_levels_are_counted_by_round(folder: Path) -> None:
    levels = load_results(folder).levels
    assert set(levels["arm"]) == {"average, env_seeding=prioritized"}
    found = levels[["round", "level", "episodes", "episode_return"]].astype(object)
    rows = found.where(found.notna(), None).to_numpy().tolist()
    assert rows == [
        [1, 0, 1, 1.0],
        [1, 1, 1, 2.0],
        [1, 2, 1, None],
        [2, 1, 1, 4.0],
        [3, 1, 2, 7.0],
    ]


def test_the_table_of_levels(folder: Path) -> None:
    view = levels_view(compute(load_results(folder)), "CartPole-v1")
    assert view is not None
    ((arm, played, episodes, effective, late, most),) = view.rows
    assert (arm, played, episodes) == ("average, env_seeding=prioritized", "3", "6")
    # 1, 4 and 1 of 6 episodes: 36 / 18; at last all of level 1.
    assert (effective, late) == ("2", "1")
    assert most == "1 (66.7%, 2 → 7); 0 (16.7%, 1 → 1); 2 (16.7%, –)"


def test_the_page_has_a_section(folder: Path, tmp_path: Path) -> None:
    page = write_report(load_results(folder), tmp_path / "out").page.read_text("utf-8")
    assert "Which levels were played" in page
    assert list((tmp_path / "out" / "figures").glob("levels_*.png"))
    table = pd.read_parquet(tmp_path / "out" / "tables" / "levels.parquet")
    assert table["episodes"].sum() == 6


def test_without_levels_there_is_no_section(tmp_path: Path) -> None:
    write_trial(tmp_path / "results" / "trial")
    page = write_report(load_results(tmp_path / "results"), tmp_path / "out").page
    assert "Which levels were played" not in page.read_text("utf-8")
    assert not list((tmp_path / "out" / "figures").glob("levels_*"))
