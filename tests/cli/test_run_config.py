"""What a training file says of the run: `run_config`, `callbacks`, and names that look wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.stopper import MaximumIterationStopper

from rllib_weighted.cli import InputError
from rllib_weighted.cli.inputs import TrainFile, load_file
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.run_config import RunSettings
from rllib_weighted.cli.train import run_file
from tests.cli.test_train import printed, quiet, rounds

GOOD = """
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0)
    .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
)


class Watch(tune.Callback):
    def __init__(self, path):
        self.path = path

    def on_trial_result(self, iteration, trials, trial, result, **info):
        with open(self.path, "a") as stream:
            stream.write(f"{result['training_iteration']} ")
"""


def load(folder: Path, more: str, name: str = "train_me.py") -> TrainFile:
    path = folder / name
    path.write_text(GOOD + more)
    return load_file(path)


def checkpoints(run: RunSettings, **options: Any) -> tuple[int | None, int, bool]:
    given = {"frequency": None, "at_end": None, "num_to_keep": 3, **options}
    found = run.checkpoint_config(**given)
    return found.num_to_keep, found.checkpoint_frequency, found.checkpoint_at_end


def test_a_file_without_them_says_nothing_of_the_run(tmp_path: Path) -> None:
    run = load(tmp_path, "").run
    assert (list(run.callbacks), run.name, run.stop, dict(run.others)) == ([], None, None, {})
    # By time, the last three are kept, and one at the end.
    assert checkpoints(run) == (3, 0, True)


def test_a_run_config_is_read(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "run_config = tune.RunConfig(name='mine', storage_path='s3://bucket/there', "
        "stop={'timesteps_total': 100}, callbacks=[Watch('a')], "
        "failure_config=tune.FailureConfig(max_failures=2))\n"
        "callbacks = [Watch('b')]\n",
    )
    assert loaded.run.name == "mine"
    assert loaded.storage_path == "s3://bucket/there"
    assert loaded.stop == {"num_env_steps_sampled_lifetime": 100}  # The old name is replaced.
    assert [callback.path for callback in loaded.run.callbacks] == ["a", "b"]
    assert loaded.run.others["failure_config"].max_failures == 2


def test_the_command_s_options_go_over_the_file_s(tmp_path: Path) -> None:
    loaded = load(tmp_path, "run_config = tune.RunConfig(storage_path='/theirs')")
    assert loaded.with_options(TrainOptions()).storage_path == "/theirs"
    assert loaded.with_options(TrainOptions(storage_path="/mine")).storage_path == "/mine"
    # Ray's default storage is not something that the file says.
    assert load(tmp_path, "run_config = tune.RunConfig()").storage_path is None


def test_checkpoints_are_those_of_the_options_then_of_the_file_then_of_the_command(
    tmp_path: Path,
) -> None:
    line = "run_config = tune.RunConfig(checkpoint_config=tune.CheckpointConfig({}))"
    run = load(tmp_path, line.format("num_to_keep=5")).run
    assert checkpoints(run) == (5, 0, True)
    run = load(tmp_path, line.format("checkpoint_frequency=4, checkpoint_at_end=False")).run
    assert run.checkpoint_frequency == 4
    assert checkpoints(run) == (None, 4, False)
    assert checkpoints(run, frequency=7, at_end=True) == (None, 7, True)
    assert checkpoints(run, frequency=0) == (None, 0, False)
    run = load(tmp_path, line.format("checkpoint_score_attribute='x', num_to_keep=1")).run
    found = run.checkpoint_config(frequency=2, at_end=None, num_to_keep=3)
    assert (found.checkpoint_score_attribute, found.num_to_keep) == ("x", 1)


def test_ray_train_s_run_config_means_the_same(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "import ray.train\nrun_config = ray.train.RunConfig(name='mine', storage_path='/there', "
        "failure_config=ray.train.FailureConfig(max_failures=4), "
        "checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2))",
    )
    assert (loaded.run.name, loaded.storage_path) == ("mine", "/there")
    assert loaded.run.others["failure_config"].max_failures == 4
    assert isinstance(loaded.run.others["checkpoint_config"], tune.CheckpointConfig)
    assert checkpoints(loaded.run) == (2, 0, True)


def test_stop_criteria_may_be_code(tmp_path: Path) -> None:
    text = "from ray.tune.stopper import MaximumIterationStopper\n{} = MaximumIterationStopper(2)"
    for line in (text.format("stop"), text.replace("{} = ", "run_config = tune.RunConfig(stop=")):
        loaded = load(tmp_path, line + (")" if "RunConfig" in line else ""))
        assert loaded.stop == {}
        assert isinstance(loaded.run.stopper, MaximumIterationStopper)
    loaded = load(tmp_path, "def stop(trial_id, result):\n    return True")
    assert loaded.run.stopper is not None
    with pytest.raises(InputError, match=r"--stop should be left out; found '\{\}': .* is code"):
        loaded.with_options(TrainOptions(stop="{}"))


TRAIN = "import ray.train\nrun_config = ray.train.RunConfig({})"
RUN = "run_config = tune.RunConfig({})"
LOCAL = "from pyarrow.fs import LocalFileSystem\n"
OF_RLLIB = "from ray.rllib.callbacks.callbacks import RLlibCallback\n"

REFUSED = [
    ("run_config = {'name': 'x'}", r"`run_config` should be a ray.tune.RunConfig; found {'name'"),
    ("run_config = tune.RunConfig", r"`run_config` should be .*; found <class .*>: call it"),
    (RUN.format("verbose=0"), r"`run_config.verbose` should be left out; found 0: .* with -v"),
    (RUN.format("progress_reporter=tune.CLIReporter()"), "the command shows progress itself"),
    (
        LOCAL + RUN.format("storage_filesystem=LocalFileSystem()"),
        r"`run_config.storage_filesystem` should be left out.*: give `storage_path` as a URI",
    ),
    (
        TRAIN.format("worker_runtime_env={'pip': ['x']}"),
        r"`run_config.worker_runtime_env` .* found {'pip'.*: use ray.tune.RunConfig",
    ),
    (RUN.format("name='a/b'"), r"`run_config.name` should be .* one folder; found 'a/b': choose"),
    (
        "stop = {'a': 1}\n" + RUN.format("stop={'b': 2}"),
        r"should say once when to stop; .*leave one of them out",
    ),
    ("callbacks = Watch('a')", r"`callbacks` should be a list; found .*: put it into \[ \]"),
    ("callbacks = [Watch]", r"found <class .*>: call it, Tune takes no classes"),
    ("callbacks = [print]", r"found <built-in function print>: derive yours from ray.tune.Callba"),
    (
        OF_RLLIB + "callbacks = [RLlibCallback]",
        r"found <class .*>: those of RLlib go into the config: config.callbacks\(...\)",
    ),
    (RUN.format("callbacks=[3]"), r"`run_config.callbacks` should be a list .*; found 3"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_what_cannot_be_heeded_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, line)


# Names that look like a mistake

MISTAKES = {
    "run_confg = tune.RunConfig()": "did you mean 'run_config'?",
    "stopp = {'training_iteration': 1}": "did you mean 'stop'?",
    "tune_confg = tune.TuneConfig()": "did you mean 'tune_config'?",
    "callback = [Watch('a')]": "did you mean 'callbacks'?",
    "my_run = tune.RunConfig()": "did you mean 'run_config'?",
    "search: object = tune.TuneConfig()": "did you mean 'tune_config'?",
    "param_spaces = {}": "search spaces go into the config",
    "param_space = {}": "search spaces go into the config",
    "if True:\n    Stop = {'a': 1}": "did you mean 'stop'?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_name_that_looks_like_a_mistake_is_a_warning(tmp_path: Path, line: str) -> None:
    (warning,) = load(tmp_path, line).warnings
    name = line.split(" = ")[0].split()[-1 if line.startswith("if") else 0].rstrip(":")
    assert warning == f"`{name}` in train_me.py is used by nothing; {MISTAKES[line]}" or (
        name.startswith("param_space") and warning.startswith(f"`{name}` in train_me.py is used")
    )


@pytest.mark.parametrize(
    "line",
    [
        "SEEDS = 5\nenv_config = {}\nnum_samples = 3\nname = 'x'",
        "import json as stops\nfrom math import floor as callback",
        "def stopp():\n    param_space = {}\n    return param_space",
        "class Config:\n    stopp = 3",
        "stopp = {'a': 1}\nstop = dict(stopp)",  # The file reads it: it is the user's own.
        "_stop = 3\nconfig2 = config.copy()",
        "stopp = 3\ndel stopp",
        "my_run = tune.RunConfig()\nrun_config = my_run",
    ],
)
def test_what_is_a_user_s_own_is_none(tmp_path: Path, line: str) -> None:
    assert load(tmp_path, line).warnings == []


# Trainings


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_training_has_the_file_s_callbacks_and_settings_and_the_command_s(tmp_path: Path) -> None:
    seen = tmp_path / "seen.txt"
    loaded = (
        f"callbacks = [Watch({str(seen)!r})]\n"
        f"run_config = tune.RunConfig(name='mine', storage_path={str(tmp_path)!r}, "
        "checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1))\n"
        "stopp = {'training_iteration': 9}\n"
    )
    path = tmp_path / "train_me.py"
    path.write_text(GOOD + loaded)
    console = quiet()
    options = TrainOptions(stop='{"training_iteration": 2}')
    result = run_file(path, options, console=console)
    assert result.experiment == str(tmp_path / "mine")
    assert rounds(result) == [2]
    assert seen.read_text() == "1 2 "
    (trial,) = (tmp_path / "mine").glob("PPO_*")
    assert len(list(trial.glob("checkpoint_*"))) == 1
    assert (trial / "progress.csv").is_file()
    text = printed(console)
    assert "Warning: `stopp` in train_me.py is used by nothing; did you mean 'stop'?" in text
    assert "round 1 | 64 steps" in text  # The command's own callback.

    with pytest.raises(InputError, match="there is an experiment 'mine'"):
        run_file(path, options, console=quiet())


@pytest.mark.usefixtures("ray_session")
def test_a_training_ends_where_the_file_s_function_says(tmp_path: Path) -> None:
    path = tmp_path / "train_me.py"
    path.write_text(GOOD + "def stop(trial_id, result):\n    return result['time_total_s'] > 0\n")
    console = quiet()
    result = run_file(path, TrainOptions(storage_path=str(tmp_path), name="x"), console=console)
    assert rounds(result) == [1]
    assert "until       stop of the training file" in printed(console)
