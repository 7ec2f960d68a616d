from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, MergeHistory, WorkerRecord, summarize
from rllib_weighted.report.progress import (
    ROUND,
    TIME,
    WorkerRounds,
    bin_width,
    progress_from_history,
    read_worker_rounds,
    summarize_weights,
    worker_shares,
)
from rllib_weighted.report.trials import find_trials
from tests.report.helpers import METRIC, STEPS, worker_record


def history(folder: Path, rounds: list[list[WorkerRecord]]) -> WorkerRounds:
    """Written and read back."""
    store = MergeHistory(
        fs.LocalFileSystem(), str(folder / "t1" / HISTORY_DIR), trial_id="t1", flush_seconds=1e9
    )
    for number, records in enumerate(rounds, start=1):
        store.append(number, STEPS * number, records)
    store.close()
    found, trial_id, problems = read_worker_rounds(find_trials(folder)[0][0])
    assert found is not None
    assert (trial_id, problems) == ("t1", [])
    return found


def drawn(num_rounds: int, num_workers: int) -> list[list[WorkerRecord]]:
    rng = np.random.default_rng(0)
    rounds = []
    for _ in range(num_rounds):
        shares = rng.dirichlet(np.ones(num_workers))
        rounds.append(
            [
                worker_record(i, share, 0.0, weight=share + 0.1, dropped=bool(rng.random() < 0.3))
                for i, share in enumerate(shares)
            ]
        )
    return rounds


def test_summary_is_that_of_the_metrics(tmp_path: Path) -> None:
    rounds = drawn(30, 4)
    found = summarize_weights(history(tmp_path, rounds), 30)
    for index, records in enumerate(rounds):
        expected = summarize(records)
        for ours, theirs in {
            "effective_workers": "effective_workers",
            "share_min": "share_min",
            "share_max": "share_max",
            "num_dropped": "num_dropped",
            "num_worker_rounds": "num_workers",
        }.items():
            assert found[ours][index] == pytest.approx(expected[theirs], nan_ok=True)
    assert found["round"].tolist() == list(range(1, 31))
    assert found["env_steps"].tolist() == [STEPS * number for number in range(1, 31)]


def test_ranges_of_rounds_are_means_and_sums(tmp_path: Path) -> None:
    rounds = drawn(250, 3)
    found = summarize_weights(history(tmp_path, rounds), 250)
    assert bin_width(250) == 3
    parts = [rounds[start : start + 3] for start in range(0, 250, 3)]
    assert found["round"].tolist() == [min(3 * (i + 1), 250) for i in range(len(parts))]
    for index, part in enumerate(parts):
        summaries = [summarize(records) for records in part]
        effective = [summary["effective_workers"] for summary in summaries]
        assert found["effective_workers"][index] == pytest.approx(sum(effective) / len(part))
        assert found["num_dropped"][index] == sum(summary["num_dropped"] for summary in summaries)
        lows = [s["share_min"] for s in summaries if not math.isnan(s["share_min"])]
        assert found["share_min"][index] == pytest.approx(np.mean(lows) if lows else math.nan)


def test_a_shorter_run_is_binned_as_the_longest_one(tmp_path: Path) -> None:
    found = summarize_weights(history(tmp_path, drawn(10, 2)), 400)
    assert found["round"].tolist() == [4, 8, 10]


def test_worker_shares_by_hand(tmp_path: Path) -> None:
    rounds = [
        [worker_record(0, 0.25, 0.0), worker_record(1, 0.75, 0.0)],
        [worker_record(0, 1.0, 0.0), worker_record(1, 0.0, 0.0, dropped=True)],
    ]
    found = worker_shares(history(tmp_path, rounds), 2)
    cells = {
        (round, worker): share
        for round, worker, share in zip(
            found["round"].tolist(), found["worker"].tolist(), found["share"].tolist(), strict=True
        )
    }
    assert math.isnan(cells.pop((2, 1)))
    assert cells == {(1, 0): 0.25, (1, 1): 0.75, (2, 0): 1.0}


def test_worker_shares_are_means_over_a_range(tmp_path: Path) -> None:
    rounds = [[worker_record(0, share, 0.0)] for share in (0.2, 0.4, 0.9)]
    found = worker_shares(history(tmp_path, rounds), 200)  # ranges of two rounds
    assert found["share"].tolist() == pytest.approx([0.3, 0.9])
    assert found["round"].tolist() == [2, 4]


def test_returns_from_the_history_by_hand(tmp_path: Path) -> None:
    # 60 episodes of mean 10, 60 of 20, 60 of 40: the last rounds with 100 or more are two each.
    rounds = [
        [worker_record(0, 1.0, value, num_episodes=60), worker_record(1, 0.0, 0.0, num_episodes=0)]
        for value in (10.0, 20.0, 40.0)
    ]
    progress = progress_from_history(history(tmp_path, rounds), METRIC)
    assert progress.rows[METRIC].tolist() == [10.0, 15.0, 30.0]
    assert progress.rows[ROUND].tolist() == [1, 2, 3]
    assert progress.rows[TIME].isna().all()


def test_returns_are_weighted_by_episodes_and_missing_before_the_first(tmp_path: Path) -> None:
    nothing = worker_record(0, 0.5, 0.0, num_episodes=0, episode_return=None)
    rounds = [
        [nothing, worker_record(1, 0.5, 0.0, num_episodes=0, episode_return=None)],
        [worker_record(0, 0.5, 1.0, num_episodes=1), worker_record(1, 0.5, 5.0, num_episodes=3)],
    ]
    values = progress_from_history(history(tmp_path, rounds), METRIC).rows[METRIC]
    assert math.isnan(values[0])
    assert values[1] == 4.0  # (1 * 1 + 3 * 5) / 4


def test_a_torn_file_is_named_and_the_rest_read(tmp_path: Path) -> None:
    history(tmp_path, drawn(3, 2))
    torn = tmp_path / "t1" / HISTORY_DIR / "rounds-00000004-00000005-ffff.parquet"
    torn.write_bytes(b"PAR1")
    found, _, (problem,) = read_worker_rounds(find_trials(tmp_path)[0][0])
    assert found is not None
    assert found.rounds.tolist() == [1, 2, 3]
    assert problem.startswith(f"left out '{torn}'")
