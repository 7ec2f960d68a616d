"""`--track`: what trackers get, without a network; what happens where one is missing or away."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import CSVLoggerCallback, TBXLoggerCallback

from rllib_weighted.cli import InputError, tracking
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.storage import ExperimentRecord, read_record, write_record
from rllib_weighted.cli.tracking import (
    MlflowTracker,
    TrackedTrial,
    Tracking,
    WandbTracker,
    check_trackers,
    describe,
    numbers,
    plain_settings,
    with_tensorboard,
    without_secrets,
)
from rllib_weighted.cli.train import resume_by_name, run_file
from tests.cli.test_main import failed, rllib
from tests.cli.test_train import PPO, interrupt_when_trained, printed, quiet, rounds, write

KEY = "0123456789abcdef" * 3  # Of no account.


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()  # It reads the environment once in a process.


class FakeTracker:
    """Keeps what it is sent; fails while told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def log(self, trial: TrackedTrial, values: Mapping[str, float], round_: int) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append((trial.id, round_, values["x"]))

    def end(self, trial_id: str, *, failed: bool) -> None:
        self.calls.append((trial_id, "failed" if failed else "done"))

    def close(self) -> None:
        self.calls.append(("closed",))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    tracker = FakeTracker()
    monkeypatch.setitem(tracking._CLASSES, "wandb", lambda: tracker)
    return tracker


def trial(trial_id: str = "abc_00000") -> Any:
    return types.SimpleNamespace(trial_id=trial_id, config={"lr": 0.1})


def result(round_: int, x: float = 0.5) -> dict[str, Any]:
    return {"training_iteration": round_, "x": x}


def closed(tracked: Tracking, seconds: float = 10.0) -> list[str]:
    said: list[str] = []
    tracked.close(seconds, say=said.append)
    return said


# What is asked for


def test_trackers_are_checked_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_trackers([]) == []
    assert check_trackers(["tensorboard", "tensorboard"]) == ["tensorboard"]
    with pytest.raises(InputError, match=r"one of .*; found 'wandbb'; did you mean 'wandb'\?"):
        check_trackers(["wandbb"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    file, results = write(tmp_path), tmp_path / "results"
    text = failed(rllib("train", "file", file, "--track", "mlflow", "--storage-path", results))
    assert "--track mlflow needs the package mlflow, which cannot be imported" in text
    assert "pip install 'rllib-weighted[mlflow]', or leave --track mlflow out" in text
    assert not results.exists()


def test_wandb_needs_a_key_unless_it_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = types.SimpleNamespace(mode="online", base_url="https://user:secret@example.org")
    asked: list[dict[str, Any]] = []
    wandb = types.SimpleNamespace(
        Settings=lambda **settings: settings,
        setup=lambda settings: types.SimpleNamespace(settings=given),
        login=lambda **options: asked.append(options),
        teardown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    message = r"needs an API key for https://example.org, found none: set WANDB_API_KEY, or call"
    with pytest.raises(InputError, match=message):
        check_trackers(["wandb"])
    assert asked == [{"prompt": False, "verify": False}]  # Nothing is asked on the terminal.
    given.mode = "offline"
    assert check_trackers(["wandb"]) == ["wandb"]
    assert len(asked) == 1


def test_an_experiment_remembers_its_trackers(tmp_path: Path) -> None:
    write_record(str(tmp_path), ExperimentRecord(file="x.py", trackers=["mlflow"]))
    record = read_record(str(tmp_path))
    assert record is not None
    assert record.trackers == ["mlflow"]
    (tmp_path / "rllib_train.json").write_text('{"file": "x.py"}')  # Of an older version.
    record = read_record(str(tmp_path))
    assert record is not None
    assert record.trackers == []


def test_tensorboard_s_callback_is_there_once() -> None:
    assert with_tensorboard([], ["wandb"]) == []
    (added,) = with_tensorboard([], ["tensorboard"])
    assert isinstance(added, TBXLoggerCallback)
    own = [CSVLoggerCallback(), TBXLoggerCallback()]
    assert with_tensorboard(own, ["tensorboard"]) == own


def test_what_is_said_of_where_results_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    found = describe(["tensorboard", "wandb"], "/results/run")
    assert found == ["tensorboard --logdir /results/run", "wandb: project mine, offline"]


# What is sent


def test_numbers_of_a_result() -> None:
    import numpy as np

    found = numbers(
        {
            "merge": {"weight": np.float32(0.5), "worst": float("nan"), "cause": "none"},
            "training_iteration": 3,
            "done": True,
            "config": {"lr": 1.0},
            "pid": 17,
            "env_runners": {"returns": [1, 2], "mean": np.array(7.0)},
            "huge": 10**400,
        }
    )
    assert found == {"merge/weight": 0.5, "training_iteration": 3.0, "env_runners/mean": 7.0}


def test_settings_are_plain_and_hold_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    found = plain_settings(
        {
            "lr": 0.1,
            "env": "CartPole-v1",
            "seed": None,
            "env_config": {"url": "redis://me:pass@host/1", "api_key": "abc", "note": f"<{KEY}>"},
            "cls": dict,
            "_private": 1,
            "long": "x" * 9999,
        }
    )
    assert found.pop("long") == "x" * 500
    assert found == {
        "lr": 0.1,
        "env": "CartPole-v1",
        "seed": None,
        "env_config/url": "redis://host/1",
        "env_config/api_key": "…",
        "env_config/note": "<…>",
        "cls": "<class 'dict'>",
    }


def test_texts_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    monkeypatch.setenv("SOME_KEY", "e")  # Too short to be one.
    text = f"GET http://me:pw@host/?token=1&a=2 with Bearer {KEY} failed"
    assert without_secrets(text) == "GET http://host/?token=…&a=2 with Bearer … failed"


def test_reports_come_in_order_and_runs_end(fake: FakeTracker) -> None:
    tracked = Tracking(["wandb", "tensorboard"], "experiment")
    for round_ in (1, 2):
        tracked.result(trial(), result(round_))
        tracked.result(trial("abc_00001"), result(round_, 0.25))
    tracked.ended(trial(), failed=False)
    tracked.ended(trial("abc_00001"), failed=True)
    assert closed(tracked) == []
    assert fake.calls == [
        ("abc_00000", 1, 0.5),
        ("abc_00001", 1, 0.25),
        ("abc_00000", 2, 0.5),
        ("abc_00001", 2, 0.25),
        ("abc_00000", "done"),
        ("abc_00001", "failed"),
        ("closed",),
    ]
    assert closed(tracked) == []  # Once is enough.
    assert tracked.new_warnings() == []


def test_a_tracker_that_fails_is_one_warning_and_is_tried_again(
    fake: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "RETRY_S", 0.2)
    fake.error = OSError(f"no route to host,\n Bearer {KEY}")
    tracked = Tracking(["wandb"], "experiment")
    tracked.result(trial(), result(1))
    deadline = time.monotonic() + 10
    while not (warnings := tracked.new_warnings()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert warnings == [
        "Warning: tracking: wandb failed, training goes on without it; it is tried again once a "
        "minute. It says: OSError: no route to host, Bearer …"
    ]
    fake.error = None
    time.sleep(0.3)
    tracked.result(trial(), result(3))
    assert closed(tracked) == []
    assert fake.calls == [("abc_00000", 3, 0.5), ("closed",)]
    assert tracked.new_warnings() == []


def test_a_tracker_that_hangs_does_not_hold_up_the_end(fake: FakeTracker) -> None:
    going_on = threading.Event()
    fake.log = lambda *args: going_on.wait(30)  # type: ignore[method-assign,assignment]
    tracked = Tracking(["wandb"], "experiment")
    tracked.result(trial(), result(1))
    start = time.monotonic()
    (said,) = closed(tracked, seconds=0.3)
    assert time.monotonic() - start < 10
    going_on.set()
    assert said == "Sending the last results to wandb; Ctrl-C does not wait for it …"
    (warning,) = tracked.new_warnings()
    assert "wandb has not taken everything within 0.3 s" in warning


# The services' own clients

TRIAL = TrackedTrial("abc_00000", "PPO_CartPole", "my_run", {"lr": 0.125, "env": "CartPole-v1"})


@pytest.mark.slow  # Its client takes seconds to import.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inside the client.
def test_wandb_offline(tmp_path: Path) -> None:
    assert check_trackers(["wandb"]) == ["wandb"]
    tracker = WandbTracker()
    tracker.log(TRIAL, {"merge/weight": 0.5}, 1)
    tracker.log(TRIAL, {"merge/weight": 0.25}, 2)
    tracker.log(TrackedTrial("abc_00001", "other", "my_run"), {"x": 1.0}, 1)
    tracker.end("abc_00000", failed=False)
    tracker.close()
    (file,) = tmp_path.glob("wandb/offline-run-*-abc_00000/run-abc_00000.wandb")
    written = file.read_bytes()
    for text in (b"merge/weight", b"0.25", b"my_run", b"PPO_CartPole", b"CartPole-v1"):
        assert text in written
    assert list(tmp_path.glob("wandb/offline-run-*-abc_00001/run-abc_00001.wandb"))


@pytest.mark.slow  # Likewise, and making its database.
@pytest.mark.filterwarnings("ignore")  # Inside the client, and of SQLAlchemy.
def test_mlflow_in_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    tracker = MlflowTracker()
    settings = {**TRIAL.settings, "odd@name": 1, **{f"s{i}": i for i in range(150)}}
    named = TrackedTrial(TRIAL.id, TRIAL.name, TRIAL.experiment, settings)
    tracker.log(named, {"merge/weight": 0.5, "worker(1)": 2.0}, 1)
    tracker.close()
    resumed = MlflowTracker()  # Another process goes on with the trial.
    resumed.log(named, {"merge/weight": 0.25}, 2)
    resumed.end(TRIAL.id, failed=False)

    client = MlflowClient()
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("PPO_CartPole", "FINISHED")
    assert run.data.params["lr"] == "0.125"
    assert run.data.params["odd_name"] == "1"
    assert len(run.data.params) == 153
    assert run.data.tags["experiment"] == "my_run"
    assert run.data.metrics["worker_1_"] == 2.0
    points = client.get_metric_history(run.info.run_id, "merge/weight")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore")  # As above.
def test_a_training_tracks_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    file = write(tmp_path, PPO.replace('"training_iteration": 2', '"training_iteration": 10**6'))
    console = quiet()
    options = TrainOptions(
        storage_path=str(tmp_path), name="run", track=["mlflow", "wandb", "tensorboard"]
    )
    threading.Thread(target=interrupt_when_trained, args=(tmp_path / "run",), daemon=True).start()
    first = run_file(file, options, console=console)
    assert first.exit_code == 130
    (stopped_at,) = rounds(first)
    text = printed(console)
    assert f"  tracking    mlflow: sqlite:///{tmp_path}/mlflow.db" in text
    assert "  tracking    wandb: project rllib_weighted, offline" in text
    assert f"  tracking    tensorboard --logdir {tmp_path}/run" in text

    def tracked_runs() -> list[Any]:
        client = MlflowClient()
        experiment = client.get_experiment_by_name("rllib_weighted")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))

    assert [run.info.status for run in tracked_runs()] == ["KILLED"]
    stop = f'{{"training_iteration": {stopped_at + 2}}}'
    options = TrainOptions(storage_path=str(tmp_path), name="run", resume=True, stop=stop)
    assert rounds(resume_by_name(options)) == [stopped_at + 2]
    (run,) = tracked_runs()
    assert run.info.status == "FINISHED"
    points = MlflowClient().get_metric_history(run.info.run_id, "training_iteration")
    assert [point.step for point in points] == list(range(1, stopped_at + 3))
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2
    (events,) = (tmp_path.glob("run/*/events.out.tfevents.*"),)
    assert any(b"ray/tune/env_runners" in file.read_bytes() for file in events)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore")  # As above.
def test_a_training_goes_on_where_trackers_are_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens on port 9."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:password@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "LAST_WAIT_S", 3.0)
    console = quiet()
    options = TrainOptions(storage_path=str(tmp_path), name="run", track=["mlflow", "wandb"])
    found = run_file(write(tmp_path), options, console=console)
    assert (found.exit_code, rounds(found)) == (0, [2])
    text = printed(console)
    assert text.count("Warning: tracking: mlflow failed, training goes on without it") == 1
    assert text.count("Warning: tracking: wandb ") == 1
    assert "password" not in text
    assert KEY not in text
    assert not [
        file
        for file in (tmp_path / "run").rglob("*")
        if file.is_file()
        and (KEY.encode() in file.read_bytes() or b"me:password" in file.read_bytes())
    ]
