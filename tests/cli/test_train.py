"""Training through the functions behind the command, with RLlib's own PPO and with ours."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rllib_weighted.cli import InputError, TrainingError
from rllib_weighted.cli import train as experiment
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.results import TrainResult, best_checkpoint
from rllib_weighted.cli.train import resume_by_name, run_algorithm, run_file

pytestmark = pytest.mark.usefixtures("ray_session")

PPO = """
from ray.rllib.algorithms.ppo import PPOConfig

config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0)
    .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
)
stop = {"training_iteration": 2}
"""


def write(folder: Path, text: str = PPO) -> Path:
    path = folder / "train_me.py"
    path.write_text(text)
    return path


def quiet() -> Console:
    return Console(file=io.StringIO(), highlight=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rounds(result: TrainResult) -> list[int]:
    trials = [result.results[index] for index in range(len(result.results))]
    return [trial.metrics["training_iteration"] for trial in trials if trial.metrics]


def test_file_trains_to_its_stop_and_says_where_things_are(tmp_path: Path) -> None:
    console = quiet()
    options = TrainOptions(storage_path=str(tmp_path), name="run", settings=("lr=0.01",))
    result = run_file(write(tmp_path), options, console=console)
    assert result.exit_code == 0
    assert rounds(result) == [2]
    assert result.results[0].config is not None
    assert result.results[0].config["lr"] == 0.01
    assert result.experiment == str(tmp_path / "run")
    (checkpoint,) = result.checkpoints
    assert (Path(checkpoint) / "rllib_checkpoint.json").is_file()
    text = printed(console)
    assert "until       training_iteration >= 2" in text
    assert "trials      1, each 1 CPU, 0 GPUs; Ray has 8 CPUs, 0 GPUs: 1 at once" in text
    assert f"results     {tmp_path}/run" in text
    assert f"checkpoint  {checkpoint}" in text
    assert f"rllib evaluate {checkpoint}" in text
    assert "round 1 | 64 steps" in text

    # The same name again is refused, and there is nothing left to resume.
    with pytest.raises(InputError, match="continue it with --resume"):
        run_file(write(tmp_path), options)
    console = quiet()
    again = resume_by_name(TrainOptions(storage_path=str(tmp_path), name="run", resume=True))
    assert rounds(again) == [2]
    other = TrainOptions(storage_path=str(tmp_path), name="run", resume=True, settings=("lr=0.02",))
    with pytest.raises(InputError, match=r"started with --set lr=0.01, not with --set lr=0.02"):
        run_file(write(tmp_path), other, console=console)


@pytest.mark.slow
def test_interrupted_training_continues_where_it_stopped(tmp_path: Path) -> None:
    file = write(tmp_path, PPO.replace('"training_iteration": 2', '"training_iteration": 10**6'))
    console = quiet()
    options = TrainOptions(storage_path=str(tmp_path), name="run", checkpoint_at_end=False)
    threading.Thread(target=interrupt_when_trained, args=(tmp_path / "run",), daemon=True).start()
    first = run_file(file, options, console=console)
    assert first.exit_code == 130
    (stopped_at,) = rounds(first)
    assert len(first.checkpoints) == 1
    command = f"rllib train file {os.path.relpath(file)} --resume --name run"
    command = command if not os.path.relpath(file).startswith("..") else f"file {file} --resume"
    assert command in printed(console)

    stop = f'{{"training_iteration": {stopped_at + 3}}}'
    resumed = TrainOptions(storage_path=str(tmp_path), resume=True, name="run", stop=stop)
    second = run_file(file, resumed, console=quiet())
    assert second.exit_code == 0
    assert rounds(second) == [stopped_at + 3]
    table = second.results[0].metrics_dataframe
    assert table is not None
    assert table["training_iteration"].tolist() == list(range(1, stopped_at + 4))


def interrupt_when_trained(experiment: Path) -> None:
    """Sends Ctrl-C to this process after two rounds."""
    while True:
        logs = list(experiment.glob("*/result.json"))
        if logs and len(logs[0].read_text().splitlines()) >= 2:
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.1)


def test_checkpoints_come_by_time_and_the_last_three_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "CHECKPOINT_SECONDS", 0.0)
    file = write(tmp_path, PPO.replace('"training_iteration": 2', '"training_iteration": 6'))
    run_file(file, TrainOptions(storage_path=str(tmp_path), name="kept"), console=quiet())
    kept = sorted(path.name for path in tmp_path.glob("kept/*/checkpoint_*"))
    assert kept == ["checkpoint_000003", "checkpoint_000004", "checkpoint_000005"]


OWN_ENV = """
import gymnasium as gym
from ray.tune import register_env
from size_of_my_env import SIZE

def make(context):
    assert context["size"] == SIZE
    return gym.make("CartPole-v1")

register_env("registered in the file", make)
config.environment("registered in the file", env_config={"size": 3})
config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
stop = {"training_iteration": 1}
"""


def test_environment_and_module_of_the_file_reach_the_workers(tmp_path: Path) -> None:
    (tmp_path / "size_of_my_env.py").write_text("SIZE = 3")
    path = write(tmp_path, PPO + OWN_ENV)
    result = run_file(path, TrainOptions(storage_path=str(tmp_path)), console=quiet())
    assert rounds(result) == [1]


BROKEN_ENV = """
import gymnasium as gym

class Broken(gym.Wrapper):
    def step(self, action):
        raise RuntimeError("the motor of my environment is broken")

class BrokenCartPole(Broken):
    def __init__(self, context):
        super().__init__(gym.make("CartPole-v1"))

config.environment(BrokenCartPole)
"""


def test_failed_trial_shows_the_end_of_its_error(tmp_path: Path) -> None:
    path = write(tmp_path, PPO + BROKEN_ENV)
    with pytest.raises(TrainingError) as caught:
        run_file(path, TrainOptions(storage_path=str(tmp_path), name="bad"), console=quiet())
    message = str(caught.value)
    assert "training failed (1 of 1 trials)" in message
    assert "the motor of my environment is broken" in message
    (error_file,) = (tmp_path / "bad").glob("*/error.txt")
    assert str(error_file) in message


NAN_REWARDS = """
from rllib_weighted import WeightedPPOConfig
from tests.sampling.envs import NAN, ScriptedEnv

config = (
    WeightedPPOConfig()
    .environment(ScriptedEnv, env_config={"rewards": {2: NAN}})
    .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    .training(merge_unit="env", train_batch_size=20, minibatch_size=10, num_epochs=1)
    .fault_tolerance(max_rounds_without_update=3)
)
"""


@pytest.mark.slow
def test_a_run_that_learns_nothing_says_so(tmp_path: Path) -> None:
    cause = "round 1, worker 0 (and 1 more): sub-environment 0: reward nan"
    console = quiet()
    file = write(tmp_path, NAN_REWARDS + 'stop = {"training_iteration": 2}')
    run_file(file, TrainOptions(storage_path=str(tmp_path), name="short"), console=console)
    text = printed(console)
    assert f"in round 1 all workers were dropped. First drop: {cause}" in text
    assert f"dropped     2 of 2 workers, some in 2 rounds; first: {cause}" in text
    file = write(tmp_path, NAN_REWARDS + 'stop = {"training_iteration": 4}')
    with pytest.raises(TrainingError, match=r"in 3 rounds in a row.*round 1, worker 0: .*nan"):
        run_file(file, TrainOptions(storage_path=str(tmp_path), name="long"), console=quiet())


def test_trial_that_can_never_be_placed_is_refused_with_the_numbers(tmp_path: Path) -> None:
    options = TrainOptions(storage_path=str(tmp_path), settings=("num_env_runners=99",))
    with pytest.raises(InputError, match=r"takes 100 CPUs and Ray has 8 CPUs.*=99"):
        run_file(write(tmp_path), options, console=quiet())
    assert not list(tmp_path.glob("*/tuner.pkl"))


def test_algorithm_by_name_with_a_grid(tmp_path: Path) -> None:
    console = quiet()
    config = {
        "num_env_runners": 0,
        "num_envs_per_env_runner": 2,
        "train_batch_size_per_learner": 64,
        "minibatch_size": 32,
        "num_epochs": 1,
        "merge_unit": "env",
        "merge_strategy": {"grid_search": ["average", "reward_weighted"]},
    }
    options = TrainOptions(storage_path=str(tmp_path), stop='{"training_iteration": 1}')
    result = run_algorithm("WeightedPPO", "CartPole-v1", config, options, console=console)
    assert rounds(result) == [1, 1]
    text = printed(console)
    assert "trials      2, each 1 CPU" in text
    assert "trial 00000, average | round 1" in text
    assert "trial 00001, reward_weighted | round 1" in text
    assert "of 2 effective" in text


def test_the_best_checkpoint_is_that_of_the_sweeps_metric() -> None:
    def trial(*saved: tuple[str, dict[str, Any]]) -> Any:
        found = [(SimpleNamespace(path=path), metrics) for path, metrics in saved]
        return SimpleNamespace(best_checkpoints=found)

    trials = [
        trial(("a", {"merge": {"episode_return_mean": 7.0}, "loss": 0.5}), ("b", {"loss": 0.1})),
        trial(("c", {"env_runners": {"episode_return_mean": 9.0}, "loss": float("nan")})),
        trial(),
    ]
    of_returns = ("c", "env_runners/episode_return_mean", 9.0)
    assert best_checkpoint(trials, None, None) == of_returns
    assert best_checkpoint(trials, "loss", "min") == ("b", "loss", 0.1)
    assert best_checkpoint(trials, "loss", "max") == ("a", "loss", 0.5)
    assert best_checkpoint(trials, "absent", None) is None
