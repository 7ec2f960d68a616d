"""The live tables of a sweep, on terminals of several sizes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from rllib_weighted.cli.display import arms_table, progress_line, ranking, trials_table
from rllib_weighted.cli.progress import TrialProgress
from rllib_weighted.cli.sweep import ArmProgress, Sweep, count_statuses
from rllib_weighted.report.trials import Settings


def trial(
    number: int, status: str, *, returned: float = 21.5, seed: int = 0, **options: str
) -> TrialProgress:
    settings = Settings(strategy="reward_weighted", seed=seed, other=options)
    stop = {"num_env_steps_sampled_lifetime": 200_000}
    one = TrialProgress(f"{number:05d}", stop, settings=settings, status=status)
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
    labels = Sweep().labels(trials)
    return printed(trials_table(trials, labels, width=width, max_rows=max_rows), width)


def printed(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_columns() -> None:
    head, more, *rows = lines([trial(7, "RUNNING", seed=1), trial(8, "RUNNING", seed=2)])
    words = {*head.split(), *more.split()}
    assert words == {
        *["trial", "arm", "seed", "round", "steps", "return", "best", "so", "far", "time", "left"]
    }
    # 200,000 steps at 50,000 in 40 s: the other 100,000 take 80 s.
    assert rows[0].split() == [
        *("00007", "reward_weighted", "1"),
        *("2", "100", "000", "21.5", "21.5", "1", "min"),
    ]


def test_a_seed_that_all_have_has_no_column() -> None:
    head, *_ = lines([trial(0, "RUNNING", lr="0.1"), trial(1, "RUNNING", lr="0.2")])
    assert "seed" not in head


def test_a_trial_is_called_by_what_tells_it_apart() -> None:
    trials = [
        trial(0, "RUNNING", lr="0.1", gamma="0.9"),
        trial(1, "RUNNING", lr="0.2", gamma="0.9"),
    ]
    assert [row.split()[1:3] for row in lines(trials)[2:]] == [
        ["reward_weighted,", "lr=0.1"],
        ["reward_weighted,", "lr=0.2"],
    ]


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
    [(120, set()), (78, set()), (58, {"trial"}), (40, {"trial", "best", "steps", "round"})],
)
def test_what_is_shown_fits_and_is_shown_whole(width: int, left_out: set[str]) -> None:
    trials = [trial(k, "RUNNING", seed=k) for k in range(12)]
    head, more, *rows = lines(trials, width=width)
    words = {*head.split(), *more.split()}
    assert {"arm", "seed", "return", "left"} <= words
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


def test_a_label_that_has_no_room_is_cut_and_the_rest_stays() -> None:
    trials = [trial(k, "RUNNING", env_config=f"{k}" * 60) for k in range(2)]
    *_, row = lines(trials, width=40)
    assert len(row.rstrip()) <= 40
    assert "…" in row
    assert row.rstrip().endswith("21.5  1 min")


def arm(label: str, *returns: float, num_trials: int = 3) -> ArmProgress:
    trials = [trial(k, "TERMINATED", returned=value) for k, value in enumerate(returns)]
    return ArmProgress(label, trials, num_trials)


def test_a_row_per_arm() -> None:
    arms = [arm("average", 10.0, 20.0), arm("sum", num_trials=2)]
    head, *rows = printed(arms_table(arms, width=60, max_rows=5), 60)
    assert head.split() == ["arm", "done", "mean", "return", "best", "so", "far"]
    assert [row.split() for row in rows] == [
        ["average", "2/3", "15", "20"],
        ["sum", "0/2", "-", "-"],
    ]


def test_arms_that_have_no_room_are_counted() -> None:
    arms = [arm(f"arm {k} " + "x" * 60, 1.0) for k in range(7)]
    shown = printed(arms_table(arms, width=50, max_rows=3), 50)
    assert len(shown) == 1 + 3 + 1
    assert shown[-1].strip() == "… and 4 more arms"
    assert all(len(line.rstrip()) <= 50 for line in shown)


def test_the_ranking_is_not_cut_and_its_columns_are_equally_wide() -> None:
    long = "reward_weighted, " + "x" * 90
    shown = ranking([arm(long, 475.25), arm("average", 9.5)])
    assert len({len(line) for line in shown}) == 1
    assert long in shown[1]
    assert shown[2].split() == ["average", "1/3", "9.5", "9.5"]


def test_the_ranking_of_a_terminal_is_cut_to_it() -> None:
    shown = ranking([arm("x" * 90, 475.25), arm("average", 9.5)], 60)
    assert {len(line) for line in shown} == {60}
    assert "…" in shown[1]
    assert shown[1].endswith("475.2")


def test_how_far_a_sweep_is_in_a_line() -> None:
    trials = [
        trial(0, "TERMINATED"),
        trial(1, "ERROR"),
        trial(2, "RUNNING"),
        trial(3, "PENDING"),
    ]
    # One that is done took 80 s; the running one takes another 80 s, then 6 wait, one at a time.
    assert progress_line(Sweep(9), trials) == (
        "1 of 9 trials done, 1 running, 1 failed, 6 waiting · time left about 9 min"
    )
    assert progress_line(Sweep(None), trials) == "1 trials done, 1 running, 1 failed"
    trials[2].stop = {**trials[2].stop, "merge/episode_return_mean": 475.0}
    assert progress_line(Sweep(9), trials).endswith("time left at most 9 min")
