"""Trains what a training file or a config asks for; the verbs `train` and `train file`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from rllib_weighted.cli.cluster import (
    Aborted,
    InputError,
    TrainingError,
    environment_variable,
    quiet_ray,
    root_cause,
    start_ray,
)
from rllib_weighted.cli.inputs import (
    TrainFile,
    TrainOptions,
    TrainResult,
    algorithm_config,
    apply_settings,
    config_problems,
    load_experiments,
    load_file,
    merge_stop,
    parse_json_object,
    parse_settings,
    use_single_process,
)
from rllib_weighted.cli.progress import ROUND, STEPS, TIME, Display, format_duration, format_number
from rllib_weighted.cli.sizing import ExperimentSize, experiment_size
from rllib_weighted.cli.storage import (
    ExperimentRecord,
    child,
    experiment_to_resume,
    locate,
    make_storage,
    new_name,
    reach_storage,
    read_record,
    refuse_existing,
    storage_root,
    write_record,
)

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import ResultGrid, TuneConfig, Tuner

    from rllib_weighted.cli.session import TrainSession

# Settles what to train: name, settings and search, from the file, the options and the past


def experiment_name(asked: TrainFile, options: TrainOptions, root: str) -> str:
    """Returns the name of the experiment to start, or to resume."""
    if options.resume:
        reach_storage(root)
        return experiment_to_resume(root, asked.name, options.name)
    make_storage(root)
    if options.name:
        refuse_existing(root, options.name)
    return options.name or new_name(asked.name)


def settled_record(asked: TrainFile, options: TrainOptions, experiment: str) -> ExperimentRecord:
    """Returns how this experiment is, or was, started.

    Raises:
        InputError: It is to be resumed with other settings than it was started with.
    """
    given = ExperimentRecord(
        file=str(asked.path) if asked.path else None,
        experiment=asked.name,
        arguments=asked.arguments,
        settings=list(options.settings),
        local_mode=options.local_mode,
    )
    before = read_record(experiment) if options.resume else None
    if before is None:
        return given
    if given.settings and parse_settings(given.settings) != parse_settings(before.settings):
        raise InputError(
            "a resumed experiment keeps its settings: it was started with "
            f"{_as_options(before.settings)}, not with {_as_options(given.settings)}. Leave --set "
            "away, or start a new experiment"
        )
    return dataclasses.replace(given, settings=before.settings, local_mode=before.local_mode)


def _as_options(settings: list[str]) -> str:
    return " ".join(f"--set {shlex.quote(text)}" for text in settings) or "no --set"


def settled_config(asked: TrainFile, record: ExperimentRecord) -> AlgorithmConfig:
    """Returns the checked config to train.

    Raises:
        InputError: Everything that is wrong with it.
    """
    config = asked.config.copy(copy_frozen=False)
    apply_settings(config, parse_settings(record.settings), "--set")
    if record.local_mode:
        use_single_process(config)
    problems = config_problems(config)
    if problems:
        where = asked.path or "the config"
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise InputError(f"{where} cannot be trained:{listed}")
    return config


def tune_config(asked: TrainFile, options: TrainOptions) -> TuneConfig:
    """Returns the scheduler and search of the file, with the number of samples asked for."""
    from ray.tune import TuneConfig

    tune_config = asked.tune_config or TuneConfig()
    num_samples = first(options.num_samples, asked.num_samples, tune_config.num_samples)
    return dataclasses.replace(tune_config, num_samples=num_samples)


def first(*values: Any) -> Any:
    """Returns the first value that is not None."""
    return next(value for value in values if value is not None)


# One experiment: from what is asked, through `ray.tune.Tuner`, to what is said at the end


CHECKPOINT_SECONDS = 60.0  # Between two checkpoints of a trial, where no number of rounds is set.
NUM_TO_KEEP = 3  # Of those; population-based training needs more than two.
_SNAPSHOT_VARIABLE = "TUNE_GLOBAL_CHECKPOINT_S"
_MAX_LISTED = 8  # Trials whose paths are listed one by one.


def run_experiment(
    asked: TrainFile, options: TrainOptions, *, console: Console | None = None
) -> TrainResult:
    """Trains what `asked` and `options` say.

    Raises:
        InputError: Something is wrong with what is asked; nothing was started.
        TrainingError: A trial failed.
        Aborted: A second Ctrl-C.
    """
    console = console or Console(highlight=False)
    root = storage_root(options.storage_path or asked.storage_path)
    with quiet_ray(options.verbose):
        name = experiment_name(asked, options, root)
        record = settled_record(asked, options, child(root, name))
        config = settled_config(asked, record)
        stop = merge_stop(asked.stop, options.stop)
        start_ray(
            address=options.ray_address,
            num_cpus=options.ray_num_cpus,
            verbose=options.verbose or options.local_mode,
            import_folder=asked.path.parent if asked.path else None,
        )
        size = experiment_size(config, tune_config(asked, options))
        run = _Run(asked, options, console, config=config, root=root, name=name)
        return run.fit(stop, record, size)


class _Run:
    """One `Tuner.fit`, and what is said before and after it."""

    def __init__(
        self,
        asked: TrainFile,
        options: TrainOptions,
        console: Console,
        *,
        config: AlgorithmConfig,
        root: str,
        name: str,
    ) -> None:
        self.asked = asked
        self.options = options
        self.console = console
        self.config = config
        self.root = root
        self.name = name
        self.experiment = child(root, name)

    def fit(
        self, stop: dict[str, float], record: ExperimentRecord, size: ExperimentSize
    ) -> TrainResult:
        """Trains until `stop`, a failure or an interrupt."""
        from rllib_weighted.cli.session import TrainSession, session

        options = self.options
        tuner = self._restored_tuner() if options.resume else self._new_tuner(stop)
        if not options.resume:
            write_record(self.experiment, record)
        title = f"{_algo_name(self.config)} on {_env_name(self.config.env)}"
        self._announce(title, stop, size)
        display = Display(self.console, title=title, live=False if options.verbose else None)
        replaces_stop = not options.resume or options.stop is not None
        active = TrainSession(
            display,
            stop if replaces_stop else None,
            checkpoint_seconds=CHECKPOINT_SECONDS if self._checkpoints_by_time() else None,
            resumed=options.resume,
        )
        try:
            with session(active), _frequent_snapshots(size.num_trials):
                results = tuner.fit()
        except KeyboardInterrupt:
            raise Aborted(self._aborted(), active.interrupt.exit_code) from None
        except Exception as error:
            raise TrainingError(
                f"training failed: {root_cause(str(error), 12)}\n\n"
                f"  results     {self.experiment}\n"
                "  more        the same command with -v shows Ray's logs"
            ) from error
        return self._finish(results, active)

    def resume_command(self) -> str:
        """Returns the command line that continues this experiment."""
        options = self.options
        command = ["rllib", "train"]
        if self.asked.path is not None and self.asked.path.suffix == ".py":
            command += ["file", _short_path(self.asked.path)]
        command += ["--resume", "--name", self.name]
        given = {
            "--storage-path": options.storage_path or self.asked.storage_path,
            "--ray-address": options.ray_address,
            "--ray-num-cpus": options.ray_num_cpus,
        }
        for option, value in given.items():
            command += [option, str(value)] if value else []
        return shlex.join(command)

    def _new_tuner(self, stop: dict[str, float]) -> Tuner:
        from ray.tune import CheckpointConfig, RunConfig, Tuner

        from rllib_weighted.cli.session import ProgressTable, SessionCallback

        frequency = first(self.options.checkpoint_freq, self.asked.checkpoint_freq, 0)
        at_end = first(self.options.checkpoint_at_end, self.asked.checkpoint_at_end, True)
        return Tuner(
            self.config.algo_class,
            param_space=self.config,
            tune_config=tune_config(self.asked, self.options),
            run_config=RunConfig(
                name=self.name,
                storage_path=self.root,
                stop=stop,
                checkpoint_config=CheckpointConfig(
                    num_to_keep=NUM_TO_KEEP if self._checkpoints_by_time() else None,
                    checkpoint_frequency=frequency,
                    checkpoint_at_end=at_end,
                ),
                callbacks=[SessionCallback(), ProgressTable()],
                verbose=0,
            ),
        )

    def _checkpoints_by_time(self) -> bool:
        return self.options.checkpoint_freq is None and self.asked.checkpoint_freq is None

    def _restored_tuner(self) -> Tuner:
        from ray.tune import Tuner

        try:
            return Tuner.restore(
                self.experiment,
                trainable=self.config.algo_class,
                param_space=self.config,
                resume_errored=True,
            )
        except ValueError as error:
            where = self.asked.path or "the settings"
            raise InputError(
                f"cannot resume {self.experiment}: {where} asks for another algorithm or other "
                f"settings than the experiment was started with. Ray says: {error}"
            ) from None

    def _announce(self, title: str, stop: dict[str, float], size: ExperimentSize) -> None:
        self._say(f"{'Resuming' if self.options.resume else 'Training'} {title}")
        self._say(f"  trials      {size}")
        self._say(f"  results     {self.experiment}")
        if self.options.resume and self.options.fixed_at_start():
            names = ", ".join(self.options.fixed_at_start())
            self._say(f"  note        {names}: a resumed experiment keeps those of its start")
        if not self.options.resume or self.options.stop is not None:
            goal = " or ".join(f"{key} >= {format_number(value)}" for key, value in stop.items())
            self._say(f"  until       {goal or 'Ctrl-C (no stop criterion is set)'}")

    def _finish(self, results: ResultGrid, active: TrainSession) -> TrainResult:
        trials = [results[index] for index in range(len(results))]
        saved = [result.checkpoint.path for result in trials if result.checkpoint]
        checkpoints = [locate(self.root, path) for path in saved]
        code = active.interrupt.exit_code if active.interrupt.requested else 0
        if results.errors and not code:
            raise TrainingError(failure_message(results, self.resume_command(), self.root))
        if code:
            self._say("Interrupted" + (":" if checkpoints else "; nothing was trained yet:"))
        elif not active.num_started:
            self._say("Already finished, there was nothing left to train:")
        else:
            self._say(f"Done{_outcome(active)}:")
        self._say(f"  results     {self.experiment}")
        if len(trials) == 1:
            for checkpoint in checkpoints:
                self._say(f"  checkpoint  {checkpoint}")
        elif checkpoints:
            self._say(f"  checkpoints in the folders of {len(checkpoints)} trials")
        if code:
            self._say(f"  resume      {self.resume_command()}")
        elif len(trials) > 1:
            self._say(f"  report      rllib report {shlex.quote(self.experiment)}")
        elif checkpoints:
            self._say(f"  evaluate    rllib evaluate {shlex.quote(checkpoints[0])}")
        return TrainResult(results, self.experiment, code, checkpoints)

    def _aborted(self) -> str:
        return (
            "stopped at once: what came after the last checkpoint is lost\n"
            f"  results     {self.experiment}\n  resume      {self.resume_command()}"
        )

    def _say(self, message: str) -> None:
        self.console.print(Text(message), soft_wrap=True)


def _frequent_snapshots(num_trials: int | None) -> contextlib.AbstractContextManager[None]:
    """Lets Tune record more often than every ten seconds which trial is where.

    What it has not recorded is lost in a kill: a checkpoint, or that a trial has finished. A
    record takes some 0.7 ms of CPU time per trial, so this is every two seconds up to 100 trials,
    and then as seldom as keeps it below 4 percent of a core, up to Tune's ten.
    """
    if _SNAPSHOT_VARIABLE in os.environ:
        return contextlib.nullcontext()
    seconds = min(10.0, max(2.0, (num_trials or 0) / 50))
    return environment_variable(_SNAPSHOT_VARIABLE, f"{seconds:g}")


def failure_message(results: ResultGrid, resume_command: str, root: str) -> str:
    """Returns which trials failed, the end of the first error, and where it lies in full."""
    trials = [results[index] for index in range(len(results))]
    failed = [result for result in trials if result.error is not None]
    places = [locate(root, result.path) for result in failed[:_MAX_LISTED]]
    lines = [
        f"training failed ({len(failed)} of {len(results)} trials); the first error:",
        "",
        root_cause(str(failed[0].error), 12),
        "",
        *(f"  in full     {child(place, 'error.txt')}" for place in places),
        "  logs        the same command with -v shows those of all of Ray's processes",
        f"  try again   {resume_command}",
    ]
    return "\n".join(lines)


def _outcome(active: TrainSession) -> str:
    """Returns what a finished training reached, in brackets."""
    trials = list(active.trials.values())
    if len(trials) != 1 or not trials[0].last:
        return f" ({len(trials)} trials)"
    trial = trials[0]
    reached = "; ".join(trial.reached())
    spent = (
        f"round {format_number(trial.value(ROUND))}, {format_number(trial.value(STEPS))} steps, "
        f"{format_duration(trial.value(TIME))}"
    )
    return f" ({reached}; {spent})" if reached else f" ({spent})"


def _algo_name(config: AlgorithmConfig) -> str:
    return str(config.algo_class.__name__) if config.algo_class else type(config).__name__


def _env_name(env: Any) -> str:
    return str(getattr(env, "__name__", env))


def _short_path(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


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
    return run_experiment(load_file(path), options or TrainOptions(), console=console)


def run_experiments(
    path: str | Path, options: TrainOptions, *, console: Console | None = None
) -> list[TrainResult]:
    """Trains the experiments of a file one after the other; see `run_file`."""
    experiments = load_experiments(path)
    results: list[TrainResult] = []
    for experiment in experiments:
        named = options
        if options.name and len(experiments) > 1:
            named = dataclasses.replace(options, name=f"{options.name}_{experiment.name}")
        results.append(run_experiment(experiment, named, console=console))
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
        config: Settings by name, as a dict or as JSON text.
        options: What the command's options say.
        console: Where progress is shown; None takes the standard output.

    Raises:
        InputError: Something is wrong with what is asked; nothing was started.
        TrainingError: A trial failed.
    """
    settings = parse_json_object(config, "--config") if isinstance(config, str) else config
    built = algorithm_config(algo)
    apply_settings(built, {**({"env": env} if env else {}), **settings}, "--config")
    asked = TrainFile(
        config=built,
        name=f"{algo}_{built.env}".replace("/", "-").replace(":", "-"),
        arguments={"algo": algo, "env": env, "config": settings},
    )
    return run_experiment(asked, options or TrainOptions(), console=console)


def resume_by_name(options: TrainOptions, *, console: Console | None = None) -> TrainResult:
    """Continues an experiment by its name alone: `rllib train --resume --name N`.

    Raises:
        InputError: There is no such experiment, or its folder does not say how it was started.
    """
    if not options.name:
        raise InputError("--resume needs --name, or the training file: rllib train file FILE")
    root = storage_root(options.storage_path)
    reach_storage(root)
    record = read_record(child(root, options.name))
    if record is None:
        raise InputError(
            f"nothing to resume: {root} holds no experiment "
            f"{options.name!r} that the `rllib` command started"
        )
    if record.arguments:
        return run_algorithm(**record.arguments, options=options, console=console)
    for experiment in load_experiments(record.file or ""):
        if experiment.name == record.experiment:
            return run_experiment(experiment, options, console=console)
    raise InputError(f"{record.file} no longer holds the experiment {record.experiment!r}")
