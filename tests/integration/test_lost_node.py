"""A node disappears during a round: the others go on, and its env runners come back elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def saw(scenario: str, folder: Path) -> dict[str, Any]:
    """Runs a scenario of `lost_node.py` in a process and a Ray of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.lost_node", scenario, str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stdout + done.stderr}


def dropped_rounds(history: list[dict[str, Any]], worker: int) -> list[int]:
    return [row["round"] for row in history if row["dropped"] and row["worker"] == worker]


@pytest.mark.parametrize("scenario", ["killed", "removed"])
def test_the_others_go_on_and_the_lost_come_back_on_another_node(
    scenario: str, tmp_path: Path
) -> None:
    report = saw(scenario, tmp_path)
    assert [r["num_dropped"] for r in report["before"]] == [0, 0]
    (lost,) = report["lost"]
    assert report["on_third"] == [lost]
    own = [2 * lost - 2, 2 * lost - 1]
    assert [(r["num_dropped"], r["steps"]) for r in report["during"]] == [(2, 40)] * 6
    assert f"Round 3: dropped worker(s) {own}: env runner {lost} is lost" in report["log"]
    assert f"Env runner(s) [{lost}] are back" in report["log"]
    assert [(r["num_dropped"], r["steps"]) for r in report["back"]] == [(0, 60)] * 2
    back = report["back"][0]["round"]
    for worker in range(6):
        expected = list(range(3, back)) if worker in own else []
        assert dropped_rounds(report["history"], worker) == expected
    # Far below `sample_timeout_s`; and who is away holds nobody up.
    assert report["during"][0]["seconds"] < 30
    assert min(r["seconds"] for r in report["during"][1:]) < 1
    assert_no_replay(report, lost, tmp_path)


def assert_no_replay(report: dict[str, Any], lost: int, folder: Path) -> None:
    """What the run had used of the lost env runner's seeds is not used again."""
    slot = str(2 * lost - 2)
    used = report["before"][-1]["num_resets"][slot]
    assert used >= 4
    assert report["during"][-1]["num_resets"][slot] == used
    assert report["back"][0]["num_resets"][slot] > used
    files = sorted(folder.glob(f"seeds-{lost}-0-*.jsonl"), key=lambda path: path.stat().st_ctime)
    first, second = ([json.loads(line) for line in path.read_text().splitlines()] for path in files)
    assert len(second) >= 4
    assert not set(first[:used]) & set(second)


def test_a_run_that_has_lost_all_env_runners_waits_for_one(tmp_path: Path) -> None:
    report = saw("all", tmp_path)
    assert report["before"]["num_dropped"] == 0
    assert report["during"]["num_dropped"] == 4
    assert "All 2 env runners are lost: waiting up to 1800 s for one" in report["log"]
    assert report["after"]["num_dropped"] in (0, 2)  # One is enough to go on.
    assert report["after"]["steps"] in (20, 40)


def test_the_lost_come_back_in_a_trials_placement_group(tmp_path: Path) -> None:
    report = saw("trial", tmp_path)
    assert report["errors"] == []
    (lost,) = report["lost"]
    assert report["on_third"] == [lost]
    dropped = dropped_rounds(report["history"], 2 * lost - 2)
    last = report["history"][-1]["round"]
    assert dropped == list(range(dropped[0], last))
    assert dropped_rounds(report["history"], 2 * (3 - lost) - 2) == []
