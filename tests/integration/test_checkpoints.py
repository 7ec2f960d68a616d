"""Save, restore, continue: bit for bit what would have come without stopping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.fs
import pytest
from ray import tune
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.records import read_history

pytestmark = pytest.mark.usefixtures("ray_session")

ROUNDS_BEFORE, ROUNDS_AFTER = 2, 2


def make_config(**training: Any) -> WeightedPPOConfig:
    """Everything that has a state of its own is on: filter, adaptive KL, both schedules."""
    settings: dict[str, Any] = {
        "merge_strategy": "reward_weighted",
        "merge_unit": "env",
        "train_batch_size": 240,
        "minibatch_size": 60,
        "num_epochs": 3,
        "lr": [[0, 1e-3], [3000, 1e-4]],
        "entropy_coeff": [[0, 0.02], [2000, 0.0]],
        "use_kl_loss": True,
        "kl_target": 1e-4,  # So small that the coefficient moves in every round.
        "vf_clip_param": 1e3,
    }
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=2,
            batch_mode="complete_episodes",
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
        )
        .training(**{**settings, **training})
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .debugging(seed=5)
    )


def parameters(algorithm: WeightedPPO) -> dict[str, np.ndarray]:
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return {name: np.array(value) for name, value in state.items()}


def optimizer_state(algorithm: WeightedPPO) -> Any:
    return algorithm.learner_group.get_state()["learner"]["optimizer"]


def train(algorithm: WeightedPPO, rounds: int) -> list[dict[str, Any]]:
    return [algorithm.train() for _ in range(rounds)]


def assert_same_parameters(one: WeightedPPO, other: WeightedPPO) -> None:
    for name, value in parameters(one).items():
        np.testing.assert_array_equal(value, parameters(other)[name], err_msg=name)


def assert_same_actors(one: WeightedPPO, other: WeightedPPO, *, own: bool) -> None:
    """Every worker's own parameters and optimizer state, bit for bit."""
    first, second = (algorithm.learner_group.per_worker_parameters() for algorithm in (one, other))
    assert (first is not None) == (second is not None) == own
    for name, stack in (first or {}).items():
        np.testing.assert_array_equal(stack, second[name], err_msg=name)
        assert any((stack[0] != row).any() for row in stack[1:])
    assert str(optimizer_state(one)) == str(optimizer_state(other))


@pytest.fixture
def stopped() -> Iterator[list[WeightedPPO]]:
    """Algorithms put into this list are stopped at the end of the test."""
    algorithms: list[WeightedPPO] = []
    yield algorithms
    for algorithm in algorithms:
        algorithm.stop()


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners", "strategy"),
    [
        (2, 0, "reward_weighted"),
        pytest.param(2, 1, "reward_weighted", marks=pytest.mark.slow),
        (0, 0, "reward_weighted"),
        (0, 0, "actor_average"),
        pytest.param(2, 2, "actor_sum", marks=pytest.mark.slow),
    ],
)
def test_continuing_equals_not_having_stopped(
    tmp_path: Path,
    stopped: list[WeightedPPO],
    num_env_runners: int,
    num_learners: int,
    strategy: str,
) -> None:
    config = make_config(merge_strategy=strategy).env_runners(num_env_runners=num_env_runners)
    config.learners(num_learners=num_learners, num_cpus_per_learner=0.5)
    if num_env_runners == 0:
        config.env_runners(num_envs_per_env_runner=4)
    straight = config.build_algo()
    stopped.append(straight)
    train(straight, ROUNDS_BEFORE)
    straight.save_to_path(tmp_path / "checkpoint")
    at_checkpoint = parameters(straight)
    expected = train(straight, ROUNDS_AFTER)

    resumed = WeightedPPO.from_checkpoint(str(tmp_path / "checkpoint"))
    stopped.append(resumed)
    for name, value in parameters(resumed).items():
        np.testing.assert_array_equal(value, at_checkpoint[name])
    found = train(resumed, ROUNDS_AFTER)

    assert_same_parameters(straight, resumed)
    assert_same_actors(straight, resumed, own=strategy.startswith("actor"))
    assert any((parameters(straight)[n] != v).any() for n, v in at_checkpoint.items())
    for before, after in zip(expected, found, strict=True):
        assert before["merge"] == after["merge"]
        learner, again = (r["learners"]["default_policy"] for r in (before, after))
        assert learner["curr_kl_coeff"] == again["curr_kl_coeff"] != 0.2
        assert learner["curr_entropy_coeff"] == again["curr_entropy_coeff"]
        assert before["num_env_steps_sampled_lifetime"] == after["num_env_steps_sampled_lifetime"]


@pytest.mark.slow
def test_an_older_checkpoint_goes_into_a_running_algorithm(
    tmp_path: Path, stopped: list[WeightedPPO]
) -> None:
    algorithm = make_config().build_algo()
    stopped.append(algorithm)
    train(algorithm, ROUNDS_BEFORE)
    algorithm.save_to_path(tmp_path / "checkpoint")
    expected = train(algorithm, ROUNDS_AFTER)[-1]
    end = parameters(algorithm)

    algorithm.restore_from_path(str(tmp_path / "checkpoint"))
    assert any((end[name] != value).any() for name, value in parameters(algorithm).items())
    found = train(algorithm, ROUNDS_AFTER)[-1]

    for name, value in parameters(algorithm).items():
        np.testing.assert_array_equal(value, end[name], err_msg=name)
    assert found["training_iteration"] == expected["training_iteration"]
    algorithm.save_to_path(tmp_path / "end")
    history = read_history(algorithm.logdir)
    rows = Counter(zip(history["round"].to_pylist(), history["worker"].to_pylist(), strict=True))
    assert rows == Counter((r, w) for r in range(1, 5) for w in range(4))


@pytest.mark.slow
def test_truncated_episodes_restart_but_nothing_else_is_lost(
    tmp_path: Path, stopped: list[WeightedPPO]
) -> None:
    config = make_config().env_runners(batch_mode="truncate_episodes")
    straight = config.build_algo()
    stopped.append(straight)
    last = train(straight, ROUNDS_BEFORE)[-1]
    straight.save_to_path(tmp_path / "checkpoint")

    resumed = WeightedPPO.from_checkpoint(str(tmp_path / "checkpoint"))
    stopped.append(resumed)
    assert_same_parameters(straight, resumed)
    assert str(optimizer_state(straight)) == str(optimizer_state(resumed))
    (result,) = train(resumed, 1)
    steps = "num_env_steps_sampled_lifetime"
    assert result[steps] == pytest.approx(last[steps] + 240, abs=4)
    # The episodes that were in flight are not replayed: new ones have new numbers.
    assert min(resumed._progress.num_resets.values()) > min(straight._progress.num_resets.values())


@pytest.mark.slow
def test_a_mutated_learning_rate_and_merge_hold_at_once(
    tmp_path: Path, stopped: list[WeightedPPO]
) -> None:
    donor = make_config(lr=1e-3).build_algo()
    stopped.append(donor)
    train(donor, 1)
    donor.save_to_path(tmp_path / "checkpoint")

    mutated = make_config(lr=1e-5, merge_strategy="sum").build_algo()
    stopped.append(mutated)
    mutated.restore_from_path(str(tmp_path / "checkpoint"))
    assert_same_parameters(donor, mutated)
    optimizer = mutated.learner_group._learner.get_optimizer("default_policy")
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5]
    (result,) = train(mutated, 1)
    weights = [worker["weight"] for worker in result["merge"]["workers"].values()]
    assert weights == [1.0] * 4


@pytest.mark.parametrize(
    ("before", "after"), [("average", "actor_average"), ("actor_sum", "reward_weighted")]
)
def test_a_checkpoint_goes_on_with_another_kind_of_merge(
    tmp_path: Path, stopped: list[WeightedPPO], caplog: Any, before: str, after: str
) -> None:
    """From its policy; the optimizer is that of other parameters."""
    donor = make_config(merge_strategy=before).env_runners(num_env_runners=0).build_algo()
    stopped.append(donor)
    train(donor, 2)
    donor.save_to_path(tmp_path / "checkpoint")
    other = make_config(merge_strategy=after).env_runners(num_env_runners=0).build_algo()
    stopped.append(other)
    other.restore_from_path(str(tmp_path / "checkpoint"))
    assert "going on from the saved policy with a new optimizer" in caplog.text
    assert_same_parameters(donor, other)
    for name, stack in (other.learner_group.per_worker_parameters() or {}).items():
        assert (stack == parameters(donor)[name]).all()
    (result,) = train(other, 1)
    # Restored metrics go on, as NaN where nothing is logged any more.
    assert (result["merge"].get("drift_mean", np.nan) >= 0) == after.startswith("actor")
    assert any((parameters(donor)[n] != v).any() for n, v in parameters(other).items())


@pytest.mark.parametrize(
    ("start", "mutated"), [("average", "actor_average"), ("actor_sum", "reward_weighted")]
)
def test_a_trial_goes_on_with_the_kind_of_merge_that_a_scheduler_gave_it(
    tmp_path: Path, stopped: list[WeightedPPO], start: str, mutated: str
) -> None:
    """A resumed experiment starts its trials with the settings of their start."""
    donor = make_config(merge_strategy=mutated).env_runners(num_env_runners=0).build_algo()
    resumed = make_config(merge_strategy=start).env_runners(num_env_runners=0).build_algo()
    stopped += [donor, resumed]
    donor._tune_trial_id = resumed._tune_trial_id = "one_trial"
    train(donor, 2)
    donor.save_to_path(tmp_path / "checkpoint")
    resumed.restore_from_path(str(tmp_path / "checkpoint"))
    assert resumed.config.merge_strategy == mutated
    for algorithm in (donor, resumed):
        train(algorithm, 2)
    assert_same_parameters(donor, resumed)
    assert_same_actors(donor, resumed, own=mutated.startswith("actor"))


class FailsOnce(WeightedPPO):
    """Raises in its third round, in the first attempt only."""

    def training_step(self) -> None:
        marker = Path(self.config.env_config["marker"])
        if self.rounds_done == 2 and not marker.exists():
            marker.touch()
            raise RuntimeError("lost")
        super().training_step()


@pytest.mark.slow
def test_tune_resumes_a_failed_trial_on_a_file_system_of_its_own(tmp_path: Path) -> None:
    """The history goes through the storage's file system, and has every row once."""
    store = tmp_path / "store"
    store.mkdir()
    filesystem = pyarrow.fs.SubTreeFileSystem(str(store), pyarrow.fs.LocalFileSystem())
    config = make_config()
    tune.register_env("forgiving_cartpole", lambda context: gym.make("CartPole-v1"))
    config.environment("forgiving_cartpole", env_config={"marker": str(tmp_path / "marker")})
    result = tune.Tuner(
        FailsOnce,
        param_space=config,
        run_config=tune.RunConfig(
            name="experiment",
            storage_path="results",
            storage_filesystem=filesystem,
            stop={"training_iteration": 4},
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    ).fit()[0]

    assert result.error is None
    assert (tmp_path / "marker").exists()
    history = read_history("results/experiment", filesystem=filesystem)
    rows = Counter(zip(history["round"].to_pylist(), history["worker"].to_pylist(), strict=True))
    assert rows == Counter((r, w) for r in range(1, 5) for w in range(4))
    assert set(history["trial_id"].to_pylist()) == {result.metrics["trial_id"]}
