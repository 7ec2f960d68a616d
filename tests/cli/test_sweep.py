"""What is known of a sweep as a whole: its arms, and the time that is left."""

from __future__ import annotations

from typing import Any

import pytest

from rllib_weighted.cli.progress import TrialProgress
from rllib_weighted.cli.sweep import ArmProgress, Sweep
from rllib_weighted.report.trials import Settings

STOP = {"training_iteration": 10}


def settings(strategy: str = "average", seed: int = 0, **other: str) -> Settings:
    return Settings(strategy=strategy, seed=seed, other=other)


def trial(status: str, round: int = 0, returned: float = 1.0, **more: Any) -> TrialProgress:
    """A trial with rounds of 6 s, of which it has 10."""
    one = TrialProgress("0", STOP, status=status, **more)
    for number in range(1, round + 1):
        result = {"training_iteration": number, "time_total_s": 6.0 * number}
        one.update({**result, "merge": {"episode_return_mean": returned}})
    return one


def test_arms_are_ranked_by_the_mean_return_of_the_trials_that_are_done() -> None:
    trials = [
        trial("TERMINATED", 10, 10.0, settings=settings("average", 1)),
        trial("RUNNING", 1, 2.0, settings=settings("average", 2)),
        trial("TERMINATED", 10, 8.0, settings=settings("sum", 1)),
        trial("TERMINATED", 10, 9.0, settings=settings("sum", 2)),
        trial("PENDING", settings=settings("reward_weighted", 1)),
        trial("RUNNING", 5, 9.0, settings=settings("loss_weighted", 1)),
    ]
    arms = Sweep(6).arms(trials)
    assert [(arm.label, arm.num_done, arm.num_trials, arm.mean_return) for arm in arms] == [
        ("average", 1, 2, 10.0),  # Not 6: the second trial has only begun.
        ("loss_weighted", 0, 1, 9.0),
        ("sum", 2, 2, 8.5),
        ("reward_weighted", 0, 1, None),
    ]
    assert arms[2].best_return == 9.0


def test_points_say_how_many_trials_an_arm_will_have() -> None:
    points = [settings(name, seed) for name in ("average", "sum") for seed in (0, 1, 2)]
    trials = [trial("RUNNING", 1, settings=settings("sum", 1))]
    arms = Sweep(12, points, num_samples=2).arms(trials)
    assert {arm.label: (len(arm.trials), arm.num_trials) for arm in arms} == {
        "sum": (1, 6),
        "average": (0, 6),
    }


def test_points_that_the_trials_are_not_at_are_forgotten() -> None:
    sweep = Sweep(4, [settings(lr="0.1"), settings(lr="0.2")], num_samples=2)
    trials = [trial("RUNNING", 1, settings=settings(lr=value)) for value in ("0.1", "0.7")]
    assert [(arm.label, arm.num_trials) for arm in sweep.arms(trials)] == [
        ("average, lr=0.1", 1),
        ("average, lr=0.7", 1),
    ]


def test_arms_are_grouped_anew_when_a_setting_has_changed() -> None:
    sweep = Sweep(2)
    trials = [trial("RUNNING", settings=settings(lr="0.1")) for _ in range(2)]
    assert [arm.label for arm in sweep.arms(trials)] == ["average"]
    trials[0].settings = settings(lr="0.2")
    assert {arm.label for arm in sweep.arms(trials)} == {"average, lr=0.1", "average, lr=0.2"}


def test_labels_of_several_environments_name_them() -> None:
    trials = [trial("RUNNING", settings=Settings(env=env, strategy="sum")) for env in "AB"]
    assert list(Sweep(2).labels(trials).values()) == ["A, sum", "B, sum"]


@pytest.mark.parametrize(
    ("statuses", "num_trials", "seconds"),
    [
        # 24 s and 48 s are left, and 4 trials of 60 s each wait: 312 s of work for two at once.
        ([("RUNNING", 6), ("RUNNING", 2)], 6, 156.0),
        # Nobody waits: the slower one counts.
        ([("RUNNING", 9), ("RUNNING", 2), ("TERMINATED", 10)], 3, 48.0),
        # Those that are done stopped after 30 s on average: so will those that wait.
        ([("TERMINATED", 4), ("TERMINATED", 6), ("RUNNING", 9)], 5, 6.0 + 2 * 30.0),
        # Before the first round nothing is known.
        ([("RUNNING", 0)], 3, None),
        ([("PENDING", 0)], 3, None),
        ([("RUNNING", 5)], None, None),
    ],
)
def test_time_left(
    statuses: list[tuple[str, int]], num_trials: int | None, seconds: float | None
) -> None:
    trials = [trial(status, round) for status, round in statuses]
    assert Sweep(num_trials).seconds_left(trials) == pytest.approx(seconds)


def test_time_left_where_a_return_ends_trials_is_as_those_before_lasted() -> None:
    done = trial("TERMINATED", 10)
    running = trial("RUNNING", 3)
    running.stop = {"merge/episode_return_mean": 475.0}
    # 60 s as the one before, of which 18 s have passed.
    assert Sweep(2).seconds_left([done, running]) == pytest.approx(42.0)
    assert Sweep(1).seconds_left([running]) is None


def test_time_left_counts_with_as_many_at_once_as_there_have_been() -> None:
    sweep = Sweep(4)
    trials = [trial("RUNNING", 5), trial("RUNNING", 5)]
    assert sweep.seconds_left(trials) == pytest.approx((30.0 + 30.0 + 60.0 + 60.0) / 2)
    trials[0].status = "TERMINATED"  # Its place is free for a moment.
    # It took 30 s: 30 s of the other one, and two of 30 s each.
    assert sweep.seconds_left(trials) == pytest.approx((30.0 + 30.0 + 30.0) / 2)


def test_the_part_that_is_done() -> None:
    trials = [trial("TERMINATED", 3), trial("ERROR", 1), trial("RUNNING", 5), trial("PENDING")]
    assert Sweep(10).fraction_done(trials) == pytest.approx(2.5 / 10)
    assert Sweep(None).fraction_done(trials) is None


def test_an_arm_without_a_result() -> None:
    arm = ArmProgress("average", [trial("PENDING")], 3)
    assert (arm.num_done, arm.mean_return, arm.best_return) == (0, None, None)


def test_where_trials_take_long_to_start_the_pace_tells_the_time_that_is_left() -> None:
    now = [100.0]
    sweep = Sweep(4, clock=lambda: now[0])
    before = [trial("TERMINATED", 1)]  # By the process that was interrupted: not this one's pace.
    sweep.seconds_left([*before, trial("RUNNING")])
    now[0] = 130.0
    trials = [*before, trial("TERMINATED", 1), trial("RUNNING")]
    assert sweep.seconds_left(trials) == pytest.approx(2 * 30.0)
    # Before one has ended in this process, there is no pace: what they took is all that is known.
    resumed = Sweep(4, clock=lambda: now[0])
    assert resumed.seconds_left(trials) == pytest.approx(2 * 6.0)
