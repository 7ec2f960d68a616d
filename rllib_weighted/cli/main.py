"""The entry point of the `rllib` command: options in, functions called, errors shown."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from rllib_weighted.cli.cluster import Aborted, InputError, TrainingError
from rllib_weighted.cli.inputs import (
    TrainOptions,
)

# Versions of what matters for a result; the verb `version`


_PACKAGES = {
    "rllib_weighted": "rllib-weighted",
    "ray": "ray",
    "torch": "torch",
    "gymnasium": "gymnasium",
}


def versions() -> dict[str, str]:
    """Returns the versions of this package, Ray, PyTorch, Gymnasium and Python.

    They are read from the installation's metadata: nothing is imported.
    """
    found = {}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version()}


_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="rllib",
    help="Train and evaluate RLlib algorithms, and WeightedPPO: gradients merged by weight.",
    context_settings=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(context_settings=_HELP)
example_app = typer.Typer(no_args_is_help=True, context_settings=_HELP)
app.add_typer(train_app, name="train")
app.add_typer(example_app, name="example", help="Tuned examples: list, show or run them.")

Stop = Annotated[
    str | None,
    typer.Option(
        "--stop",
        "-s",
        metavar="JSON",
        help="Stop criteria over those of the file, e.g. "
        "'{\"training_iteration\": 10}'; null removes one.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the config; may be repeated. A dot reaches into a dict.",
    ),
]
NumSamples = Annotated[int | None, typer.Option(min=1, help="Trials per point of the search.")]
StoragePath = Annotated[
    str | None, typer.Option(help="Folder or URI of the results. [default: ~/ray_results]")
]
Name = Annotated[
    str | None,
    typer.Option("--name", "--experiment-name", "-n", help="Name of the experiment's folder."),
]
CheckpointFreq = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Rounds between checkpoints, of which all are kept; 0 writes none on the way. "
        "[default: one a minute, the last three are kept]",
    ),
]
CheckpointAtEnd = Annotated[
    bool | None,
    typer.Option(
        "--checkpoint-at-end/--no-checkpoint-at-end", help="Save when a trial ends. [default: on]"
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the experiment --name (or the newest of this file) from its last "
        "checkpoints, with the settings and samples of its start.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join. [default: RAY_ADDRESS, else a local Ray of its own]"),
]
RayNumCpus = Annotated[int | None, typer.Option(min=1, help="CPUs that a local Ray counts with.")]
LocalMode = Annotated[
    bool,
    typer.Option("--local-mode", help="Sample and learn in one process per trial, to debug."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", "--log-info", help="Show Ray's logs.")]


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the package's errors into one message on the standard error and an exit status."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (InputError, TrainingError, Aborted) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted before training had started.", err=True)
            raise typer.Exit(130) from None

    return wrapper


@train_app.callback(invoke_without_command=True)
@reported
def train(
    ctx: typer.Context,
    algo: Annotated[str | None, typer.Option("--algo", "--run", "-a", "-r")] = None,
    env: Annotated[str | None, typer.Option("--env", "-e")] = None,
    config: Annotated[str, typer.Option("--config", "-c", metavar="JSON")] = "{}",
    stop: Stop = None,
    settings: Settings = None,
    num_samples: NumSamples = None,
    storage_path: StoragePath = None,
    name: Name = None,
    checkpoint_freq: CheckpointFreq = None,
    checkpoint_at_end: CheckpointAtEnd = None,
    resume: Resume = False,
    ray_address: RayAddress = None,
    ray_num_cpus: RayNumCpus = None,
    local_mode: LocalMode = False,
    verbose: Verbose = False,
) -> None:
    """Train an algorithm by name, or a training file: `rllib train file FILE`."""
    options = _options(ctx.params)
    if ctx.invoked_subcommand is not None:
        _refuse_misplaced(ctx)
        return
    from rllib_weighted.cli.train import resume_by_name, run_algorithm

    if algo is None and resume:
        raise typer.Exit(resume_by_name(options).exit_code)
    if algo is None:
        raise InputError(
            "give an algorithm, e.g. rllib train --algo WeightedPPO --env CartPole-v1, or a "
            "training file: rllib train file FILE"
        )
    raise typer.Exit(run_algorithm(algo, env, config, options).exit_code)


@train_app.command("file")
@reported
def train_file(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .py, .yaml or .json file.")],
    stop: Stop = None,
    settings: Settings = None,
    num_samples: NumSamples = None,
    storage_path: StoragePath = None,
    name: Name = None,
    checkpoint_freq: CheckpointFreq = None,
    checkpoint_at_end: CheckpointAtEnd = None,
    resume: Resume = False,
    ray_address: RayAddress = None,
    ray_num_cpus: RayNumCpus = None,
    local_mode: LocalMode = False,
    verbose: Verbose = False,
) -> None:
    """Train what FILE asks for: Python that defines `config` and `stop`, or YAML or JSON."""
    from rllib_weighted.cli.train import run_experiments

    results = run_experiments(file, _options(ctx.params))
    raise typer.Exit(results[-1].exit_code)


@app.command()
@reported
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a trial's folder.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Seeds environments and actions.")] = None,
    video: Annotated[str | None, typer.Option(metavar="DIR", help="Write MP4s there.")] = None,
    file: Annotated[
        str | None, typer.Option(help="Training file that registers the environment.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Play whole episodes with a checkpoint's policy and print their returns."""
    from rllib_weighted.cli.evaluate import evaluate_checkpoint

    result = evaluate_checkpoint(
        checkpoint, episodes=episodes, seed=seed, video=video, file=file, verbose=verbose
    )
    typer.echo(f"checkpoint   {result.checkpoint}")
    typer.echo(f"episodes     {len(result.returns)} (actions {_drawn(result.explore)})")
    typer.echo(f"return mean  {result.return_mean:.2f}")
    typer.echo(f"return std   {result.return_std:.2f}")
    typer.echo(f"return min   {min(result.returns):.2f}")
    typer.echo(f"return max   {max(result.returns):.2f}")
    typer.echo(f"length mean  {result.length_mean:.1f}")
    for path in result.videos:
        typer.echo(f"video        {path}")


@app.command()
@reported
def report(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS...", help="Folders of experiments or trials.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option(help="Strategy (or arm) to compare with.", show_default="average"),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X",
            help="What counts as learned; ENV=X for one environment, may be repeated.",
            show_default="90 % of the baseline's improvement",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric to compare.", show_default="the mean return")
    ] = None,
    hold: Annotated[
        int | None, typer.Option(min=1, help="Rounds that X has to be held.", show_default="5")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where to write.", show_default="./report")
    ] = None,
) -> None:
    """Compare strategies: a page with curves, convergence, final returns and weights."""
    from rllib_weighted.cli.report import report_results

    report_results(
        results,
        baseline=baseline,
        thresholds=threshold or (),
        metric=metric,
        hold=hold,
        out=out,
    )


@example_app.command("list")
@reported
def example_list() -> None:
    """List the tuned examples."""
    from rllib_weighted.cli.examples import list_examples

    examples = list_examples()
    width = max(len(example.name) for example in examples)
    for example in examples:
        typer.echo(f"{example.name:<{width}}  {example.summary}")


@example_app.command("get")
@reported
def example_get(
    name: str,
    out: Annotated[Path | None, typer.Option(help="File to write; else it is printed.")] = None,
) -> None:
    """Print the file of a tuned example."""
    from rllib_weighted.cli.examples import find_example

    source = find_example(name).source()
    if out is None:
        typer.echo(source, nl=False)
    elif out.exists():
        raise InputError(f"{out} exists already")
    else:
        out.write_text(source, encoding="utf-8")


@example_app.command(
    "run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
@reported
def example_run(ctx: typer.Context, name: str) -> None:
    """Train a tuned example; takes the options of `rllib train file`."""
    from rllib_weighted.cli.examples import find_example

    main(["train", "file", str(find_example(name).path), *ctx.args])


@app.command()
def version() -> None:
    """Print the versions of this package and of what it stands on."""
    for name, number in versions().items():
        typer.echo(f"{name:<15} {number}")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None takes those of this process.

    Raises:
        SystemExit: Always: 0 done, 1 failed, 2 bad input, 130 or 143 interrupted.
    """
    app(args=list(sys.argv[1:] if argv is None else argv), prog_name="rllib")
    raise SystemExit(0)


def _options(params: dict[str, Any]) -> TrainOptions:
    names = TrainOptions.__dataclass_fields__
    given = {name: params[name] for name in names if name in params}
    return TrainOptions(**{**given, "settings": tuple(params.get("settings") or ())})


def _refuse_misplaced(ctx: typer.Context) -> None:
    """Refuses options between `train` and `file`, which would have no effect."""
    misplaced = [
        f"--{name.replace('_', '-')}" for name, value in ctx.params.items() if value not in _UNSET
    ]
    if misplaced:
        raise InputError(f"put {', '.join(misplaced)} after the file: rllib train file FILE ...")


_UNSET: tuple[Any, ...] = (None, False, "{}", [], ())


def _drawn(explore: bool) -> str:
    return "drawn, as in training" if explore else "the most likely ones"


if __name__ == "__main__":
    main()


def train_file_main(file: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Does what `rllib train file FILE` does; the last line of a training file that runs itself.

    Args:
        file: The training file: pass `__file__`.
        argv: Options as on the command line; None takes those of this process.

    Raises:
        SystemExit: Always, with the command's exit status.
    """
    main(["train", "file", file, *(sys.argv[1:] if argv is None else argv)])
