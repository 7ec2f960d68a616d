"""What the terminal, or a log, shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rllib_weighted.cli import display as display_module
from rllib_weighted.cli.display import Display
from rllib_weighted.cli.progress import TrialProgress
from rllib_weighted.cli.sweep import Sweep
from rllib_weighted.report.trials import Settings


def console(*, terminal: bool, width: int = 100, height: int = 30) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None
    )


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def trial(name: str = "00000", status: str = "RUNNING", **stop: float) -> TrialProgress:
    return TrialProgress(name, stop or {"training_iteration": 10}, status=status)


RESULT: dict[str, Any] = {
    "training_iteration": 1,
    "num_env_steps_sampled_lifetime": 4000,
    "time_total_s": 2.0,
    "env_runners": {"episode_return_mean": 21.5},
    "merge": {
        "share_min": 0.1,
        "share_max": 0.2,
        "effective_workers": 7.5,
        "num_workers": 8,
        "workers": {"0": {"weight": 0.225}, "1": {"weight": 0.325}},
    },
}


def test_live_panel_of_one_trial() -> None:
    on = console(terminal=True)
    shown = Display(on, title="WeightedPPO on CartPole-v1")
    one = trial()
    one.update(RESULT)
    shown.refresh([one])
    on.print(shown.renderable())
    text = written(on)
    for part in ("CartPole-v1", "4 000  (2 000 per second)", "21.5", "18 s"):
        assert part in text
    shown_as = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines()}
    assert shown_as["weights"] == "w 0.225 … 0.325, 7.5 of 8 effective"
    assert shown_as["shares"] == "p 0.100 … 0.200"


def test_live_panel_before_the_first_round() -> None:
    on = console(terminal=True)
    shown = Display(on, title="PPO")
    shown.refresh([trial(status="PENDING")])
    on.print(shown.renderable())
    assert "starting" in written(on)


def member(number: int, status: str, arm: str, seed: int = 0) -> TrialProgress:
    one = trial(f"{number:05d}", status)
    one.settings = Settings(strategy="reward_weighted", name=arm, seed=seed, other={"lr": arm})
    one.update(RESULT)
    return one


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
@pytest.mark.parametrize(("num_arms", "num_running"), [(1, 2), (3, 40), (60, 1), (60, 40)])
def test_a_sweep_fills_the_terminal_and_not_more(
    size: tuple[int, int], num_arms: int, num_running: int
) -> None:
    width, height = size
    on = console(terminal=True, width=width, height=height)
    shown = Display(on, title="WeightedPPO on CartPole-v1", live=False, sweep=Sweep(200))
    statuses = ["RUNNING"] * num_running + ["TERMINATED"] * (150 - num_running)
    trials = [member(k, status, f"a{k % num_arms}", k) for k, status in enumerate(statuses)]
    shown.refresh(trials)
    on.print(shown.renderable())
    lines = written(on).splitlines()[1:]  # The first one is the plain line.
    assert height - 4 <= len(lines) < height
    assert f"{150 - num_running} of 200 trials done" in lines[1]
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any(line.startswith("a0 ") for line in lines)  # An arm,
    assert any(line.split()[:2] == ["00000", "a0, lr=a0"[:2]] for line in lines)  # and a trial.


def test_where_every_trial_is_an_arm_the_trials_are_the_table() -> None:
    on = console(terminal=True)
    shown = Display(on, title="PPO", live=False, sweep=Sweep(2))
    shown.refresh([member(0, "RUNNING", "a"), member(1, "RUNNING", "b")])
    on.print(shown.renderable())
    assert "mean return" not in written(on)
    assert "00001" in written(on)


def test_before_the_first_trial_the_arms_are_shown() -> None:
    on = console(terminal=True)
    points = [Settings(strategy=name) for name in ("average", "sum")]
    shown = Display(on, title="PPO", sweep=Sweep(6, points, num_samples=3))
    on.print(shown.renderable())
    assert "0 of 6 trials done, 6 waiting" in written(on)
    assert [line.split()[:2] for line in written(on).splitlines()[3:5]] == [
        ["average", "0/3"],
        ["sum", "0/3"],
    ]


def test_lines_name_the_trial_by_what_differs() -> None:
    on = console(terminal=False)
    shown = Display(on, title="PPO")
    trials = [member(0, "RUNNING", "mine", 1), member(1, "RUNNING", "mine", 2)]
    shown.refresh(trials)
    shown.round_ended(trials[1])
    assert "trial 00001, mine, seed=2 | round 1 |" in written(on)


def test_lines_say_how_far_a_sweep_is_whenever_a_trial_has_ended() -> None:
    on = console(terminal=False)
    shown = Display(on, title="PPO", sweep=Sweep(4))
    trials = [member(0, "RUNNING", "a", 1), member(1, "RUNNING", "a", 2)]
    shown.refresh(trials)
    assert written(on) == ""
    trials[0].status = "TERMINATED"
    shown.refresh(trials)
    shown.refresh(trials)
    assert written(on).count("1 of 4 trials done, 1 running, 2 waiting") == 1


def test_logs_get_a_line_per_interval_and_not_per_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    on = console(terminal=False)
    shown, one = Display(on, title="PPO"), trial()
    one.update(RESULT)
    for seconds in (0.0, 4.0, 9.0, 10.0, 15.0):
        now[0] = 100.0 + seconds
        shown.round_ended(one)
    assert written(on).count("round 1 |") == 2  # At 0 s and at 10 s.


def test_unreported_stop_criterion_is_said_once() -> None:
    on = console(terminal=False)
    shown, one = Display(on, title="PPO"), trial(bogus=1.0)
    one.update(RESULT)
    shown.round_ended(one)
    shown.round_ended(one)
    assert written(on).count("`stop` names 'bogus'") == 1
    assert "until Ctrl-C" in written(on)


def drop(number: int, count: int) -> dict[str, Any]:
    merge = {**RESULT["merge"], "num_dropped": count, "drop_cause": "worker 3: reward nan"}
    return {**RESULT, "training_iteration": number, "merge": merge}


@pytest.mark.parametrize("terminal", [False, True])
def test_drops_are_shown_and_a_round_without_a_worker_warns_once(terminal: bool) -> None:
    on = console(terminal=terminal, width=200)
    shown = Display(on, title="WeightedPPO", live=False)
    one = trial()
    shown.refresh([one])
    for number, count in enumerate((1, 8, 8, 0, 8), start=1):
        one.update(drop(number, count))
        shown.round_ended(one)
    warnings = [line for line in written(on).splitlines() if line.startswith("Warning")]
    cause = "First drop: round 1, worker 3: reward nan"
    assert [line.partition(": in ")[2] for line in warnings] == [
        f"round {number} all workers were dropped. {cause}" for number in (2, 5)
    ]
    on.print(shown.renderable())
    assert "8 of 8 workers, some in 4 rounds; first: round 1, worker 3" in written(on)


def test_the_table_of_a_sweep_names_a_trial_that_drops_workers() -> None:
    on = console(terminal=False, width=160)
    shown = Display(on, title="WeightedPPO", live=False)
    trials = [trial(name) for name in ("00000", "00001")]
    trials[0].update(RESULT)
    trials[1].update(drop(1, 2))
    shown.refresh(trials)
    on.print(shown.renderable())
    assert "1 of them dropped workers, as 00001: 2 of 8 workers, some in 1 round" in written(on)


HOSTILE = "\x1b[2J\x9b2J\u202egnitset"


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_others_do_not_control_the_terminal(terminal: bool) -> None:
    on = console(terminal=terminal)
    shown = Display(on, title=f"PPO on {HOSTILE}")
    trials = [trial("00000"), trial("00001")]
    for one, env in zip(trials, (HOSTILE, "other"), strict=True):
        one.settings = Settings(env=env, name=HOSTILE, other={HOSTILE: env})
        one.update(RESULT)
    shown.refresh(trials)
    shown.note(HOSTILE)
    shown.round_ended(trials[0])
    on.print(shown.renderable())
    text = written(on)
    assert r"\x1b[2J\x9b2J\u202egnitset" in text
    # Rich itself writes colours and line ends, but none of these.
    assert not {"\x9b", "\u202e"} & set(text)
    assert "\x1b[2J" not in text
