"""What a sweep's trials are called, when they are saved, and how resumed ones are taken over."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rllib_weighted import LossWeighted, WeightedPPOConfig
from rllib_weighted.cli import session as session_module
from rllib_weighted.cli.display import Display
from rllib_weighted.cli.session import SessionCallback, TrainSession, session, trial_settings


def trial(config: dict[str, Any] | None = None, **more: Any) -> Any:
    """What a session needs of Tune's trial."""
    values = {
        "trial_id": "ab12c_00007",
        "config": config or {},
        "trainable_name": "PPO",
        "stopping_criterion": {"training_iteration": 9},
        "status": "RUNNING",
        "last_result": {},
        "metric_analysis": {},
        "checkpoint_freq": 0,
        "storage": None,
        "is_finished": lambda: values["status"] == "TERMINATED",
        **more,
    }
    return SimpleNamespace(**values)


def display() -> Display:
    return Display(Console(file=io.StringIO()), title="PPO", live=False)


def written(shown: Display) -> str:
    assert isinstance(shown.console.file, io.StringIO)
    return shown.console.file.getvalue()


@pytest.mark.parametrize(
    ("changes", "strategy", "options", "min_weight"),
    [
        ({"min_weight": 0.03125}, "reward_weighted", "", 0.03125),
        ({"merge_strategy": "loss_weighted"}, "loss_weighted", "", 0.25),  # 1/N
        ({"merge_strategy": "average", "min_weight": 0.5}, "average", "", None),
        ({"merge_strategy": LossWeighted(direction="low")}, "LossWeighted", "low", 0.25),
        ({"merge_options": {"smoothing": 0.5}}, "reward_weighted", '{"smoothing": 0.5}', 0.25),
        ({"merge_strategy": "none of ours", "min_weight": 0.5}, "none of ours", "", 0.5),
    ],
)
def test_settings_are_those_that_the_report_reads(
    changes: dict[str, Any], strategy: str, options: str, min_weight: float | None
) -> None:
    config = WeightedPPOConfig().environment("CartPole-v1").env_runners(num_env_runners=4)
    given = {**config.to_dict(), "seed": 3, "merge_arm": "mine", **changes}
    found = trial_settings(given, "WeightedPPO")
    assert (found.env, found.seed, found.name) == ("CartPole-v1", 3, "mine")
    assert found.strategy == strategy
    assert options in found.options
    assert (None if math.isnan(found.min_weight) else found.min_weight) == min_weight


def test_settings_of_another_algorithm() -> None:
    found = trial_settings({"env": "CartPole-v1", "lr": 0.5}, "PPO")
    assert (found.strategy, found.other["lr"]) == ("PPO", "0.5")


def test_settings_are_those_of_now_and_not_of_the_start() -> None:
    """Population-based training changes them."""
    active, one = TrainSession(display(), None), trial({"env": "x", "lr": 0.5})
    before = active.progress(one).settings
    assert active.progress(one).settings is before  # Read once.
    one.config = {"env": "x", "lr": 0.25}
    after = active.progress(one).settings
    assert before is not None
    assert after is not None
    assert (before.other["lr"], after.other["lr"]) == ("0.5", "0.25")


def test_a_trial_is_saved_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now[0])
    active = TrainSession(display(), None, checkpoint_seconds=60)
    callback, one = SessionCallback(), trial()
    asked = []
    with session(active):
        callback.on_trial_start(0, [one], one)
        for seconds in (30, 59, 60, 100, 119, 121):
            now[0] = 100.0 + seconds
            result = {"training_iteration": 1, "should_checkpoint": False}
            callback.on_trial_result(0, [one], one, result)
            asked.append(result["should_checkpoint"])
            if asked[-1]:
                callback.on_trial_save(0, [one], one)
    assert asked == [False, False, True, False, False, True]


def test_without_seconds_checkpoints_are_left_to_tune() -> None:
    assert not TrainSession(display(), None).is_due(trial())
    # As of an experiment that was started with a number of rounds.
    by_rounds = trial(checkpoint_freq=5)
    assert TrainSession(display(), None, checkpoint_seconds=0).is_due(trial())
    assert not TrainSession(display(), None, checkpoint_seconds=0).is_due(by_rounds)


def test_trials_of_an_earlier_process_are_shown_as_they_were() -> None:
    result = {"training_iteration": 4, "env_runners": {"episode_return_mean": 5.0}}
    best = {"env_runners/episode_return_mean": {"max": 8.0}}
    done = trial(status="TERMINATED", last_result=result, metric_analysis=best, trial_id="a_0")
    open_ = trial(status="PENDING", trial_id="a_1")
    shown = display()
    active = TrainSession(shown, {"training_iteration": 50}, resumed=True)
    active.adopt([done, open_])
    assert active.trials["a_0"].best_return == 8.0
    assert active.trials["a_0"].mean_return == 5.0
    assert open_.stopping_criterion == {"training_iteration": 50}
    assert "found       1 done, 1 waiting" in written(shown)


def test_trials_of_this_process_keep_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    active = TrainSession(display(), {"training_iteration": 50})
    one = trial()
    active.adopt([one])
    assert one.stopping_criterion == {"training_iteration": 9}


def test_the_first_cause_is_kept_beside_the_storage(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text(
        "Failure # 1 (occurred at 2026-01-01_00-00-00)\nof an earlier process\n"
        "Failure # 2 (occurred at 2026-01-02_00-00-00)\nOSError: no space left\n"
    )
    active = TrainSession(display(), None)
    with session(active):
        for one in (trial(error_file=str(file)), trial(error_file=None, trial_id="another")):
            SessionCallback().on_trial_error(0, [one], one)
    assert active.errors == {"ab12c_00007": "OSError: no space left\n"}
