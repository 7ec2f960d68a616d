"""Trackers of experiments, `--track`: what a training reports goes to Weights & Biases or MLflow.

A tracker runs in a thread of its own, so that a slow server never holds up a training, and what it
raises is a warning: training goes on without it, and it is tried again after a while. Both clients
are used directly. Ray's own callbacks (2.60), which a training file can name in `callbacks`, send a
request per metric (MLflow) or start a process per trial (W&B), and do not say that a server cannot
be reached.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rllib_weighted.cli import InputError
from rllib_weighted.core.redaction import redact
from rllib_weighted.suggest import nearest, shown

if TYPE_CHECKING:
    from ray.tune import Callback
    from ray.tune.experiment import Trial

PROJECT = "rllib_weighted"  # At W&B, the experiment at MLflow; the environment may name another.
LAST_WAIT_S = 30.0  # For what is still to be sent when a training has ended.
ABORTED_WAIT_S = 3.0  # Likewise when it has failed, or was stopped at once.
_SILENT_WAIT_S = 1.0  # Of these, before it is said what is waited for.
RETRY_S = 60.0  # After a failure; what is reported meanwhile is not sent.

# Tracker -> the module that it needs, and the extra of this package that installs it.
_MODULES = {
    "tensorboard": ("tensorboardX", None),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
TRACKERS = tuple(_MODULES)

_LONGEST_TEXT = 500  # Characters of a setting; MLflow takes 6,000.
_NO_METRICS = {"config", "timestamp", "pid"}  # Of a result.
_SECRET_NAME = re.compile(r"(?i)key|token|password|secret")
_FEWEST_SECRET = 6  # Characters; a shorter value would be struck out of words.


@dataclass(frozen=True)
class TrackedTrial:
    """A trial as trackers know it.

    Args:
        id: Tune's identity of the trial; a resumed one keeps it.
        name: Its name, that of its folder.
        experiment: The experiment's name.
        settings: Its settings: names and plain values.
    """

    id: str
    name: str
    experiment: str
    settings: Mapping[str, object] = field(default_factory=dict)


class Tracker(Protocol):
    """What sends reports to one service; called in one thread, and may raise anything."""

    def log(self, trial: TrackedTrial, values: Mapping[str, float], round_: int) -> None:
        """Sends the metrics of a round; begins the trial's run if there is none yet."""

    def end(self, trial_id: str, *, failed: bool) -> None:
        """Ends a trial's run, if it has one."""

    def close(self) -> None:
        """Ends what has not ended: the training was interrupted."""


def check_trackers(names: Sequence[str]) -> list[str]:
    """Returns the trackers that were asked for, each once, and sees that they can be used.

    Raises:
        InputError: There is no such tracker, it is not installed, or it has no credentials.
    """
    unknown = [name for name in names if name not in _MODULES]
    if unknown:
        raise InputError(
            f"--track should be one of {', '.join(TRACKERS)}; found "
            f"{shown(unknown[0])}{nearest(unknown[0], TRACKERS)}"
        )
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        module, extra = _MODULES[name]
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = f"'rllib-weighted[{extra}]'" if extra else module
            raise InputError(
                f"--track {name} needs the package {module}, which cannot be imported ({error}): "
                f"pip install {package}, or leave --track {name} out"
            ) from None
        if name == "wandb":
            _check_wandb()
    return chosen


def _check_wandb() -> None:
    import wandb

    # Nothing of its own between the lines of the live view, and no question to the terminal.
    settings = wandb.setup(wandb.Settings(silent=True, console="off")).settings
    if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise InputError(
            f"--track wandb needs an API key for {redact(settings.base_url)}, found none: set "
            "WANDB_API_KEY, or call `wandb login`; with WANDB_MODE=offline none is needed"
        )


def with_tensorboard(callbacks: Sequence[Callback], names: Sequence[str]) -> list[Callback]:
    """Returns Tune's callbacks with the one that writes TensorBoard's files, if that is asked for.

    Tune adds it by itself, unless TUNE_DISABLE_AUTO_CALLBACK_LOGGERS is set.
    """
    from ray.tune.logger import TBXLoggerCallback

    has_one = any(isinstance(callback, TBXLoggerCallback) for callback in callbacks)
    add = "tensorboard" in names and not has_one
    return [*callbacks, *([TBXLoggerCallback()] if add else [])]


class WandbTracker:
    """Sends to Weights & Biases: a run per trial, in the group of the experiment.

    `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE`, `WANDB_DIR`, `WANDB_RUN_GROUP` and the others
    are read by its own client.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Any] = {}  # wandb.Run, by the trial's id.

    def log(self, trial: TrackedTrial, values: Mapping[str, float], round_: int) -> None:
        """Sends the metrics of a round."""
        if trial.id not in self._runs:
            self._runs[trial.id] = self._begun(trial)
        self._runs[trial.id].log(dict(values), step=round_)

    def end(self, trial_id: str, *, failed: bool) -> None:
        """Ends a trial's run, and waits for what is still to be sent."""
        if run := self._runs.pop(trial_id, None):
            run.finish(exit_code=int(failed))

    def close(self) -> None:
        """Ends the runs of trials that were interrupted; a resumed training goes on with them."""
        for trial_id in list(self._runs):
            self.end(trial_id, failed=True)

    @staticmethod
    def _begun(trial: TrackedTrial) -> Any:
        import wandb

        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=os.environ.get("WANDB_RUN_GROUP", trial.experiment),
            id=trial.id,
            name=trial.name,
            config=dict(trial.settings),
            resume="allow",
            reinit="create_new",  # Trials run side by side, all of them in this process.
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=LAST_WAIT_S, finish_timeout=LAST_WAIT_S
            ),
        )


class MlflowTracker:
    """Sends to MLflow: a run per trial, found again by a tag when the training is resumed.

    `MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_TOKEN` and the others are read by its own client;
    `MLFLOW_EXPERIMENT_ID` and `MLFLOW_EXPERIMENT_NAME` choose the experiment.
    """

    _MOST_METRICS, _MOST_PARAMS = 1000, 100  # That MLflow takes in one request.
    _TAG = "trial_id"

    def __init__(self) -> None:
        from mlflow import MlflowClient

        # Else a line for every table that it creates in a new database.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = MlflowClient()
        self._runs: dict[str, str] = {}  # The run's id by the trial's.
        self._experiment = ""

    def log(self, trial: TrackedTrial, values: Mapping[str, float], round_: int) -> None:
        """Sends the metrics of a round."""
        from mlflow.entities import Metric

        if trial.id not in self._runs:
            self._runs[trial.id] = self._begun(trial)
        now = int(time.time() * 1000)
        metrics = [Metric(_mlflow_name(key), value, now, round_) for key, value in values.items()]
        for part in _parts(metrics, self._MOST_METRICS):
            self._client.log_batch(self._runs[trial.id], metrics=part)

    def end(self, trial_id: str, *, failed: bool) -> None:
        """Ends a trial's run."""
        if run := self._runs.pop(trial_id, None):
            self._client.set_terminated(run, "FAILED" if failed else "FINISHED")

    def close(self) -> None:
        """Ends the runs of trials that were interrupted; a resumed training goes on with them."""
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")
        self._runs.clear()

    def _begun(self, trial: TrackedTrial) -> str:
        """Returns the run of a trial: the one of an earlier process, or a new one."""
        from mlflow.entities import Param

        self._experiment = self._experiment or self._experiment_id()
        known = self._client.search_runs(
            [self._experiment], filter_string=f"tags.{self._TAG} = '{trial.id}'"
        )
        if known:
            self._client.update_run(known[0].info.run_id, status="RUNNING")
            return str(known[0].info.run_id)
        tags = {self._TAG: trial.id, "experiment": trial.experiment}
        run = self._client.create_run(self._experiment, run_name=trial.name, tags=tags)
        params = [Param(_mlflow_name(key), str(value)) for key, value in trial.settings.items()]
        for part in _parts(params, self._MOST_PARAMS):
            self._client.log_batch(run.info.run_id, params=part)
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _mlflow_name(name: str) -> str:
    """Returns a name with `_` for the characters that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name)


_CLASSES: dict[str, Callable[[], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


class _Delivery:
    """A tracker and the thread in which it is called.

    Args:
        name: The tracker.
        make: Makes it, in that thread.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self.warning = ""  # The first failure.
        self._make = make
        self._tracker: Tracker | None = None
        self._retry_at = 0.0
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name=f"track-{name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Tracker], None]) -> None:
        """Has the tracker called, after all that was put before."""
        self._calls.put(call)

    def close(self) -> None:
        """Lets the thread end once everything is sent and the runs are ended."""
        self._calls.put(lambda tracker: tracker.close())
        self._calls.put(None)

    def join(self, deadline: float) -> bool:
        """Waits for the thread's end, up to a time of the monotonic clock; returns if it came."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _deliver(self) -> None:
        while (call := self._calls.get()) is not None:
            if time.monotonic() < self._retry_at:
                continue
            try:
                self._tracker = self._tracker or self._make()
                call(self._tracker)
            except Exception as error:  # Whatever a client raises: training goes on.
                self._retry_at = time.monotonic() + RETRY_S
                cause = without_secrets(" ".join(str(error).split()))[:_LONGEST_TEXT]
                self.warning = self.warning or (
                    f"{self.name} failed, training goes on without it; it is tried again once a "
                    f"minute. It says: {type(error).__name__}: {cause}"
                )


class Tracking:
    """The trackers of one training.

    Args:
        names: Which; see `check_trackers`. TensorBoard's files are written by Tune's callback.
        experiment: The experiment's name.
    """

    def __init__(self, names: Sequence[str], experiment: str) -> None:
        self._experiment = experiment
        self._trials: dict[str, TrackedTrial] = {}
        self._said: set[str] = set()
        self._deliveries = [_Delivery(name, _CLASSES[name]) for name in names if name in _CLASSES]
        self._closed = False

    def result(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Sends the metrics of a round."""
        if not self._deliveries:
            return
        if trial.trial_id not in self._trials:
            self._trials[trial.trial_id] = TrackedTrial(
                trial.trial_id, str(trial), self._experiment, plain_settings(trial.config)
            )
        tracked, values = self._trials[trial.trial_id], numbers(result)
        round_ = int(result["training_iteration"])
        for delivery in self._deliveries:
            delivery.put(lambda tracker: tracker.log(tracked, values, round_))

    def ended(self, trial: Trial, *, failed: bool) -> None:
        """Ends a trial's runs."""
        trial_id = trial.trial_id
        for delivery in self._deliveries:
            delivery.put(lambda tracker: tracker.end(trial_id, failed=failed))

    def close(self, seconds: float, *, say: Callable[[str], None]) -> None:
        """Ends all runs, once.

        Args:
            seconds: How long it may take to send what is left.
            say: Shows what is waited for.
        """
        if self._closed:
            return
        self._closed = True
        start = time.monotonic()
        for delivery in self._deliveries:
            delivery.close()
        for delivery in self._deliveries:
            if not delivery.join(start + min(seconds, _SILENT_WAIT_S)):
                say(f"Sending the last results to {delivery.name}; Ctrl-C does not wait for it …")
            if not delivery.join(start + seconds):
                delivery.warning = delivery.warning or (
                    f"{delivery.name} has not taken everything within {seconds:g} s: the last "
                    "rounds may be missing there"
                )

    def new_warnings(self) -> list[str]:
        """Returns what went wrong, once per tracker."""
        new = [d for d in self._deliveries if d.warning and d.name not in self._said]
        self._said |= {delivery.name for delivery in new}
        return [f"Warning: tracking: {delivery.warning}" for delivery in new]


def describe(names: Sequence[str], experiment: str) -> list[str]:
    """Returns where each tracker keeps what it is sent, a line each.

    Args:
        names: The trackers.
        experiment: The experiment's folder or URI.
    """
    environ = os.environ
    lines = {"tensorboard": f"tensorboard --logdir {experiment}"}
    if "wandb" in names:
        mode = environ.get("WANDB_MODE", "online")
        project = environ.get("WANDB_PROJECT", PROJECT)
        lines["wandb"] = f"wandb: project {project}" + ("" if mode == "online" else f", {mode}")
    if "mlflow" in names:
        import mlflow

        uri = without_secrets(str(mlflow.get_tracking_uri()))
        lines["mlflow"] = f"mlflow: {uri}"
    return [lines[name] for name in names]


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a result, by their paths: `"merge/weight_mean"`."""
    from ray.tune.utils import flatten_dict

    kept = {key: value for key, value in result.items() if key not in _NO_METRICS}
    flat = flatten_dict(kept, delimiter="/")
    values = {key: _number(value) for key, value in flat.items()}
    return {key: value for key, value in values.items() if value is not None}


def _number(value: object) -> float | None:
    if isinstance(value, bool | str | bytes):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # NumPy's scalars too.
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def plain_settings(config: Mapping[str, Any]) -> dict[str, object]:
    """Returns a trial's settings by their paths, as plain values without secrets."""
    from ray.tune.utils import flatten_dict

    flat = flatten_dict(dict(config), delimiter="/")
    return {
        key: value if isinstance(value, bool | int | float | None) else _plain_text(key, value)
        for key, value in flat.items()
        if not key.startswith("_")
    }


def _plain_text(key: str, value: object) -> str:
    if _SECRET_NAME.search(key.rsplit("/", 1)[-1]):
        return "…"
    return without_secrets(value if isinstance(value, str) else shown(value))[:_LONGEST_TEXT]


def without_secrets(text: str) -> str:
    """Returns a text without credentials: those in URIs, and those that the environment holds."""
    secrets = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _FEWEST_SECRET:
            text = text.replace(value, "…")
    return redact(text)
