"""What is said of a checkpoint that cannot be restored into an algorithm."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.checkpoints import restoring


def config(env: str) -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment(env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(merge_unit="env", train_batch_size=40, minibatch_size=20, num_epochs=1)
    )


@pytest.fixture(scope="module")
def checkpoint(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    algorithm = config("CartPole-v1").build_algo()
    algorithm.save_to_path(str(folder))
    algorithm.stop()
    return folder


def test_another_environment_says_how_it_differs(checkpoint: Path) -> None:
    algorithm = config("Acrobot-v1").build_algo()
    try:
        with pytest.raises(
            ValueError,
            match=r"is of another environment: .* observation_space Box\(.*, \(4,\), float32\), "
            r"found Box\(.*, \(6,\), float32\) and its action_space Discrete\(2\), found "
            r"Discrete\(3\)\. Use that environment",
        ):
            algorithm.restore_from_path(str(checkpoint))
    finally:
        algorithm.stop()


def test_a_torn_file_is_named_and_the_whole_one_is_restored(checkpoint: Path) -> None:
    algorithm = config("CartPole-v1").build_algo()
    file = checkpoint / "learner_group" / "learner" / "state.pkl"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"not: learner_group/learner/state\.pkl\. Take an"):
            algorithm.restore_from_path(str(checkpoint))
        file.write_bytes(whole)
        algorithm.restore_from_path(str(checkpoint))
    finally:
        file.write_bytes(whole)
        algorithm.stop()


def test_other_errors_are_left_as_they_are(checkpoint: Path) -> None:
    with pytest.raises(KeyError, match="of its own"), restoring(checkpoint):
        raise KeyError("of its own")
