"""Speed, time left and how they are written."""

from __future__ import annotations

from typing import Any

import pytest

from rllib_weighted.cli.progress import (
    RETURN,
    SMOOTHED_RETURN,
    TrialProgress,
    format_brief_duration,
    format_drops,
    format_duration,
    format_number,
    format_shares,
    format_time_left,
    format_weights,
    plain_line,
)


def result(round_number: int, *, steps: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "training_iteration": round_number,
        "num_env_steps_sampled_lifetime": steps,
        "time_total_s": seconds,
        **more,
    }


def trained(stop: dict[str, float], *results: dict[str, Any]) -> TrialProgress:
    trial = TrialProgress("PPO", stop)
    for item in results:
        trial.update(item)
    return trial


def test_speed_is_that_of_the_last_rounds() -> None:
    # The first round is slow (it builds); of 12 rounds the window holds the last 11.
    rounds = [result(1, steps=100, seconds=50.0)]
    rounds += [result(k, steps=100 * k, seconds=50.0 + (k - 1)) for k in range(2, 13)]
    # From round 2 (200 steps, 51 s) to round 12 (1200 steps, 61 s): 1000 steps in 10 s.
    assert trained({}, *rounds).speed("num_env_steps_sampled_lifetime") == pytest.approx(100.0)


def test_speed_of_the_first_round_counts_from_the_start() -> None:
    trial = trained({}, result(1, steps=100, seconds=4.0))
    assert trial.speed("num_env_steps_sampled_lifetime") == pytest.approx(25.0)


def test_no_speed_right_after_a_resume() -> None:
    # Its time and steps hold those of an earlier process, whose pace says nothing about this one.
    trial = trained({}, result(40, steps=4000, seconds=400.0))
    assert trial.speed("num_env_steps_sampled_lifetime") is None


def test_speed_after_a_resume_that_starts_over() -> None:
    # Killed in round 40 without a checkpoint: the rounds come again.
    again = result(1, steps=100, seconds=4.0)
    trial = trained({}, result(40, steps=4000, seconds=400.0), again)
    assert trial.speed("num_env_steps_sampled_lifetime") == pytest.approx(25.0)


def test_speed_after_a_resume_whose_clock_starts_over() -> None:
    # From a state that was rescued: rounds and steps go on, the time is that of the new process.
    stop = {"training_iteration": 100}
    before = result(7, steps=700, seconds=60.0)
    trial = trained(stop, before, result(8, steps=800, seconds=2.0))
    assert trial.speed("num_env_steps_sampled_lifetime") is None
    assert trial.seconds_left() is None
    assert format_time_left(trial) == "-"
    trial.update(result(9, steps=900, seconds=4.0))
    # 100 steps in 2 s; 91 rounds at 1 in 2 s.
    assert trial.speed("num_env_steps_sampled_lifetime") == pytest.approx(50.0)
    assert trial.seconds_left() == pytest.approx(182.0)


def test_a_repeated_round_starts_the_window_anew() -> None:
    first = result(4, steps=400, seconds=40.0)
    trial = trained({}, result(3, steps=300, seconds=30.0), first, first)
    assert trial.speed("num_env_steps_sampled_lifetime") is None


def test_time_left_is_that_of_the_first_criterion() -> None:
    stop = {"training_iteration": 100, "num_env_steps_sampled_lifetime": 1200}
    trial = trained(stop, result(1, steps=100, seconds=1.0), result(2, steps=200, seconds=2.0))
    # 98 rounds at 1/s, or 1000 steps at 100/s.
    assert trial.seconds_left() == pytest.approx(10.0)


def test_time_criterion_counts_seconds() -> None:
    trial = trained({"time_total_s": 60}, result(1, steps=1, seconds=45.0))
    assert trial.seconds_left() == pytest.approx(15.0)


def test_time_left_is_unknown_for_a_return() -> None:
    trial = trained({RETURN: 475}, result(1, steps=1, seconds=1.0))
    assert trial.seconds_left() is None
    assert format_time_left(trial) == "-"


def test_time_left_is_an_upper_end_beside_a_return() -> None:
    trial = trained({RETURN: 475, "time_total_s": 60}, result(1, steps=1, seconds=45.0))
    assert format_time_left(trial) == "at most 15 s"


def test_nothing_left_once_reached() -> None:
    trial = trained({"training_iteration": 2}, result(2, steps=1, seconds=1.0))
    assert trial.seconds_left() == 0.0
    assert trial.reached() == ["training_iteration 2 >= 2"]


def test_best_return_keeps_the_best_and_skips_nan() -> None:
    returns = [float("nan"), -5.0, 0.0, -3.0, float("nan")]
    rounds = [
        result(k, steps=k, seconds=k, env_runners={"episode_return_mean": value})
        for k, value in enumerate(returns, 1)
    ]
    trial = trained({}, *rounds)
    assert trial.best_return == 0.0
    assert trial.value(RETURN) is None


def test_criteria_that_are_never_reported_are_known() -> None:
    trial = trained({"training_iteration": 2, "bogus": 1}, result(1, steps=1, seconds=1.0))
    assert trial.unreported() == ["bogus"]
    assert TrialProgress("PPO", {"bogus": 1}).unreported() == []


def test_weights_and_shares_are_shown_where_there_is_a_merge() -> None:
    merge: dict[str, Any] = {"share_min": 0.05, "share_max": 0.2}
    merge |= {"effective_workers": 7.44, "num_workers": 8}
    workers = {"0": {"weight": 0.175}, "1": {"weight": float("nan")}, "2": {"weight": 0.325}}
    trial = trained({}, result(1, steps=1, seconds=1.0, merge={**merge, "workers": workers}))
    assert format_weights(trial) == "0.175 … 0.325, 7.4 of 8 effective"
    assert format_shares(trial) == "0.050 … 0.200"
    line = plain_line(trial)
    assert "| weights w 0.175 … 0.325, 7.4 of 8 effective | shares p 0.050 … 0.200 |" in line
    many = trained({}, result(1, steps=1, seconds=1.0, merge=merge))
    assert format_weights(many) == "7.4 of 8 effective"
    stock = trained({}, result(1, steps=1, seconds=1.0))
    assert (format_weights(stock), format_shares(stock)) == ("", "")


def test_the_return_shown_is_that_of_the_stop_or_the_smoother_one() -> None:
    both = {
        "env_runners": {"episode_return_mean": 9.0},
        "merge": {"episode_return_mean": 7.0},
    }
    for stop, expected in (({}, 7.0), ({RETURN: 475}, 9.0), ({SMOOTHED_RETURN: 475}, 7.0)):
        assert trained(stop, result(1, steps=1, seconds=1.0, **both)).mean_return == expected
    unknown = {**both, "merge": {"episode_return_mean": float("nan")}}
    assert trained({}, result(1, steps=1, seconds=1.0, **unknown)).mean_return == 9.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (59.4, "59 s"), (59.6, "1 min"), (5900, "98 min"), (7600, "2.1 h")],
)
def test_format_brief_duration(seconds: float | None, text: str) -> None:
    assert format_brief_duration(seconds) == text


def test_plain_line() -> None:
    trial = trained(
        {RETURN: 475, "training_iteration": 11},
        result(1, steps=2000, seconds=2.0, env_runners={"episode_return_mean": 22.14}),
    )
    assert plain_line(trial) == (
        "round 1 | 2 000 steps | 1 000 steps/s | return 22.1 of 475 | time left at most 20 s"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (48000, "48 000"),
        (1234.5, "1 234"),
        (142.34, "142.3"),
        (0.01234, "0.0123"),
        (-7.0, "-7"),
        (float("inf"), "inf"),
    ],
)
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (float("inf"), "-"),
        (-1.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_format_duration(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


# Drops


def dropping(*dropped: int, cause: str = "worker 1: reward nan") -> TrialProgress:
    """A trial of 4 workers: how many were dropped in each round."""
    rounds = []
    for number, count in enumerate(dropped, start=1):
        merge: dict[str, Any] = {"num_dropped": count, "num_workers": 4}
        if count:
            merge["drop_cause"] = f"{cause} in round {number}"
        rounds.append(result(number, steps=100 * number, seconds=number, merge=merge))
    return trained({}, *rounds)


def test_without_drops_nothing_is_said_of_them() -> None:
    trial = dropping(0, 0)
    assert format_drops(trial) == ""
    assert "dropped" not in plain_line(trial)
    assert (trial.num_dropping, trial.num_idle) == (0, 0)


def test_drops_are_counted_and_the_first_cause_is_kept() -> None:
    trial = dropping(0, 1, 4, 4, 0)
    first = "round 2, worker 1: reward nan in round 2"
    assert format_drops(trial) == f"0 of 4 workers, some in 3 rounds; first: {first}"
    assert f"dropped 0 of 4 workers, some in 3 rounds; first: {first}" in plain_line(trial)
    assert dropping(0, 1, 4, 4).num_idle == 2
    assert trial.num_idle == 0
