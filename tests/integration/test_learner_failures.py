"""A learner that dies or raises ends the round at once; the rounds before are not lost."""

from __future__ import annotations

import errno
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.fault_tolerance import RESCUE_DIR
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import LearnerFailedError
from rllib_weighted.records import read_history

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


def make_config(num_learners: int = 2, **training: Any) -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=4,
            batch_mode="complete_episodes",
            num_cpus_per_env_runner=0.5,
        )
        .learners(num_learners=num_learners, num_cpus_per_learner=0.5)
        .training(
            merge_unit="env",
            train_batch_size=160,
            minibatch_size=40,
            num_epochs=2,
            kl_target=1e-4,
            **training,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=5)
    )


def parameters(algorithm: WeightedPPO) -> np.ndarray:
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return np.concatenate([np.ravel(value) for value in state.values()])


def kill_learner(algorithm: WeightedPPO, index: int) -> None:
    ray.kill(algorithm.learner_group._workers[index])


@pytest.mark.parametrize(("num_learners", "victim"), [(2, 1), (2, 0), (1, 0)])
def test_what_a_dead_learner_leaves_goes_on_as_if_nothing_had_been(num_learners, victim):
    undisturbed = make_config(num_learners=0).build_algo()
    for _ in range(4):
        undisturbed.train()
    algorithm = make_config(num_learners).build_algo()
    algorithm.train()
    algorithm.train()
    kill_learner(algorithm, victim)
    started = time.monotonic()
    with pytest.raises(
        LearnerFailedError, match=r"Learner .* died[\s\S]*after round [12] is saved"
    ) as error:
        algorithm.train()
    assert time.monotonic() - started < 60  # It used to hang for half an hour.
    folder = Path(algorithm.logdir) / RESCUE_DIR
    assert str(folder) in str(error.value)
    algorithm.stop()
    restored = WeightedPPO.from_checkpoint(str(folder))
    assert restored.config.num_learners == num_learners
    assert restored.training_iteration == restored.rounds_done
    while restored.training_iteration < 4:
        result = restored.train()
    assert result["num_env_steps_sampled_lifetime"] > 640
    np.testing.assert_allclose(parameters(restored), parameters(undisturbed), rtol=1e-5, atol=1e-6)
    restored.stop()
    undisturbed.stop()


class Raises(WeightedPPOLearner):
    """Raises in the second round, in one of the learners only."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        if self.collectives.index == 1 and self.weights_version == 2:
            raise ArithmeticError("the custom loss is wrong")
        return super().compute_loss_for_module(**kwargs)


def test_an_exception_in_one_of_two_learners_is_shown_and_hangs_nobody():
    algorithm = make_config().learners(learner_class=Raises).build_algo()
    algorithm.train()
    started = time.monotonic()
    with pytest.raises(
        LearnerFailedError, match=r"Learner 2 of 2 raised[\s\S]*the custom loss is wrong"
    ):
        algorithm.train()
    assert time.monotonic() - started < 60
    algorithm.stop()


class HasNoRoom(WeightedPPOLearner):
    def get_metadata(self) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "/full")


def test_a_checkpoint_that_a_remote_learner_cannot_write_is_an_error(tmp_path):
    algorithm = make_config(1).learners(learner_class=HasNoRoom).build_algo()
    algorithm.train()
    with pytest.raises(OSError, match="No space left on device: '/full'"):
        algorithm.save_to_path(str(tmp_path))
    algorithm.train()  # The learner lives, and the run goes on.
    algorithm.stop()


def kill_after_round_2(algorithm: WeightedPPO, *, marker: Path, **kwargs: Any) -> None:
    if algorithm.rounds_done == 2 and not marker.exists():
        marker.touch()
        kill_learner(algorithm, -1)


def test_tune_resumes_a_trial_whose_learner_died(tmp_path):
    once = functools.partial(kill_after_round_2, marker=tmp_path / "killed")
    config = make_config().callbacks(on_train_result=once)
    results = tune.Tuner(
        "WeightedPPO",
        param_space=config,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            name="run",
            stop={"training_iteration": 4},
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    ).fit()
    assert (tmp_path / "killed").exists()
    assert results.num_errors == 0
    (result,) = results
    assert result.metrics["training_iteration"] == 4
    assert list(result.metrics_dataframe["training_iteration"]) == [1, 2, 3, 4]
    rows = read_history(str(tmp_path / "run")).to_pandas()
    assert sorted(rows["round"]) == [round for round in (1, 2, 3, 4) for _ in range(4)]
