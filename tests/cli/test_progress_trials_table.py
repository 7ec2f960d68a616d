"""The live table of a sweep, on terminals of several sizes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rllib_weighted.cli.progress import (
    TrialProgress,
    count_statuses,
    telling_settings,
    trials_table,
)


def trial(number: int, status: str, *, returned: float = 21.5, **settings: str) -> TrialProgress:
    shown = {"merge_strategy": "reward_weighted", "min_weight": "0.03125", **settings}
    stop = {"num_env_steps_sampled_lifetime": 200_000}
    one = TrialProgress(f"{number:05d}", stop, settings=shown, status=status)
    for round in (1, 2):
        one.update(result(round, returned))
    return one


def result(round: int, returned: float) -> dict[str, Any]:
    return {
        "training_iteration": round,
        "num_env_steps_sampled_lifetime": 50_000 * round,
        "time_total_s": 40.0 * round,
        "merge": {"episode_return_mean": returned},
    }


def lines(trials: list[TrialProgress], *, width: int = 80, max_rows: int = 20) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(trials_table(trials, width=width, max_rows=max_rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_columns() -> None:
    head, more, *rows = lines([trial(7, "RUNNING", seed="1"), trial(8, "RUNNING", seed="2")])
    words = {*head.split(), *more.split()}
    named = "trial strategy min weight seed round steps return best so far time left"
    assert words == {*named.split()}
    # 200,000 steps at 50,000 in 40 s: the other 100,000 take 80 s.
    assert rows[0].split() == [
        *("00007", "reward_weighted", "0.03125", "1"),
        *("2", "100", "000", "21.5", "21.5", "1", "min"),
    ]


def test_settings_that_do_not_differ_have_no_column() -> None:
    trials = [trial(0, "RUNNING", lr="0.1", seed="1"), trial(1, "RUNNING", lr="0.1", seed="2")]
    assert telling_settings(trials) == ["merge_strategy", "min_weight", "seed"]
    assert telling_settings([TrialProgress("0", {}), TrialProgress("1", {})]) == []


def test_running_ones_first_then_the_best_that_are_done() -> None:
    trials = [
        trial(0, "PENDING"),
        trial(1, "TERMINATED", returned=10.0),
        trial(2, "TERMINATED", returned=30.0),
        trial(3, "RUNNING"),
        trial(4, "ERROR"),
        trial(5, "TERMINATED", returned=20.0),
    ]
    *rows, rest = lines(trials)[2:]
    assert rest.strip() == "… and 1 more: 1 waiting"
    assert [row.split()[0] for row in rows] == [
        "00003",
        "00004",
        "00002",
        "00005",
        "00001",
    ]
    assert [row.split()[-1] for row in rows][1:] == ["failed", "done", "done", "done"]


def test_before_any_trial_has_started() -> None:
    shown = lines([trial(0, "PENDING"), trial(1, "PENDING")])
    assert [line.split()[-1] for line in shown[2:]] == ["waiting", "waiting"]
    assert shown[-1].strip() == "… and 1 more: 1 waiting"


def test_the_rest_is_counted() -> None:
    trials = [trial(k, "TERMINATED", returned=k) for k in range(30)]
    trials += [trial(30, "RUNNING"), trial(31, "PENDING")]
    shown = lines(trials, max_rows=5)
    assert len(shown) == 2 + 5 + 1
    assert shown[-1].strip() == "… and 27 more: 26 done, 1 waiting"
    assert count_statuses(trials) == "1 running, 30 done, 1 waiting"


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(120, set()), (78, set()), (66, {"best"}), (50, {"trial", "best", "steps", "round"})],
)
def test_what_is_shown_fits_and_is_shown_whole(width: int, left_out: set[str]) -> None:
    trials = [trial(k, "RUNNING", seed=str(k)) for k in range(12)]
    head, more, *rows = lines(trials, width=width)
    words = {*head.split(), *more.split()}
    assert {"strategy", "weight", "seed", "return", "left"} <= words
    assert left_out.isdisjoint(words)
    assert all(len(line.rstrip()) <= width for line in (head, more, *rows))
    assert all("…" not in row and row.rstrip().endswith("1 min") for row in rows)


def test_an_end_that_may_come_sooner_and_one_that_nobody_knows() -> None:
    def shown(stop: dict[str, float]) -> str:
        one = trial(0, "RUNNING")
        one.stop = stop
        one.update(result(3, 21.5))
        return lines([one, trial(1, "TERMINATED")])[2].strip()

    steps = {"num_env_steps_sampled_lifetime": 200_000}
    assert shown({**steps, "merge/episode_return_mean": 475}).endswith("≤ 40 s")
    assert shown({"merge/episode_return_mean": 475}).endswith("-")


def test_a_trial_that_has_not_reported_yet() -> None:
    rows = lines([TrialProgress("00000", {}, status="RUNNING"), trial(1, "RUNNING")])[2:]
    assert rows[0].strip().endswith("starts")
