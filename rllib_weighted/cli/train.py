"""Trains what a training file or a config asks for; the verbs `train` and `train file`.

From top to bottom: the functions behind the verbs, how they determine what to train, the run
through `ray.tune.Tuner`, and the messages before and after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pickle
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rllib_weighted._private import without_saved_decisions
from rllib_weighted.cli import Aborted, InputError, RayEnded, TrainingError, inputs, storage
from rllib_weighted.cli.cluster import (
    ended_ray,
    environment_variable,
    leave,
    quiet_ray,
    start_ray,
    watching_ray,
)
from rllib_weighted.cli.display import Display, ranking, show
from rllib_weighted.cli.failures import no_space, root_cause
from rllib_weighted.cli.inputs import TrainFile
from rllib_weighted.cli.locks import locked_experiment, refuse_existing, stop_at_once
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.parsing import parse_json_object
from rllib_weighted.cli.progress import (
    ROUND,
    STEPS,
    TIME,
    format_drops,
    format_duration,
    format_number,
)
from rllib_weighted.cli.results import TrainResult, best_checkpoint, rescue
from rllib_weighted.cli.settings import algorithm_config, apply_settings
from rllib_weighted.cli.settled import settled, tune_config_of
from rllib_weighted.cli.storage import ExperimentRecord, child, locate
from rllib_weighted.cli.sweep import Sweep
from rllib_weighted.cli.tracking import (
    ABORTED_WAIT_S,
    LAST_WAIT_S,
    Tracking,
    check_trackers,
    describe,
    with_tensorboard,
)
from rllib_weighted.core.durable import DEFAULT_TIMEOUT_S, DurableFileSystem
from rllib_weighted.core.redaction import redact
from rllib_weighted.suggest import shown

if TYPE_CHECKING:
    from ray.tune import Result, ResultGrid, Tuner

    from rllib_weighted.cli.session import TrainSession
    from rllib_weighted.cli.sizing import ExperimentSize

CHECKPOINT_SECONDS = 60.0  # Between two checkpoints of a trial, where no number of rounds is set.
NUM_TO_KEEP = 3  # Of those; population-based training needs more than two.
_SNAPSHOT_VARIABLE = "TUNE_GLOBAL_CHECKPOINT_S"
_MAX_LISTED = 8  # Trials whose paths are listed one by one.
_MAX_ARMS = 30


def run_file(
    path: str | Path, options: TrainOptions | None = None, *, console: Console | None = None
) -> TrainResult:
    """Trains what a training file with a single experiment asks for.

    Args:
        path: The file; see `load_experiments`.
        options: What the command's options say.
        console: Where progress is shown; None takes the standard output.

    Raises:
        InputError: Something is wrong with the file or the options; nothing was started.
        TrainingError: A trial failed.
    """
    options = options or TrainOptions()
    with quiet_ray(options.verbose):
        return run_experiment(inputs.load_file(path), options, console=console)


def run_experiments(path: str | Path, options: TrainOptions) -> list[TrainResult]:
    """Checks all experiments of a file and trains one after the other; see `run_file`."""
    with quiet_ray(options.verbose):
        return _run_all(inputs.load_experiments(path), options)


def _run_all(experiments: Sequence[TrainFile], options: TrainOptions) -> list[TrainResult]:
    named = [options] * len(experiments)
    if options.name and len(experiments) > 1:
        names = [f"{options.name}_{experiment.name}" for experiment in experiments]
        named = [dataclasses.replace(options, name=name) for name in names]
    if not options.resume:
        for experiment, its_options in zip(experiments[1:], named[1:], strict=True):
            settled(experiment.with_options(its_options), its_options, "")
    results: list[TrainResult] = []
    for experiment, its_options in zip(experiments, named, strict=True):
        results.append(run_experiment(experiment, its_options))
        if results[-1].exit_code:
            break
    return results


def run_algorithm(
    algo: str,
    env: str | None = None,
    config: str | dict[str, Any] = "{}",
    options: TrainOptions | None = None,
    *,
    console: Console | None = None,
) -> TrainResult:
    """Trains an algorithm by name: `rllib train --algo ... --env ... --config JSON`.

    Args:
        algo: Its name, e.g. `"WeightedPPO"`.
        env: The environment's name; None takes that of `config`.
        config: Settings by name (their values are of any type), as a dict or as JSON text.
        options: What the command's options say.
        console: Where progress is shown; None takes the standard output.

    Raises:
        InputError: Something is wrong with what is asked; nothing was started.
        TrainingError: A trial failed.
    """
    options = options or TrainOptions()
    with quiet_ray(options.verbose):
        return run_experiment(algorithm_file(algo, env, config), options, console=console)


def algorithm_file(algo: str, env: str | None, config: str | dict[str, Any]) -> TrainFile:
    """Returns what `rllib train --algo` asks for; see `run_algorithm`.

    Raises:
        InputError: Something is wrong with it.
    """
    settings = parse_json_object(config, "--config") if isinstance(config, str) else config
    if not isinstance(settings, Mapping):
        raise InputError(f"--config must be a dict of settings; found {shown(settings)}")
    built = algorithm_config(algo)
    apply_settings(built, {**({"env": env} if env else {}), **settings}, "--config")
    return TrainFile(
        config=built,
        name=f"{algo}_{built.env}".replace("/", "-").replace(":", "-"),
        arguments={"algo": algo, "env": env, "config": settings},
    )


def resume_by_name(options: TrainOptions) -> TrainResult:
    """Continues an experiment by its name alone: `rllib train --resume --name N`.

    Raises:
        InputError: There is no such experiment, or its folder does not say how it was started.
    """
    if not options.name:
        raise InputError("--resume needs --name, or the training file: rllib train file FILE")
    root = storage.storage_root(options.storage_path)
    storage.check_store(root)
    record = storage.read_record(child(root, options.name))
    if record is None or not (record.arguments or record.file):
        raise InputError(
            f"nothing to resume: {root} holds no experiment {shown(options.name)} that the `rllib` "
            "command started; resume one that was started in Python there"
        )
    if record.arguments:
        return run_algorithm(**record.arguments, options=options)
    with quiet_ray(options.verbose):
        for experiment in inputs.load_experiments(str(record.file)):
            if experiment.name == record.experiment:
                return run_experiment(experiment, options)
    raise InputError(f"{record.file} no longer holds the experiment {record.experiment!r}")


def run_experiment(
    asked: TrainFile, options: TrainOptions, *, console: Console | None = None
) -> TrainResult:
    """Trains what `asked` and `options` say.

    Raises:
        InputError: Something is wrong with what is asked; nothing was started.
        TrainingError: A trial failed.
        Aborted: A second Ctrl-C.
    """
    options = dataclasses.replace(options, name=options.name or asked.run.name)
    asked = asked.with_options(options)
    root = storage.storage_root(asked.storage_path)
    console = console or Console(highlight=False)
    for warning in asked.warnings:
        show(console, f"Warning: {warning}")
    lost: list[str] = []
    say = functools.partial(show, console)
    lock = locked_experiment(asked.name, options, root, say=say, lost=lost)
    with quiet_ray(options.verbose), contextlib.ExitStack() as stack:
        name = stack.enter_context(lock) if options.resume else ""
        if not name:
            storage.check_store(root, writes=True)
            refuse_existing(root, options.name or "", say=say)
        record, config = settled(asked, options, child(root, name))
        record = dataclasses.replace(record, trackers=check_trackers(record.trackers))
        start_ray(options, asked.path.parent if asked.path else None)
        from rllib_weighted.cli.sizing import experiment_size

        tune_config = tune_config_of(asked)
        size = experiment_size(config, tune_config)
        name = name or stack.enter_context(lock)  # The first thing that is written.
        algorithm = config.algo_class or type(config)
        display = Display(
            console,
            title=f"{algorithm.__name__} on {getattr(config.env, '__name__', config.env)}",
            live=False if options.verbose else None,
            sweep=Sweep(size.num_trials, size.points, max(1, size.num_samples)),
        )
        asked = dataclasses.replace(asked, config=config, tune_config=tune_config)
        return _Run(asked, options, display, root, name, lost).fit(record, size)


@dataclass(frozen=True)
class _Run:
    """One `Tuner.fit`, with the messages before and after it.

    Args:
        asked: What to train, with a checked config and the options' values.
        options: What the command's options say.
        display: Where messages and progress are shown.
        root: The storage.
        name: The experiment's name.
        lost: Why the lock of the experiment is lost, if it is.
    """

    asked: TrainFile
    options: TrainOptions
    display: Display
    root: str
    name: str
    lost: Sequence[str] = ()

    @property
    def experiment(self) -> str:
        return child(self.root, self.name)

    @functools.cached_property
    def filesystem(self) -> DurableFileSystem:
        """What results are written through."""
        return self._durable_storage[0]

    @functools.cached_property
    def _durable_storage(self) -> tuple[DurableFileSystem, str]:
        timeout_s = self.options.storage_timeout
        if timeout_s is None:
            setting = getattr(self.asked.config, "storage_timeout_s", None)
            timeout_s = setting if isinstance(setting, (int, float)) else DEFAULT_TIMEOUT_S
        return storage.durable_storage(self.root, timeout_s)

    @property
    def keeps_stop(self) -> bool:
        """Whether a resumed experiment keeps the stop criteria of its start."""
        return self.options.resume and self.options.stop is None

    def fit(self, record: ExperimentRecord, size: ExperimentSize) -> TrainResult:
        """Trains until `stop`, a failure or an interrupt."""
        from rllib_weighted.cli.session import TrainSession, session

        if not self.options.resume:  # Tune's own file, by which it counts, comes after it.
            storage.write_record(self.experiment, record)
        tuner = self._restored_tuner() if self.options.resume else self._new_tuner(record)
        self._announce(size, record.trackers)
        by_time = self.asked.checkpoint_freq is None and not self.asked.run.checkpoint_frequency
        active = TrainSession(
            self.display,
            None if self.keeps_stop else self.asked.stop,
            checkpoint_seconds=CHECKPOINT_SECONDS if by_time else math.inf,
            resumed=self.options.resume,
            tracking=Tracking(record.trackers, self.name),
        )
        try:
            with (
                session(active),
                _frequent_snapshots(size.num_trials),
                without_saved_decisions(),
                self._watching_ray(),
            ):
                results = tuner.fit()
            active.stop_tracking(LAST_WAIT_S)
        except KeyboardInterrupt:
            self._require_ray()
            if self.lost:
                raise TrainingError(f"stopped at once: {self.lost[0]}") from None
            raise Aborted(
                "stopped at once: what came after the last checkpoint is lost\n"
                f"  results     {self.experiment}\n  resume      {self._resume_command()}",
                active.interrupt.exit_code,
            ) from None
        except Exception as error:
            self._require_ray()
            cause = next(iter(active.errors.values()), str(error))
            raise TrainingError(self._failure("training failed", cause)) from error
        finally:
            active.stop_tracking(ABORTED_WAIT_S)
        self._require_ray()
        return self._finish(results, active)

    def _watching_ray(self) -> AbstractContextManager[None]:
        """Ends the training if Ray ends: by an exception, or from here where none gets through."""
        return watching_ray(stop_at_once, lambda: leave(self._ray_ended(ended_ray())))

    def _require_ray(self) -> None:
        """Raises `RayEnded` if Ray has ended: what Tune says of it then explains nothing."""
        if ended := ended_ray():
            raise self._ray_ended(ended) from None

    def _ray_ended(self, ended: str) -> RayEnded:
        return RayEnded(
            f"Ray has ended: its process {ended} is gone, and what came after the last "
            "checkpoints is lost\n"
            f"  results     {self.experiment}\n  resume      {self._resume_command()}"
        )

    def _new_tuner(self, record: ExperimentRecord) -> Tuner:
        from ray.tune import RunConfig, Tuner

        from rllib_weighted.cli.session import ProgressTable, SessionCallback

        asked = self.asked
        checkpoints = asked.run.checkpoint_config(
            frequency=asked.checkpoint_freq,
            at_end=asked.checkpoint_at_end,
            num_to_keep=NUM_TO_KEEP,
        )
        callbacks = with_tensorboard(asked.run.callbacks, record.trackers)
        return Tuner(
            asked.config.algo_class,
            param_space=asked.config,
            tune_config=asked.tune_config,
            run_config=RunConfig(
                **{
                    **asked.run.others,
                    "name": self.name,
                    "storage_path": self._durable_storage[1],
                    "storage_filesystem": self.filesystem,
                    "stop": asked.run.stopper or asked.stop,
                    "checkpoint_config": checkpoints,
                    "callbacks": [SessionCallback(), ProgressTable(), *callbacks],
                    "verbose": 0,
                }
            ),
        )

    def _restored_tuner(self) -> Tuner:
        from ray.tune import Tuner

        config = self.asked.config
        storage.check_snapshot(self.experiment)
        storage.remove_temporary_files(self.experiment)
        try:
            return Tuner.restore(
                f"{self._durable_storage[1]}/{self.name}",
                config.algo_class,
                param_space=config,
                resume_errored=True,
                storage_filesystem=self.filesystem,
            )
        except (EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"cannot resume {self.experiment}: its file {storage.STATE_FILE} is torn "
                f"({error}). Start a new experiment; checkpoints of this one can still be evaluated"
            ) from None
        except ValueError as error:
            raise InputError(
                f"cannot resume {self.experiment}: {self.asked.path or 'the settings'} asks for "
                "another algorithm or other settings than the experiment was started with. "
                f"Ray says: {error}"
            ) from None

    def _say(self, text: str) -> None:
        self.display.note(redact(text))

    def _announce(self, size: ExperimentSize, trackers: Sequence[str]) -> None:
        say = self._say
        say(f"{'Resuming' if self.options.resume else 'Training'} {self.display.title}")
        say(f"  trials      {size}")
        say(f"  results     {self.experiment}")
        fixed = ", ".join(self.options.fixed_at_start())
        if self.options.resume and fixed:
            say(f"  note        {fixed}: a resumed experiment keeps those of its start")
        if not self.keeps_stop:
            say(f"  until       {self._goal()}")
        for line in describe(trackers, self.experiment):
            say(f"  tracking    {line}")

    def _goal(self) -> str:
        if stopper := self.asked.run.stopper:
            return f"{getattr(stopper, '__name__', type(stopper).__name__)} of the training file"
        goal = " or ".join(f"{key} >= {format_number(v)}" for key, v in self.asked.stop.items())
        return goal or "Ctrl-C (no stop criterion is set)"

    def _finish(self, results: ResultGrid, active: TrainSession) -> TrainResult:
        """Reports how the training ended and what to do next; raises if a trial failed."""
        code = active.interrupt.exit_code if active.interrupt.requested else 0
        trials = [results[index] for index in range(len(results))]
        self._raise_failures(trials, active, code)
        if code:
            active.forget_unreported_rounds()
        say = self._say
        checkpoints = [
            locate(self.root, trial.checkpoint.path) for trial in trials if trial.checkpoint
        ]
        if code:
            say("Interrupted" + (":" if checkpoints else "; nothing was trained yet:"))
        elif not active.num_started:
            say("Already finished, there was nothing left to train:")
        else:
            say(f"Done ({_outcome(active)}):")
        for trial in active.trials.values():
            if trial.num_dropping:
                name = f"trial {trial.name}: " if len(trials) > 1 else ""
                say(f"  dropped     {name}{format_drops(trial)}")
        say(f"  results     {self.experiment}")
        if len(trials) > 1:
            self._rank_arms(trials)
        elif checkpoints:
            say(f"  checkpoint  {checkpoints[0]}")
        if code:
            say(f"  resume      {self._resume_command()}")
        elif len(trials) > 1:
            say(f"  next        rllib report {shlex.quote(self.experiment)}")
        elif checkpoints:
            say(f"  evaluate    rllib evaluate {shlex.quote(checkpoints[0])}")
        return TrainResult(results, self.experiment, code, checkpoints)

    def _rank_arms(self, trials: Sequence[Result]) -> None:
        """Shows a sweep's arms, the best one first, and its best checkpoint."""
        console = self.display.console
        width = console.width - len("  ") if console.is_terminal else None
        head, *rows = ranking(self.display.arms(), width)
        self._say(f"  {head}")
        for row in rows[:_MAX_ARMS]:
            self._say(f"  {row}")
        if len(rows) > _MAX_ARMS:
            self._say(f"  … and {len(rows) - _MAX_ARMS} more arms")
        tune_config = self.asked.tune_config
        metric, mode = (tune_config.metric, tune_config.mode) if tune_config else (None, None)
        if best := best_checkpoint(trials, metric, mode):
            path, name, value = best
            self._say(f"  best        {locate(self.root, path)} ({name} {format_number(value)})")
        elif any(trial.checkpoint for trial in trials):
            self._say("  checkpoints in the folders of the trials")

    def _raise_failures(self, trials: list[Result], active: TrainSession, code: int) -> None:
        """Raises if results are not in the storage, or if a trial failed.

        Which trials have failed of what, the storage may not know: it may be full.
        """
        causes = [*active.errors.values(), *(str(trial.error) for trial in trials if trial.error)]
        if unwritten := self.filesystem.unwritten:
            path, problem = next(iter(unwritten.items()))
            more = f" and {len(unwritten) - 1} more" if len(unwritten) > 1 else ""
            lines = [f"  not written {path}{more}; what is there is whole, as it was before"]
            causes.append(str(problem))
            what = "the last results could not be written"
            raise TrainingError(self._failure(what, causes[0], lines))
        if causes and not code:
            failed = [trial for trial in trials if trial.error]
            places = [locate(self.root, trial.path) for trial in failed[:_MAX_LISTED]]
            count = max(len(failed), len(active.errors))
            what = f"training failed ({count} of {len(trials)} trials); the first error"
            lines = [f"  in full     {child(place, 'error.txt')}" for place in places]
            rescues = filter(None, map(rescue, places))
            lines += [f"  rescued     {path}: it goes on there" for path in rescues]
            raise TrainingError(self._failure(what, causes[0], lines))

    def _failure(self, what: str, cause: str, lines: Sequence[str] = ()) -> str:
        """Returns what has failed, the end of the first error, and what to do."""
        folders = [self._durable_storage[1], tempfile.gettempdir()]
        return "\n".join(
            [
                f"{what}:",
                "",
                root_cause(cause),
                "",
                f"  results     {self.experiment}",
                *no_space(cause, folders),
                *lines,
                "  logs        the same command with -v shows those of all of Ray's processes",
                f"  try again   {self._resume_command()}",
            ]
        )

    def _resume_command(self) -> str:
        """Returns the command line that continues this experiment."""
        command = ["rllib", "train"]
        path = self.asked.path
        if path is not None and path.suffix == ".py":
            relative = os.path.relpath(path)
            command += ["file", str(path) if relative.startswith("..") else relative]
        command += ["--resume", "--name", self.name]
        given = {
            "--storage-path": redact(self.asked.storage_path or ""),
            "--storage-timeout": self.options.storage_timeout,
            "--ray-address": self.options.ray_address,
            "--ray-num-cpus": self.options.ray_num_cpus,
        }
        for option, value in given.items():
            command += [option, f"{value}"] if value not in (None, "") else []
        return shlex.join(command)


def _frequent_snapshots(num_trials: int | None) -> AbstractContextManager[None]:
    """Lets Tune save the experiment's state more often than every ten seconds.

    What it has not saved is lost in a kill: a checkpoint, or that a trial has finished. Saving
    takes some 0.7 ms of CPU time per trial, so this is every two seconds up to 100 trials,
    and less often for more, which keeps it below 4 percent of a core, up to Tune's ten.
    """
    seconds = min(10.0, max(2.0, (num_trials or 0) / 50))
    value = os.environ.get(_SNAPSHOT_VARIABLE, f"{seconds:g}")  # The user's own value counts.
    return environment_variable(_SNAPSHOT_VARIABLE, value)


def _outcome(active: TrainSession) -> str:
    """Returns what a finished training reached: the only trial's criteria, or how many trials."""
    trials = list(active.trials.values())
    if len(trials) != 1 or not trials[0].last:
        return f"{len(trials)} trials"
    trial = trials[0]
    spent = (
        f"round {format_number(trial.value(ROUND))}, {format_number(trial.value(STEPS))} steps, "
        f"{format_duration(trial.value(TIME))}"
    )
    return "; ".join([*trial.reached(), spent])
