"""The command line itself: verbs, options and exit statuses, without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from rllib_weighted.cli.completion import ALGORITHMS
from rllib_weighted.cli.main import app, main


def rllib(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="rllib")


def failed(result: Result) -> str:
    """Returns the message of a refused command."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output or "train_me.py" in result.output
    return result.output


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["train", "file", "-h"]])
def test_help(args: list[str]) -> None:
    result = rllib(*args)
    assert result.exit_code == 0
    assert "rllib" in result.output


def test_version_names_everything_that_matters() -> None:
    result = rllib("version")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.output.splitlines()]
    assert names == ["rllib_weighted", "ray", "torch", "gymnasium", "python"]


def test_the_option_version_is_the_command() -> None:
    assert rllib("--version").output == rllib("version").output


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yields the words of every command and of every group of commands."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_helps_are_whole_at_80_columns(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = rllib(*path, "--help").output
    assert max(map(len, shown.splitlines())) <= 80
    assert not [
        line for line in shown.splitlines() if line.endswith(("…", "...")) and "Usage" not in line
    ]
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    for parameter in command.params:
        if parameter.name not in ("install_completion", "show_completion"):
            assert parameter.help, f"{parameter.name} has no help"
            assert all(option in shown for option in parameter.opts if option.startswith("-"))


def test_the_options_for_completion_are_there_and_not_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = rllib("--help").output
    assert shown.count("completion") == 1  # The line at the end.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = rllib("--show-completion", "bash")
    assert script.exit_code == 0
    assert "_RLLIB_COMPLETE=complete_bash" in script.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("rllib example run cartp", ["cartpole", "cartpole_sweep"]),
        ("rllib example get lunar", ["lunarlander"]),
        ("rllib train --algo Wei", ["WeightedPPO"]),
        ("rllib train -a PP", ["PPO"]),
        ("rllib comp", ["compare"]),
    ],
)
def test_a_shell_completes_names(
    words: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_RLLIB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert rllib().output.split() == found


def test_completion_knows_the_algorithms_of_rllib() -> None:
    from ray.rllib.algorithms.registry import ALGORITHMS as OF_RLLIB

    assert ("WeightedPPO", *sorted(OF_RLLIB)) == ALGORITHMS


def test_examples_with_a_word() -> None:
    names = [
        line.split()[0] for line in rllib("example", "list", "-f", "sweep").output.splitlines()
    ]
    assert names == ["bipedal_sweep", "cartpole_sweep"]
    assert "no example has 'zebra'" in failed(rllib("example", "list", "--filter", "zebra"))


def test_unknown_verb() -> None:
    assert "No such command" in failed(rllib("trian"))


def test_missing_file(tmp_path: Path) -> None:
    assert "there is no file" in failed(rllib("train", "file", tmp_path / "absent.py"))


def test_error_goes_to_the_standard_error(tmp_path: Path) -> None:
    result = rllib("train", "file", tmp_path / "absent.py")
    assert result.stdout == ""
    assert result.stderr.startswith("Error: there is no file")


def test_file_that_raises_shows_its_own_traceback(tmp_path: Path) -> None:
    path = tmp_path / "train_me.py"
    path.write_text("config = undefined_name")
    message = failed(rllib("train", "file", path))
    assert "NameError: name 'undefined_name' is not defined" in message
    assert "rllib_weighted" not in message


PPO = """
from ray.rllib.algorithms.ppo import PPOConfig
config = PPOConfig().environment("{env}")
stop = {{"training_iteration": 1}}
"""


def training_file(folder: Path, env: str = "CartPole-v1") -> Path:
    path = folder / "train_me.py"
    path.write_text(PPO.format(env=env))
    return path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stop", "{training_iteration: 1}"], "--stop is not valid JSON"),
        (["--stop", '{"training_iteration": "1"}'], "must be a number"),
        (["--set", "lrr=1"], "has no setting 'lrr'; did you mean 'lr'"),
        (["--set", "lr"], "--set must be KEY=VALUE"),
        (["--set", "minibatch_size=9999"], "minibatch_size"),
        (["--set", "env=CartPoel-v1"], "is not registered"),
        (["--resume"], "nothing to resume"),
        (["--resume", "--name", "x"], "nothing to resume"),
        (["--storage-path", "nothing://x"], "cannot open the storage"),
        (["--bogus"], "No such option"),
        (["--dry-run", "--resume"], "--dry-run shows what would be started"),
        (["--dry-run", "--set", "lrr=1"], "has no setting 'lrr'; did you mean 'lr'"),
        (["--dry-run", "--set", "num_env_runners=5000"], "so it would wait for ever"),
    ],
)
def test_bad_options_are_refused_before_ray_starts(
    tmp_path: Path, args: list[str], message: str
) -> None:
    path = training_file(tmp_path)
    assert message in failed(rllib("train", "file", path, "--storage-path", tmp_path, *args))


def test_unregistered_environment(tmp_path: Path) -> None:
    message = failed(rllib("train", "file", training_file(tmp_path, env="NoSuchEnv-v0")))
    assert "'NoSuchEnv-v0' is not registered" in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give an algorithm"),
        (["--algo", "PPOO"], "unknown algorithm 'PPOO'; did you mean 'PPO'"),
        (["--algo", "PPO"], "no environment is set"),
        (["--run", "PPO", "--env", "NoSuchEnv-v0"], "is not registered"),
        (["-a", "PPO", "-e", "CartPole-v1", "-c", "{lr: 1}"], "--config is not valid JSON"),
        (["-a", "PPO", "-e", "CartPole-v1", "-c", '{"lrr": 1}'], "did you mean 'lr'"),
        (["-a", "PPO", "-e", "CartPole-v1", "-s", "{x}"], "--stop is not valid JSON"),
        (["--resume"], "--resume needs --name"),
        (["--resume", "--dry-run"], "leave out one of both"),
        (["--resume", "-n", "absent", "--storage-path", "/nonexistent"], "nothing to resume"),
    ],
)
def test_bad_algorithm_options(args: list[str], message: str) -> None:
    assert message in failed(rllib("train", *args))


def test_options_before_file_would_be_lost_and_are_refused(tmp_path: Path) -> None:
    result = rllib("train", "--stop", '{"a": 1}', "--resume", "file", training_file(tmp_path))
    assert "put --stop, --resume after the file" in failed(result)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent"], "there is no folder"),
        (["."], "is no checkpoint and holds none"),
        ([".", "--episodes", "0"], "Invalid value for '--episodes'"),
    ],
)
def test_bad_evaluate_options(tmp_path: Path, args: list[str], message: str) -> None:
    args[0] = str(tmp_path / args[0])
    assert message in failed(rllib("evaluate", *args))


def test_main_exits_with_the_status() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "file", "absent.py"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["version"])
    assert caught.value.code == 0
