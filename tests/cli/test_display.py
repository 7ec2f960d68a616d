"""What the terminal, or a log, shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rllib_weighted.cli import display as display_module
from rllib_weighted.cli.display import Display, trials_table
from rllib_weighted.cli.progress import TrialProgress


def console(*, terminal: bool, width: int = 100, height: int = 30) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None
    )


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def trial(label: str = "PPO", status: str = "RUNNING", **stop: float) -> TrialProgress:
    return TrialProgress(label, stop or {"training_iteration": 10}, status=status)


RESULT: dict[str, Any] = {
    "training_iteration": 1,
    "num_env_steps_sampled_lifetime": 4000,
    "time_total_s": 2.0,
    "env_runners": {"episode_return_mean": 21.5},
    "merge": {"share_min": 0.1, "share_max": 0.2, "effective_workers": 7.5, "num_workers": 8},
}


def test_live_panel_of_one_trial() -> None:
    on = console(terminal=True)
    shown = Display(on, title="WeightedPPO on CartPole-v1")
    one = trial()
    one.update(RESULT)
    shown.refresh([one])
    on.print(shown.renderable())
    text = written(on)
    for part in ("CartPole-v1", "4 000  (2 000 per second)", "21.5", "7.5 of 8", "18 s"):
        assert part in text


def test_live_panel_before_the_first_round() -> None:
    on = console(terminal=True)
    shown = Display(on, title="PPO")
    shown.refresh([trial(status="PENDING")])
    on.print(shown.renderable())
    assert "starting" in written(on)


def searched(seed: int, status: str) -> TrialProgress:
    varied = {"merge_strategy": "reward_weighted", "seed": str(seed)}
    one = TrialProgress("", {"training_iteration": 10}, varied=varied, status=status)
    one.update(RESULT)
    return one


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_of_trials_fits_and_counts_the_rest(width: int) -> None:
    on = console(terminal=True, width=width)
    trials = [searched(k, "TERMINATED") for k in range(30)] + [searched(30, "RUNNING")]
    on.print(trials_table(trials, width=width, max_rows=5))
    lines = written(on).splitlines()
    assert lines[0].split()[:2] == ["merge_strategy", "seed"]
    assert lines[1].split()[:2] == ["reward_weighted", "30"]  # Running ones first.
    assert "… and 26 more" in lines[-1]
    assert all(len(line.rstrip()) <= width for line in lines)
    # What is shown is shown whole.
    assert "21.5" in lines[1]
    assert "…" not in lines[1].replace("0.100 … 0.200", "")
    assert ("0.100 … 0.200" in lines[1]) == (width == 120)


def test_samples_of_one_setting_are_numbered() -> None:
    on = console(terminal=True)
    on.print(trials_table([trial("trial 1"), trial("trial 2")], width=100, max_rows=5))
    assert "trial 2" in written(on)


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
