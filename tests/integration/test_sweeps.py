"""Sweeps as a user runs them: the examples three ways, killed ones, all kinds of Tune spaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from rllib_weighted import WeightedPPOConfig, merge_grid
from rllib_weighted.records import read_history
from tests.integration.test_tune import config, fit, weights

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "tuned_examples"
COMMAND = [sys.executable, "-m", "rllib_weighted.cli.main", "train", "file"]

# A sweep written by a user, on the example's config.
OWN_TUNER = """
import sys
import cartpole_sweep
from ray import tune

tuner = tune.Tuner(
    "WeightedPPO",
    param_space=cartpole_sweep.config,
    run_config=tune.RunConfig(
        name="run", storage_path=sys.argv[1], stop={"training_iteration": 1}, verbose=0
    ),
)
assert tuner.fit().num_errors == 0
"""


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "SWEEP_SEEDS": "1", "PYTHONPATH": str(EXAMPLES), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def outcomes(experiment: Path) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """Returns what each trial of an experiment was, and what came of its last round."""
    found = {}
    for folder in experiment.glob("WeightedPPO_*"):
        params = json.loads((folder / "params.json").read_text())
        result = json.loads((folder / "result.json").read_text().splitlines()[-1])
        point = params["merge_strategy"], params["min_weight"], params["seed"]
        loss = result["learners"]["default_policy"]["total_loss"]
        evaluated = result["evaluation"]["env_runners"]["episode_return_mean"]
        found[point] = (result["merge"]["episode_return_mean"], loss, evaluated)
    return found


def test_the_three_ways_to_run_a_sweep_give_the_same(tmp_path: Path) -> None:
    file = str(EXAMPLES / "cartpole_sweep.py")
    stop = ["--stop", '{"training_iteration": 1, "num_env_steps_sampled_lifetime": null}']
    options = ["--ray-num-cpus", "4", "--name", "run", *stop]
    output = run([*COMMAND, file, *options, "--storage-path", str(tmp_path / "command")])
    assert "trials      12, each 1 CPU, 0 GPUs; Ray has 4 CPUs, 0 GPUs: 4 at once" in output
    run([sys.executable, file, *options, "--storage-path", str(tmp_path / "script")])
    run([sys.executable, "-c", OWN_TUNER, str(tmp_path / "tuner")])
    command, script, tuner = (
        outcomes(tmp_path / way / "run") for way in ("command", "script", "tuner")
    )
    min_weights = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert set(command) == {
        *((strategy, None, 0) for strategy in ("average", "sum")),
        *((s, m, 0) for s in ("reward_weighted", "loss_weighted") for m in min_weights),
    }
    assert command == script == tuner
    assert len({loss for _, loss, _ in command.values()}) > 6  # The arms do differ.


@pytest.mark.parametrize("name", ["cartpole_sweep", "bipedal_sweep"])
def test_the_second_axis_is_hardware(name: str, tmp_path: Path) -> None:
    """Eight workers, however many processes they are in; learners and GPUs are looked at too."""
    options = ["--ray-num-cpus", "4", "--storage-path", str(tmp_path), "--name", "run"]
    axes = [
        *("--set", 'num_env_runners={"grid_search": [0, 2]}'),
        *("--set", 'num_learners={"grid_search": [0, 1]}'),
        *("--set", "merge_strategy=reward_weighted", "--set", "min_weight=0.25"),
        *("--set", "merge_arm=null", "--set", "train_batch_size=512"),
    ]
    stop = ["--stop", '{"training_iteration": 1, "num_env_steps_sampled_lifetime": null}']
    file = str(EXAMPLES / f"{name}.py")
    output = run([*COMMAND, file, *options, *axes, *stop])
    # The main process, half a CPU for each env runner, one for a learner.
    assert (
        "trials      4, each 1 to 3 CPUs, 0 GPUs; Ray has 4 CPUs, 0 GPUs: 1 to 4 at once" in output
    )
    results = [
        json.loads(path.read_text().splitlines()[-1]) for path in tmp_path.glob("run/*/result.json")
    ]
    assert [result["merge"]["num_workers"] for result in results] == [8.0] * 4
    with pytest.raises(AssertionError, match="takes 1 GPU and Ray has 0 GPUs"):
        run([*COMMAND, file, "--storage-path", str(tmp_path), "--set", "num_gpus_per_learner=1"])


SMALL_SWEEP = """
from ray import tune
from rllib_weighted import WeightedPPOConfig, merge_grid

config = (
    WeightedPPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    .training(
        **merge_grid(["average", "reward_weighted"], [0.5, 1.0]),
        merge_unit="env",
        train_batch_size=512,
        minibatch_size=64,
        num_epochs=20,
    )
    .debugging(seed=tune.grid_search([0, 1]))
)
stop = {"training_iteration": 30}
"""
LAST = 30
EVERY = 3  # Rounds between two checkpoints.


def trial_folders(root: Path) -> list[Path]:
    return sorted(root.glob("run/WeightedPPO_*"))


def rounds(folder: Path) -> list[int]:
    log = folder / "result.json"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [json.loads(line)["training_iteration"] for line in lines if line.endswith("}")]


def is_half_way(folder: Path) -> bool:
    return 6 <= max(rounds(folder), default=0) < 15 and any(folder.glob("checkpoint_*"))


def processes_of_session(session: int) -> list[int]:
    """Returns the living processes of a session: what its leader has started, Ray included."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and fields[3] == str(session) and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "small_sweep.py"
    file.write_text(SMALL_SWEEP)
    where = ["--storage-path", str(tmp_path), "--name", "run", "--ray-num-cpus", "2"]
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(
        [*COMMAND, str(file), *where, "--checkpoint-freq", str(EVERY)],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        folders = trial_folders(tmp_path)
        done = [folder for folder in folders if max(rounds(folder), default=0) == LAST]
        if len(done) >= 2 and any(is_half_way(folder) for folder in folders):
            break
        time.sleep(0.1)
    time.sleep(2.5)  # What the last two seconds brought, Tune has not recorded yet.
    process.kill()
    process.wait()
    log.close()
    wait_for_the_end_of(process.pid)

    before = {folder.name: rounds(folder) for folder in trial_folders(tmp_path)}
    finished = {name for name, seen in before.items() if max(seen, default=0) == LAST}
    running = {name for name, seen in before.items() if 0 < max(seen, default=0) < LAST}
    assert len(finished) >= 2, (tmp_path / "log.txt").read_text()
    assert running
    untouched = {name: modified(tmp_path / "run" / name) for name in finished}

    output = run([*COMMAND, str(file), "--resume", *where])
    assert f"{len(finished)} done" in output
    assert {name: modified(tmp_path / "run" / name) for name in finished} == untouched
    folders = trial_folders(tmp_path)
    assert len(folders) == 6
    for folder in folders:
        assert rounds(folder) == list(range(1, LAST + 1)), folder
        history = read_history(folder).to_pydict()
        keys = list(zip(history["round"], history["worker"], strict=True))
        assert keys == [(round, worker) for round in range(1, LAST + 1) for worker in (0, 1)]
    for name in running:
        # Not from the start: the first round of this process follows one of the last checkpoints.
        results = (tmp_path / "run" / name / "result.json").read_text().splitlines()
        since = [json.loads(line)["iterations_since_restore"] for line in results]
        kept = LAST - since[-1]
        assert kept % EVERY == 0
        assert 0 < kept <= max(before[name])


def modified(folder: Path) -> dict[str, int]:
    """Returns when the records of a trial were last written."""
    files = [folder / "result.json", folder / "progress.csv", *folder.glob("merge_history/*")]
    return {str(path): path.stat().st_mtime_ns for path in files}


def wait_for_the_end_of(session: int) -> None:
    """Ray's processes notice that their driver is gone; what lingers is ended by its number."""
    deadline = time.monotonic() + 30
    while processes_of_session(session) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in processes_of_session(session):
        os.kill(process, signal.SIGKILL)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("space", "check"),
    [
        ({"min_weight": tune.uniform(1.0, 2.0)}, lambda c: 1 <= c["min_weight"] <= 2),
        (
            {"merge_options": {"transform": "softmax", "temperature": tune.uniform(1.0, 2.0)}},
            lambda c: 1 <= c["merge_options"]["temperature"] <= 2,
        ),
        (
            {"merge_options": tune.choice([{"direction": "low"}, {"normalize": False}])},
            lambda c: len(c["merge_options"]) == 1,
        ),
        (
            {
                "num_epochs": tune.choice([1, 2]),
                "min_weight": tune.sample_from(lambda config: config["num_epochs"] / 4),
            },
            lambda c: c["min_weight"] == c["num_epochs"] / 4,
        ),
    ],
)
def test_every_kind_of_tune_space(space: dict[str, Any], check: Any, tmp_path: Path) -> None:
    asked = config().training(merge_strategy="reward_weighted", **space)
    (row,) = fit(asked, tmp_path)
    assert check(row.config)
    weight = 0.5 if row.config["min_weight"] is None else row.config["min_weight"]
    assert sum(weights(row.metrics)) == pytest.approx(1 + 2 * weight)


@pytest.mark.usefixtures("ray_session")
def test_a_grid_of_the_merge_in_a_plain_dict(tmp_path: Path) -> None:
    grid = merge_grid(["average", "reward_weighted"], [0.5, None])
    plain = {**config().to_dict(), **grid}
    rows = fit(WeightedPPOConfig.from_dict(plain), tmp_path)
    found = {(row.config["merge_strategy"], row.config["min_weight"]) for row in rows}
    assert found == {("average", None), ("reward_weighted", 0.5), ("reward_weighted", None)}
