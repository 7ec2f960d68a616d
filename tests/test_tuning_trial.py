"""PPO as a trial of Tune: its resources, its evaluation, its settings over restarts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from ray import tune
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.result import TRIAL_INFO

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.fault_tolerance import RESCUE_DIR
from rllib_weighted.records import read_history

pytestmark = pytest.mark.usefixtures("ray_session")


def small_config() -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(merge_unit="env", train_batch_size=64, minibatch_size=32, num_epochs=1)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=1)
    )


@pytest.fixture
def build() -> Iterator[Any]:
    """Builds algorithms, in a trial of Tune if it is named."""
    algorithms = []

    def build_one(config: WeightedPPOConfig, trial_id: str | None = None) -> WeightedPPO:
        settings = config.to_dict()
        if trial_id is not None:
            settings[TRIAL_INFO] = SimpleNamespace(trial_id=trial_id, trial_name=trial_id)
        algorithms.append(WeightedPPO(settings))
        return algorithms[-1]

    yield build_one
    for algorithm in algorithms:
        algorithm.stop()


def test_the_first_round_is_evaluated_and_the_rounds_between_are_not(build: Any) -> None:
    config = small_config().evaluation(evaluation_interval=3, evaluation_duration=2)
    algorithm = build(config)
    results = [algorithm.train()["evaluation"] for _ in range(7)]
    assert [result["training_iteration"] for result in results] == [1, 1, 3, 3, 3, 6, 6]
    assert results[0] == results[1] != results[2] == results[3] == results[4] != results[5]
    assert results[5] == results[6]
    for result in results:
        assert result["env_runners"]["num_episodes"] == 2
        assert math.isfinite(result["env_runners"]["episode_return_mean"])


def test_a_restored_trial_knows_its_last_evaluation(build: Any, tmp_path: Path) -> None:
    config = small_config().evaluation(evaluation_interval=3, evaluation_duration=2)
    saved = build(config)
    for _ in range(3):
        evaluation = saved.train()["evaluation"]
    path = saved.save_to_path(str(tmp_path / "checkpoint"))
    restored = build(config)
    restored.restore_from_path(path)
    assert restored.train()["evaluation"] == evaluation


class _Indifferent(CartPoleEnv):
    def __init__(self, context: Any) -> None:
        super().__init__()


class _Scores(WeightedPPO):
    """A trial whose evaluations have given returns: those of round 1, 2, 4 and so on."""

    def evaluate(self, parallel_train_future: Any = None) -> Any:
        score = self.config.env_config["scores"][(self.iteration + 1) // 2]
        return {"env_runners": {"episode_return_mean": score}}  # Rounds 1, 2, 4.


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "best"), [("all", 0), ("avg", 0), ("last", 1)])
def test_tunes_own_choice_survives_rounds_without_evaluation(
    tmp_path: Path, scope: str, best: int
) -> None:
    # a: 4, 36, 36, 16, 16: max 36, mean 21.6, last 16. b: 4, 20, 20, 20, 20: 20, 16.8, 20.
    scores = [(4.0, 36.0, 16.0), (4.0, 20.0, 20.0)]
    config = small_config().evaluation(evaluation_interval=2, evaluation_num_env_runners=0)
    space = {**config.to_dict(), "env_config": tune.grid_search([{"scores": s} for s in scores])}
    metric = "evaluation/env_runners/episode_return_mean"
    results = tune.Tuner(
        _Scores,
        param_space={**space, "env": _Indifferent},
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), stop={"training_iteration": 5}, verbose=0
        ),
    ).fit()
    found = results.get_best_result(metric, "max", scope=scope)
    assert found.config["env_config"]["scores"] == scores[best]
    assert found.metrics["evaluation"]["env_runners"]["episode_return_mean"] == scores[best][-1]


def test_a_trial_that_never_fits_is_refused_with_the_numbers(monkeypatch: Any) -> None:
    """In a `tune.Tuner` of one's own too: it asks for a trial's resources before it starts one."""
    config = small_config().training(minibatch_size=None).env_runners(num_env_runners=20)
    with pytest.raises(ValueError, match=r"takes 21 CPUs and Ray has 8 CPUs.*\(=20\)"):
        tune.Tuner("WeightedPPO", param_space=config).fit()
    request = WeightedPPO.default_resource_request(small_config())
    assert request.required_resources == {"CPU": 1}
    monkeypatch.setenv("RLLIB_WEIGHTED_CLUSTER_GROWS", "1")
    assert WeightedPPO.default_resource_request(config).required_resources == {"CPU": 21}


def total_weight(result: dict[str, Any]) -> float:
    return sum(worker["weight"] for worker in result["merge"]["workers"].values())


@pytest.mark.parametrize(
    ("trial_id", "strategy", "total", "saves"),
    [
        # Its own checkpoint: what a scheduler has changed before the experiment was resumed.
        ("one", "reward_weighted", 1 + 2 * 3.0, False),
        # Another trial's: a clone, with what it was given.
        ("two", "average", 1.0, True),
        # No trial at all.
        (None, "average", 1.0, False),
    ],
)
def test_settings_of_a_restored_trial(
    build: Any, tmp_path: Path, trial_id: str | None, strategy: str, total: float, saves: bool
) -> None:
    mutated = small_config().training(merge_strategy="reward_weighted", min_weight=3.0)
    saved = build(mutated, "one")
    saved.train()
    path = saved.save_to_path(str(tmp_path / "checkpoint"))
    restored = build(small_config().training(merge_strategy="average"), trial_id)
    restored.restore_from_path(path)
    results = [restored.train() for _ in range(2)]
    assert restored.config.merge_strategy == strategy
    assert [total_weight(result) for result in results] == pytest.approx([total, total])
    # A clone saves its new settings with its first round, so that a kill does not undo them.
    assert [result.get("should_checkpoint", False) for result in results] == [saves, False]


def test_a_reused_process_starts_over_with_the_new_config(build: Any) -> None:
    """As Tune does with `reuse_actors`: nothing of the trial before is left."""
    fresh = build(small_config().training(merge_strategy="average", gamma=0.5), "two")
    reused = build(small_config(), "one")
    reused.train()
    settings = {
        **small_config().training(merge_strategy="average", gamma=0.5).to_dict(),
        TRIAL_INFO: SimpleNamespace(trial_id="two", trial_name="two"),
    }
    assert reused.reset(settings)
    results = [algorithm.train() for algorithm in (fresh, reused)]
    assert [result["training_iteration"] for result in results] == [1, 1]
    losses = [result["learners"]["default_policy"]["total_loss"] for result in results]
    assert losses[0] == losses[1]
    assert reused.config.gamma == 0.5
    assert reused._tune_trial_id == "two"


@pytest.mark.slow
def test_parallel_evaluation_reports_an_episode_in_rounds_shorter_than_one(build: Any) -> None:
    """With `evaluation_duration="auto"` RLlib stops with the round, and reports nothing."""
    config = small_config().training(train_batch_size=20, minibatch_size=20)
    algorithm = build(
        config.evaluation(
            evaluation_interval=1,
            evaluation_num_env_runners=1,
            evaluation_duration="auto",
            evaluation_parallel_to_training=True,
        )
    )
    results = [algorithm.train()["evaluation"]["env_runners"] for _ in range(4)]
    for result in results:
        assert result["num_episodes"] >= 1
        assert result["episode_return_mean"] >= 1
    # Not the first one's again: with newer and newer weights.
    assert results[-1]["weights_seq_no"] > results[1]["weights_seq_no"] > 0


@pytest.mark.parametrize(("donor", "rounds"), [("own", [1, 2, 3]), ("other", [1])])
def test_the_history_keeps_what_was_rescued_unless_the_trial_is_a_clone_now(
    build: Any, tmp_path: Path, donor: str, rounds: list[int]
) -> None:
    saved = build(small_config(), donor)
    saved.train()
    saved.save_to_path(str(tmp_path))
    trial = build(small_config(), "own")
    for _ in range(3):
        trial.train()
    rescued = Path(trial.logdir, RESCUE_DIR)
    trial.save_to_path(str(rescued))
    (rescued / "rescue.json").write_text('{"training_iteration": 3}')
    trial._rescue.restore()  # As its `setup` does after a restart. Then Tune restores its own:
    trial.load_checkpoint(str(tmp_path))
    assert trial.rounds_done == rounds[-1]
    assert rescued.exists() == (donor == "own")
    assert sorted(set(read_history(trial.logdir)["round"].to_pylist())) == rounds
