"""`--dry-run`: what would be trained, without training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from rich.console import Console

from rllib_weighted import WeightedPPOConfig, merge_grid
from rllib_weighted.cli import InputError, plan
from rllib_weighted.cli.inputs import TrainFile
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.cli.plan import changed_settings, plan_algorithm, plan_file, print_plan

FILE = """
from ray import tune
from rllib_weighted import WeightedPPOConfig, merge_grid

config = (
    WeightedPPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=2)
    .training(**merge_grid(["average", "reward_weighted"], [0.25]), lr=0.01)
    .debugging(seed=tune.grid_search([1, 2]))
)
stop = {"training_iteration": 12}
"""


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # That of other tests.
    monkeypatch.setattr(plan, "_machine", lambda options: {"CPU": 7.0, "GPU": 0.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def lines(on: Console) -> list[str]:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue().splitlines()


def test_settings_trials_and_resources_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "train_me.py"
    path.write_text(FILE)
    results, on = tmp_path / "results", console()
    plan_file(path, TrainOptions(storage_path=str(results), num_samples=3), console=on)
    shown = lines(on)
    assert shown[0] == "Would train WeightedPPO on CartPole-v1"
    words = [line.split(maxsplit=1) for line in shown]
    assert ["lr", "0.01"] in words
    assert ["seed", "each of [1, 2]"] in words
    assert ["until", "training_iteration >= 12"] in words
    assert shown[-5:] == [
        "  trials      12, in 2 arms:",
        "    6 x average (seeds 1, 2)",
        "    6 x reward_weighted 0.25 (seeds 1, 2)",
        # 3 CPUs each: of 7, two trials take 6.
        "  resources   each 3 CPUs, 0 GPUs; this machine has 7 CPUs, 0 GPUs: 2 at once",
        "Nothing was started, nothing was written.",
    ]
    assert not results.exists()


def test_an_algorithm_by_name() -> None:
    on = console()
    plan_algorithm("PPO", "CartPole-v1", '{"lr": 0.25}', TrainOptions(), console=on)
    shown = lines(on)
    assert shown[:4] == [
        "Would train PPO on CartPole-v1",
        "  settings    2 that PPOConfig has not by default:",
        "    env  CartPole-v1",
        "    lr   0.25",
    ]
    assert "  trials      1" in shown
    assert "  until       Ctrl-C (no stop criterion is set)" in shown


def test_what_the_training_would_refuse_is_refused() -> None:
    asked = TrainFile(WeightedPPOConfig().environment("CartPole-v1"))
    with pytest.raises(InputError, match="a trial takes 51 CPUs and Ray has 7 CPUs"):
        print_plan(asked, TrainOptions(settings=["num_env_runners=50"]), console())
    with pytest.raises(InputError, match=r"merge_strategy"):
        print_plan(asked, TrainOptions(settings=["merge_strategy=none"]), console())
    with pytest.raises(InputError, match="leave out one of both"):
        print_plan(asked, TrainOptions(resume=True), console())
    with pytest.raises(InputError, match=r"--dry-run needs an algorithm \(--algo\)"):
        plan_algorithm(None, None, "{}", TrainOptions())


def test_a_cluster_that_would_be_joined_is_not_asked() -> None:
    asked, on = TrainFile(WeightedPPOConfig().environment("CartPole-v1")), console()
    options = TrainOptions(ray_address="10.0.0.1:6379", settings=["num_env_runners=50"])
    print_plan(asked, options, on)
    expected = "each 51 CPUs, 0 GPUs; the cluster that is joined was not asked"
    assert f"  resources   {expected}" in lines(on)


def my_connector(*args: Any) -> None:
    """Stands in a config."""


def test_settings_as_a_person_writes_them() -> None:
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    config = (
        WeightedPPOConfig()
        .env_runners(env_to_module_connector=my_connector)
        .training(**merge_grid(["average", "sum"], [None]), merge_options={"a": [1, None]})
        .training(lr=tune.uniform(0.0, 1.0))
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
    )
    assert changed_settings(config) == {
        "env_to_module_connector": "my_connector",
        "lr": "drawn or computed for each trial",
        "merge_arm": "each of [average, sum]",
        "merge_options": "{a: [1, None]}",
        "merge_strategy": "drawn or computed for each trial",
        "min_weight": "drawn or computed for each trial",
        "model_config": "DefaultModelConfig(fcnet_hiddens=[8])",
    }
    assert changed_settings(WeightedPPOConfig()) == {}


def test_what_a_file_and_the_options_say_of_the_run_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "train_me.py"
    source = FILE.replace("stop = {", "stopp = {") + "stop = lambda trial_id, result: True\n"
    path.write_text(source)
    on = console()
    plan_file(path, TrainOptions(track=("tensorboard",)), console=on)
    shown = lines(on)
    assert "  until       the file's own criterion says so" in shown
    assert "  tracked by  tensorboard" in shown


def test_a_name_that_looks_like_a_mistake_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train_me.py"
    path.write_text(FILE.replace("stop = {", "stopp = {"))
    on = console()
    plan_file(path, TrainOptions(), console=on)
    assert " ".join(lines(on)[:2]).startswith("Warning: `stopp` in train_me.py is used by nothing;")


def test_a_tracker_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_me.py"
    path.write_text(FILE)
    with pytest.raises(InputError, match="--track should be one of tensorboard, wandb, mlflow"):
        plan_file(path, TrainOptions(track=("tensorboards",)), console=console())
