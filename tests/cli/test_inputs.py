"""Training files: what they may be, and what a wrong one says."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import ray.cloudpickle as cloudpickle
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_weighted.cli import InputError
from rllib_weighted.cli.inputs import load_experiments, load_file

GOOD = """
from ray.rllib.algorithms.ppo import PPOConfig

config = PPOConfig().environment("CartPole-v1")
stop = {"env_runners": {"episode_return_mean": 475}}

if __name__ == "__main__":
    raise RuntimeError("the file was run as a script")
"""


def write(folder: Path, text: str, name: str = "train_me.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_python_file(tmp_path: Path) -> None:
    loaded = load_file(write(tmp_path, GOOD))
    assert isinstance(loaded.config, PPOConfig)
    assert loaded.config.env == "CartPole-v1"
    assert loaded.stop == {"env_runners/episode_return_mean": 475}
    assert loaded.name == "train_me"


def test_stop_is_optional(tmp_path: Path) -> None:
    text = "from ray.rllib.algorithms.ppo import PPOConfig\nconfig = PPOConfig()"
    assert load_file(write(tmp_path, text)).stop == {}


def test_modules_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path, "NAME = 'CartPole-v1'", "neighbour_of_train_me.py")
    text = GOOD.replace('"CartPole-v1"', "NAME")
    path = write(tmp_path, "from neighbour_of_train_me import NAME\n" + text)
    assert load_file(path).config.env == "CartPole-v1"


def test_what_a_file_defines_can_be_used_in_another_process(tmp_path: Path) -> None:
    text = GOOD + "\nimport math\ndef make(context):\n    return math.sqrt(context['size'])\n"
    text += "config.environment(make)\n"
    made = cloudpickle.dumps(load_file(write(tmp_path, text)).config.env)
    code = f"import pickle; print(pickle.loads({made!r})({{'size': 9}}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout == "3.0\n", printed.stderr
    assert pickle.loads(made)({"size": 4}) == 2.0


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "cartpole.py")
    with pytest.raises(InputError, match=r"there is no file .*; did you mean 'cartpole.py'\?"):
        load_file(tmp_path / "cartpol.py")


def test_folder_and_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        load_file(tmp_path / "folder.py")
    with pytest.raises(InputError, match=r"ends in .py, .yaml, .yml, .json"):
        load_file(write(tmp_path, GOOD, "train.txt"))


def test_file_without_config_says_what_it_defines(tmp_path: Path) -> None:
    path = write(tmp_path, "import math\nstop = {}\nconfg = 3\n")
    with pytest.raises(InputError, match=r"does not define `config`.*stop \(dict\), confg \(int\)"):
        load_file(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [("{'lr': 1}", "found a dict"), ("lambda: 3", "found a function .a function: call it.")],
)
def test_config_of_the_wrong_kind(tmp_path: Path, value: str, found: str) -> None:
    with pytest.raises(InputError, match=f"`config` must be an AlgorithmConfig.*{found}"):
        load_file(write(tmp_path, f"config = {value}"))


def test_file_that_raises_shows_its_own_traceback_only(tmp_path: Path) -> None:
    text = "def broken():\n    return 1 / 0\n\nconfig = broken()\n"
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_file(path)
    message = str(caught.value)
    assert "ZeroDivisionError" in message
    assert f'File "{path}", line 4' in message
    assert f'File "{path}", line 2, in broken' in message
    assert message.count("File ") == 2
    assert "rllib_weighted" not in message


def test_error_below_the_file_keeps_the_frames_below(tmp_path: Path) -> None:
    write(tmp_path, "def fail():\n    raise KeyError('x')", "helper_that_fails.py")
    path = write(tmp_path, "import helper_that_fails\nhelper_that_fails.fail()")
    with pytest.raises(InputError, match="in fail") as caught:
        load_file(path)
    assert str(caught.value).count("File ") == 2


def test_syntax_error_points_at_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, "config = (1,\nstop = {")
    with pytest.raises(InputError, match="is not Python") as caught:
        load_file(path)
    assert f'File "{path}", line' in str(caught.value)
    assert "^" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_file_that_exits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"left by itself with sys.exit\(3\)"):
        load_file(write(tmp_path, "import sys\nsys.exit(3)"))


def test_bad_stop_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every value of `stop` must be a number"):
        load_file(write(tmp_path, GOOD + "\nstop = {'training_iteration': 'ten'}"))


YAML = """
cartpole-ppo:
    env: CartPole-v1
    run: PPO
    stop:
        episode_reward_mean: 150
    num_samples: 2
    config:
        framework: torch
        lr: {grid_search: [0.1, 0.2]}
        num_workers: 1
"""


def test_yaml_of_the_old_command(tmp_path: Path) -> None:
    loaded = load_file(write(tmp_path, YAML, "old.yaml"))
    assert loaded.name == "cartpole-ppo"
    assert loaded.config.env == "CartPole-v1"
    assert loaded.config.num_env_runners == 1
    assert loaded.config.lr == {"grid_search": [0.1, 0.2]}
    assert loaded.stop == {"env_runners/episode_return_mean": 150}
    assert loaded.num_samples == 2


def test_json_with_two_experiments(tmp_path: Path) -> None:
    text = '{"a": {"run": "PPO", "env": "CartPole-v1"}, "b": {"run": "DQN", "env": "CartPole-v1"}}'
    path = write(tmp_path, text, "two.json")
    assert [experiment.name for experiment in load_experiments(path)] == ["a", "b"]
    with pytest.raises(InputError, match=r"holds 2 experiments \(a, b\)"):
        load_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold experiments"),
        ("[1]", "must hold experiments"),
        ("a: 3", "experiment 'a' must be a dict that names its algorithm"),
        ("a: {env: CartPole-v1}", "names its algorithm"),
        ("a: {run: PPO, configs: {}}", "unknown keys: 'configs'; did you mean 'config'"),
        ("a: {run: PPO, config: {lrr: 1}}", "has no setting 'lrr'; did you mean 'lr'"),
        ("a: {run: PPO, config: 3}", "`config` must be a dict of settings; found 3"),
        ("a: {run: PPOO}", "unknown algorithm 'PPOO'"),
        ("a: {run: PPO", "is not valid YAML.*line 1"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_file(write(tmp_path, text, "bad.yaml"))


def test_a_search_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.tune.search.optuna import optuna_search

    monkeypatch.setattr(optuna_search, "ot", None)
    text = """
from ray import tune
from ray.tune.search.optuna import OptunaSearch

tune_config = tune.TuneConfig(search_alg=OptunaSearch())
"""
    path = tmp_path / "search.py"
    path.write_text(text)
    with pytest.raises(InputError, match=r"Optuna must be installed! Run `pip install optuna`"):
        load_file(path)
