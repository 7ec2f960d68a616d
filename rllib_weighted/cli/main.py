"""The `rllib` command: reads its arguments, calls the function of each verb, shows errors.

The functions' modules are imported inside the commands, so that `rllib --help` does not wait for
Ray.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from rllib_weighted.cli import Aborted, InputError, RayEnded, TrainingError
from rllib_weighted.cli.cluster import leave
from rllib_weighted.cli.completion import complete_algorithm, complete_example
from rllib_weighted.cli.examples import find_example, list_examples
from rllib_weighted.cli.options import VERBOSE, TrainOptions, takes_train_options
from rllib_weighted.core.redaction import redact
from rllib_weighted.text import printable, readable


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None takes those of this process.

    Raises:
        SystemExit: Always: 0 done, 1 failed, 2 bad input, 130 or 143 interrupted.
    """
    app(args=list(sys.argv[1:] if argv is None else argv), prog_name="rllib")
    raise SystemExit(0)


def train_file_main(file: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Does what `rllib train file FILE` does; the last line of a training file that runs itself.

    Args:
        file: The training file: pass `__file__`.
        argv: Options as on the command line; None takes those of this process.

    Raises:
        SystemExit: Always, with the command's exit status.
    """
    main(["train", "file", file, *(sys.argv[1:] if argv is None else argv)])


class _Commands(TyperGroup):
    """Shows the package's errors as one message on the standard error, with an exit status.

    The options for the shell's completion work, and are not part of the help.
    """

    def get_params(self, ctx: Any) -> Any:  # Of types that Typer does not export.
        params: list[Any] = super().get_params(ctx)
        for parameter in params:
            if parameter.name in ("install_completion", "show_completion"):
                parameter.hidden = True
        return params

    def invoke(self, ctx: Any) -> Any:  # Typer has no public type for it.
        try:
            return super().invoke(ctx)
        except (InputError, TrainingError, Aborted) as error:
            if isinstance(error, RayEnded):
                leave(error)
            typer.echo(f"Error: {readable(error)}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted before training had started.", err=True)
            raise typer.Exit(130) from None


_HELP = {"help_option_names": ["-h", "--help"]}
# Without Rich's tables: at 80 columns they cut the names of options.
app = typer.Typer(
    name="rllib",
    cls=_Commands,
    epilog="Names are completed by the shell after: rllib --install-completion",
    context_settings=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
train_app = typer.Typer(context_settings=_HELP, rich_markup_mode=None)
example_app = typer.Typer(no_args_is_help=True, context_settings=_HELP, rich_markup_mode=None)
app.add_typer(train_app, name="train", short_help="Train an algorithm by name, or a training file.")
app.add_typer(example_app, name="example", help="Tuned examples: list, show or run them.")


def _print_versions(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def rllib(
    show_version: Annotated[
        bool,
        Option("--version", callback=_print_versions, is_eager=True, help="As `rllib version`."),
    ] = False,
) -> None:
    """Train and evaluate RLlib algorithms, and WeightedPPO: gradients merged by weight."""


DRY_RUN = Option(
    "--dry-run", help="Show settings, trials and resources; start nothing and write nothing."
)


@train_app.callback(invoke_without_command=True)
@takes_train_options
def train(
    ctx: typer.Context,
    options: TrainOptions,
    algo: Annotated[
        str | None,
        Option(
            *("--algo", "--run", "-a", "-r"),
            help="Algorithm, e.g. WeightedPPO or PPO.",
            autocompletion=complete_algorithm,
        ),
    ] = None,
    env: Annotated[str | None, Option("--env", "-e", help="Environment, e.g. CartPole-v1.")] = None,
    config: Annotated[
        str, Option("--config", "-c", metavar="JSON", help="Settings of the config.")
    ] = "{}",
    dry_run: Annotated[bool, DRY_RUN] = False,
) -> None:
    """Train an algorithm by name, or a training file: `rllib train file FILE`."""
    if ctx.invoked_subcommand is not None:
        _refuse_misplaced_options(ctx)
        return
    if dry_run and (algo is not None or options.resume):
        from rllib_weighted.cli.plan import plan_algorithm

        plan_algorithm(algo, env, config, options)
        return
    from rllib_weighted.cli.train import resume_by_name, run_algorithm

    if algo is not None:
        result = run_algorithm(algo, env, config, options)
    elif options.resume:
        result = resume_by_name(options)
    else:
        raise InputError(
            "give an algorithm, e.g. rllib train --algo WeightedPPO --env CartPole-v1, or a "
            "training file: rllib train file FILE"
        )
    raise typer.Exit(result.exit_code)


def _refuse_misplaced_options(ctx: typer.Context) -> None:
    """Refuses options between `train` and `file`, which would have no effect."""
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if getattr(ctx.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise InputError(f"put {', '.join(given)} after the file: rllib train file FILE ...")


@train_app.command("file", short_help="Train what a Python, YAML or JSON file asks for.")
@takes_train_options
def train_file(
    file: Annotated[Path, Argument(metavar="FILE", help="A .py, .yaml or .json file.")],
    options: TrainOptions,
    dry_run: Annotated[bool, DRY_RUN] = False,
) -> None:
    """Train what FILE asks for: Python that defines `config` and `stop`, or YAML or JSON."""
    if dry_run:
        from rllib_weighted.cli.plan import plan_file

        plan_file(file, options)
        return
    from rllib_weighted.cli.train import run_experiments

    raise typer.Exit(run_experiments(file, options)[-1].exit_code)


@app.command(short_help="Play whole episodes with a checkpoint, and print their returns.")
def evaluate(
    checkpoint: Annotated[str, Argument(help="A checkpoint, or a trial's folder.")],
    episodes: Annotated[int, Option(min=1, help="Episodes to play.")] = 10,
    seed: Annotated[int | None, Option(help="Seeds environments and actions.")] = None,
    deterministic: Annotated[
        bool,
        Option("--deterministic", help="Take the most likely actions, whatever the config says."),
    ] = False,
    best: Annotated[
        bool | None,
        Option(
            "--best/--last",
            help="Which checkpoint of a folder: the best by the sweep's metric, or the newest.",
            show_default="best of several trials, last of one",
        ),
    ] = None,
    render: Annotated[bool, Option("--render", help="Show the environment in a window.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON, with every episode.")] = False,
    video: Annotated[str | None, Option(metavar="DIR", help="Write MP4s there.")] = None,
    video_episodes: Annotated[
        int | None, Option(min=1, help="Of so many episodes.", show_default="3")
    ] = None,
    file: Annotated[
        str | None, Option(help="Training file that registers the environment.")
    ] = None,
    verbose: Annotated[bool, VERBOSE] = False,
) -> None:
    """Play whole episodes with a checkpoint's policy and print their returns."""
    from rllib_weighted.cli.evaluate import evaluate_checkpoint, playing

    if video_episodes is not None and video is None:
        raise InputError("--video-episodes needs --video DIR")
    with playing(episodes) as on_episode:
        result = evaluate_checkpoint(
            checkpoint,
            episodes=episodes,
            seed=seed,
            deterministic=deterministic,
            best=best,
            render=render,
            video=video,
            video_episodes=video_episodes or 3,
            file=file,
            on_episode=on_episode,
            verbose=verbose,
        )
    if as_json:
        typer.echo(result.to_json())
        return
    actions = "drawn, as in training" if result.explore else "the most likely ones"
    typer.echo(f"checkpoint   {printable(redact(result.checkpoint))}")
    typer.echo(f"episodes     {len(result.returns)} (actions {actions})")
    typer.echo(f"return mean  {result.return_mean:.2f}")
    typer.echo(f"return std   {result.return_std:.2f}")
    typer.echo(f"return min   {min(result.returns):.2f}")
    typer.echo(f"return max   {max(result.returns):.2f}")
    typer.echo(f"length mean  {result.length_mean:.1f}")
    for path in result.videos:
        typer.echo(f"video        {printable(str(path))}")


@app.command(short_help="Show in what two runs or experiments differ.")
def compare(
    a: Annotated[str, Argument(metavar="A", help="A trial's or an experiment's folder.")],
    b: Annotated[str, Argument(metavar="B", help="Another one.")],
) -> None:
    """Show in what two runs or experiments differ: settings, versions, results."""
    from rllib_weighted.cli.compare import compare_runs

    compare_runs(a, b)


@app.command(short_help="Write a checkpoint's policy as a file, and check it.")
def export(
    checkpoint: Annotated[str, Argument(help="A checkpoint, or a trial's folder.")],
    onnx: Annotated[str | None, Option(metavar="FILE", help="ONNX file to write.")] = None,
    torchscript: Annotated[
        str | None, Option(metavar="FILE", help="TorchScript file to write.")
    ] = None,
    verbose: Annotated[bool, VERBOSE] = False,
) -> None:
    """Write a checkpoint's deterministic policy as a file, and check it."""
    from rllib_weighted.cli.export import NUM_CHECKED, export_policy

    result = export_policy(checkpoint, onnx=onnx, torchscript=torchscript, verbose=verbose)
    typer.echo(f"checkpoint   {result.checkpoint}")
    obs, action = (
        ", ".join(["batch", *map(str, s)]) for s in (result.obs_shape, result.action_shape)
    )
    typer.echo(f"input        obs [{obs}] {result.obs_dtype}")
    typer.echo(f"output       action [{action}]")
    for file, difference in result.differences.items():
        found = f"differs by {difference:.1g} at most over {NUM_CHECKED:,} observations"
        typer.echo(f"written      {file} ({found})")


@app.command("push-to-hub", short_help="Upload a checkpoint to the Hugging Face Hub.")
def push_to_hub(
    checkpoint: Annotated[str, Argument(help="A checkpoint, or a trial's folder.")],
    repo: Annotated[str, Argument(metavar="OWNER/NAME", help="The model's repository.")],
    private: Annotated[bool, Option("--private", help="Create it as a private one.")] = False,
) -> None:
    """Upload a checkpoint to the Hugging Face Hub, with a model card of its run."""
    from rllib_weighted.cli.hub import push_checkpoint

    typer.echo(f"uploaded to  {push_checkpoint(checkpoint, repo, private=private)}")


@app.command(short_help="Compare strategies: a page with curves and conclusions.")
def report(
    results: Annotated[
        list[str], Argument(metavar="RESULTS...", help="Folders of experiments or trials.")
    ],
    baseline: Annotated[
        str | None,
        Option(help="Strategy (or arm) to compare with.", show_default="average"),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        Option(
            metavar="X",
            help="What counts as learned; ENV=X for one environment, may be repeated.",
            show_default="90 % of the baseline's improvement",
        ),
    ] = None,
    metric: Annotated[
        str | None, Option(help="Metric to compare.", show_default="the mean return")
    ] = None,
    hold: Annotated[
        int | None, Option(min=1, help="Rounds that X has to be held.", show_default="5")
    ] = None,
    name: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=ARM",
            help="Name an arm, by its label or its settings: NAME=lr=0.01,merge_strategy=sum.",
        ),
    ] = None,
    out: Annotated[
        str | None, Option(metavar="DIR", help="Where to write.", show_default="./report")
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
        names=name or (),
        out=out,
    )


NAME = Argument(help="As `rllib example list` names it.", autocompletion=complete_example)


@example_app.command("list")
def example_list(
    word: Annotated[
        str,
        Option(
            *("--filter", "-f"), metavar="WORD", help="Only those that have it in name or text."
        ),
    ] = "",
) -> None:
    """List the tuned examples."""
    examples = list_examples(word)
    width = max(len(example.name) for example in examples)
    for example in examples:
        typer.echo(f"{example.name:<{width}}  {example.summary}")


@example_app.command("get")
def example_get(
    name: Annotated[str, NAME],
    out: Annotated[Path | None, Option(help="File to write; else it is printed.")] = None,
) -> None:
    """Print the file of a tuned example."""
    source = find_example(name).source()
    if out is None:
        typer.echo(source, nl=False)
        return
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(source)
    except FileExistsError:
        raise InputError(f"{out} exists already: choose another --out") from None
    except OSError as error:
        raise InputError(f"--out should be a file in a folder that is there: {error}") from None


@example_app.command(
    "run",
    short_help="Train a tuned example.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def example_run(ctx: typer.Context, name: Annotated[str, NAME]) -> None:
    """Train a tuned example; takes the options of `rllib train file`, as `--dry-run`."""
    train_file_main(str(find_example(name).path), ctx.args)


@app.command()
def version() -> None:
    """Print the versions of this package and of what it stands on."""
    from rllib_weighted.records.origin import versions

    packages = versions(("rllib-weighted", "ray", "torch", "gymnasium"))
    for name, number in {**packages, "python": platform.python_version()}.items():
        typer.echo(f"{name.replace('-', '_'):<15} {number}")


if __name__ == "__main__":
    main()
