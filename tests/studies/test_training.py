import json
import math

import numpy as np
import pytest

from studies import training
from studies.design import Arm, Task

TASK = Task(
    "CartPole",
    "CartPole-v1",
    total_steps=1024,
    threshold=15.0,
    num_workers=4,
    hidden=(8,),
    held_out_episodes=3,
    training={"train_batch_size": 256, "minibatch_size": 128, "num_epochs": 2},
)
R = Arm("R", {"merge_strategy": "reward_weighted"})


def reproducible(row):
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_run_depends_on_its_seed_and_not_on_what_ran_before(ray_session):
    first = training.train(TASK, R, 1)
    training.train(TASK, Arm("average", {"merge_strategy": "average"}), 2)
    assert reproducible(training.train(TASK, R, 1)) == reproducible(first)
    assert training.train(TASK, R, 2)["score"] != first["score"]
    assert first["env_steps"][-1] == first["num_steps"] >= 1024
    assert len(first["env_steps"]) == len(first["score"]) == 4
    assert len(first["held_out"]) == 1
    assert first["worst"] == []


def test_contexts_have_a_worst_worker_and_held_out_returns_of_their_own(ray_session):
    contexts = ({"deviation": 0.0}, {"deviation": 3.0})
    task = Task(
        **{**vars(TASK), "env": "study/NoisyCartPole", "score": "workers"}
        | {"contexts": contexts, "held_out": ({"deviation": 0.0}, {"deviation": 50.0})}
    )
    row = training.train(task, R, 1)
    assert len(row["held_out"]) == 2
    assert row["held_out"][0] != row["held_out"][1]
    last = -1
    assert row["worst"][last] < row["score"][last]


def test_diagnostics_are_kept_and_change_nothing(ray_session):
    average = {"merge_strategy": "average"}
    plain = training.train(TASK, Arm("average", average), 1)
    measured = training.train(TASK, Arm("average", {**average, "merge_diagnostics_interval": 2}), 1)
    assert measured["score"] == plain["score"]
    assert plain["diagnostics"] is None
    found = json.loads(measured["diagnostics"])
    assert found["speed/average"] == pytest.approx(1.0)
    assert 0.0 < found["speed/reward_weighted"] < math.inf
    assert "noise_scale" in found


def test_means_of_diagnostics_leave_out_what_is_not_finite():
    rounds = [
        training.flat_diagnostics({"agreement": 0.5, "speed": {"sum": 1.0}, "policy": {"a": 1.0}}),
        training.flat_diagnostics({"agreement": math.nan, "speed": {"sum": 4.0}}),
        training.flat_diagnostics({}),
    ]
    assert rounds[0] == {"agreement": 0.5, "speed/sum": 1.0}
    assert training.mean_diagnostics(rounds) == {"agreement": 0.5, "speed/sum": pytest.approx(2.0)}
    assert training.mean_diagnostics([]) == {}


def test_an_arm_can_change_its_task():
    config = training.config_of(TASK, Arm("two", task={"num_workers": 2, "hidden": (4, 4)}), 0)
    assert config.num_envs_per_env_runner == 2
    assert config.model_config["fcnet_hiddens"] == [4, 4]


def test_workers_count_the_same_however_many_episodes_they_have():
    scores = training.RecentReturns(2)
    scores.add({"0": {"episode_return": 1.0, "num_episodes": 9}})
    assert math.isnan(scores.mean())
    scores.add(
        {
            "0": {"episode_return": 1.0, "num_episodes": 1},
            "1": {"episode_return": 0.0, "num_episodes": 1},
        }
    )
    assert scores.mean() == 0.5
    assert scores.worst == 0.0
    assert scores.mean(every=2) == 1.0, "the workers of the first of two contexts"


def test_a_worker_is_scored_by_its_last_episodes():
    scores = training.RecentReturns(1)
    for episode_return, count in ((0.0, 6), (1.0, 6), (1.0, 0), (2.0, 6)):
        scores.add({"0": {"episode_return": episode_return, "num_episodes": count}})
    assert scores.mean() == pytest.approx(1.5)  # The first six are more than the last ten need.


def test_a_summary_counts_every_round_and_keeps_a_few_points():
    steps = np.arange(1.0, 1001.0)
    score = np.where(steps >= 300, 20.0, 0.0)
    score[499] = 0.0
    curve = {"env_steps": steps, "score": score, "worst": score}
    row = training.summary(curve, TASK)
    assert row["steps_to_threshold"] == 300
    held = training.summary(curve, Task(**{**vars(TASK), "hold": 300}))
    assert held["steps_to_threshold"] == 501
    assert row["final_score"] == 20.0
    assert len(row["env_steps"]) == len(row["score"]) == training.MOST_POINTS
    assert row["env_steps"][0] == 1
    assert row["env_steps"][-1] == 1000
    never = training.summary(curve, Task(**{**vars(TASK), "threshold": 21.0}))
    assert never["steps_to_threshold"] is None


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "APPO", "IMPALA"])
def test_rllibs_own_algorithms_are_trained_and_scored_alike(ray_session, algorithm):
    row = training.train(TASK, Arm(algorithm, algorithm=algorithm), 1)
    assert row["num_steps"] >= 1024
    assert 9.0 < row["score"][-1] < 60.0  # CartPole, hardly trained.
    assert len(row["held_out"]) == 1


def test_a_stock_algorithm_gets_the_settings_that_it_has():
    task = Task(**{**vars(TASK), "training": {**TASK.training, "clip_param": 0.1, "gamma": 0.9}})
    ppo = training.config_of(task, Arm("PPO", algorithm="PPO"), 0)
    assert (ppo.total_train_batch_size, ppo.minibatch_size, ppo.num_epochs) == (256, 128, 2)
    assert (ppo.clip_param, ppo.gamma) == (0.1, 0.9)
    impala = training.config_of(task, Arm("IMPALA", {"lr": 0.5}, algorithm="IMPALA"), 0)
    assert (impala.gamma, impala.lr) == (0.9, 0.5)
    assert type(impala).__name__ == "IMPALAConfig"
