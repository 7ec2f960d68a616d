"""Actor-avg and Actor-sum in whole runs: who samples with what, what is exported and recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.core.modules import swapped_parameters
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.records import read_history

pytestmark = pytest.mark.usefixtures("ray_session")


def make_config(strategy: str = "actor_average", **training: Any) -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=3)
        .training(
            merge_strategy=strategy,
            **{
                "merge_unit": "env",
                "train_batch_size": 180,
                "minibatch_size": 60,
                "num_epochs": 4,
                "lr": 1e-2,
                **training,
            },
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=4)
    )


class Keeps(WeightedPPOLearner):
    """Keeps what it was given to learn from, and the parameters that it started with."""

    def update(self, **kwargs: Any) -> Any:
        episodes = kwargs["training_data"].workers
        self.given = {
            worker: [
                (
                    e.get_observations(slice(0, len(e))),
                    e.get_extra_model_outputs("action_dist_inputs"),
                )
                for e in chunks
            ]
            for worker, chunks in episodes.items()
        }
        self.before = self.per_worker_parameters()
        return super().update(**kwargs)


@pytest.mark.parametrize("unit", ["env", "env_runner"])
@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_worker_acts_with_its_own_parameters(unit, remote):
    config = make_config(merge_unit=unit).learners(learner_class=Keeps)
    if unit == "env_runner":
        config.env_runners(num_env_runners=3, num_envs_per_env_runner=1)
    elif remote:
        config.env_runners(num_env_runners=2, num_envs_per_env_runner=2)
    config.env_runners(num_cpus_per_env_runner=0.5)
    algorithm = config.build_algo()
    for _ in range(3):
        algorithm.train()
    learner = algorithm.learner_group._learner
    module = learner.module["default_policy"]
    assert len(learner.given) == config.worker_layout.num_workers

    def inputs(worker: int, obs: np.ndarray) -> np.ndarray:
        tensors = {name: torch.tensor(stack[worker]) for name, stack in learner.before.items()}
        with torch.no_grad(), swapped_parameters(module, tensors):
            output = module.forward_exploration({"obs": torch.tensor(obs)})
        return output["action_dist_inputs"].numpy()

    for worker, chunks in learner.given.items():
        for obs, found in chunks:
            np.testing.assert_allclose(inputs(worker, obs), found, rtol=1e-4, atol=1e-5)
            other = (worker + 1) % len(learner.given)
            assert np.abs(inputs(other, obs) - found).max() > 1e-3
    algorithm.stop()


def exported(algorithm: WeightedPPO) -> dict[str, np.ndarray]:
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return {name: np.asarray(value) for name, value in state.items()}


@pytest.mark.parametrize("export", ["best", "mean"])
def test_the_exported_policy_is_the_best_workers_or_the_mean(export, tmp_path):
    algorithm = make_config(actor_export=export).build_algo()
    results = [algorithm.train() for _ in range(3)]
    workers = results[-1]["merge"]["workers"]
    returns = algorithm._progress.last_returns
    best = max(sorted(returns), key=returns.__getitem__)
    assert len(set(returns.values())) > 1
    stacks = algorithm.learner_group.per_worker_parameters()
    for name, stack in stacks.items():
        wanted = stack[best] if export == "best" else stack.mean(axis=0)
        np.testing.assert_allclose(exported(algorithm)[name], wanted, rtol=1e-5, atol=1e-7)
        assert np.abs(stack[0] - stack[1]).max() > 0
    # The evaluation's policy, and that of the checkpoint, are the exported one.
    for name, value in algorithm.get_module("default_policy").named_parameters():
        np.testing.assert_array_equal(value.detach().numpy(), exported(algorithm)[name])
    algorithm.save_to_path(tmp_path / "checkpoint")
    restored = WeightedPPO.from_checkpoint(str(tmp_path / "checkpoint"))
    for name, value in exported(restored).items():
        np.testing.assert_array_equal(value, exported(algorithm)[name])
    assert set(workers) == {"0", "1", "2"}
    algorithm.stop()
    restored.stop()


def test_evaluation_uses_the_exported_policy_and_leaves_training_alone():
    plain = make_config().build_algo()
    config = make_config().evaluation(evaluation_interval=1, evaluation_duration=2)
    evaluated = config.build_algo()
    for _ in range(2):
        first, second = plain.train(), evaluated.train()
    assert second["evaluation"]["env_runners"]["num_episodes"] == 2
    module = evaluated.eval_env_runner_group.local_env_runner.module
    for name, value in module.named_parameters():
        np.testing.assert_array_equal(value.detach().numpy(), exported(evaluated)[name])
    assert first["merge"] == second["merge"]
    for name, stack in plain.learner_group.per_worker_parameters().items():
        np.testing.assert_array_equal(stack, evaluated.learner_group.per_worker_parameters()[name])
    plain.stop()
    evaluated.stop()


def test_drift_is_measured_and_recorded():
    algorithm = make_config("actor_sum", num_epochs=1).build_algo()
    results = [algorithm.train() for _ in range(2)]
    stacks = algorithm.learner_group.per_worker_parameters()
    algorithm.stop()
    flat = np.stack(
        [np.concatenate([s[w].ravel() for s in stacks.values()]) for w in range(3)]
    ).astype(np.float64)
    mean = flat.mean(axis=0)
    expected = np.linalg.norm(flat - mean, axis=1) / np.linalg.norm(mean)
    merge = results[-1]["merge"]
    found = [merge["workers"][str(worker)]["drift"] for worker in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert merge["drift_mean"] == pytest.approx(expected.mean(), rel=1e-5)
    assert expected.min() > 0
    history = read_history(algorithm.logdir).to_pandas()
    assert list(history[history["round"] == 2]["drift"]) == pytest.approx(found)
    assert merge["workers"]["0"]["weight"] == 1.0


def test_an_observation_filter_and_reproducible_seeds():
    found = []
    for _ in range(2):
        config = make_config().env_runners(
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
            batch_mode="complete_episodes",
        )
        algorithm = config.build_algo()
        algorithm.train()
        algorithm.train()
        found.append(algorithm.learner_group.per_worker_parameters())
        algorithm.stop()
    for name, stack in found[0].items():
        np.testing.assert_array_equal(stack, found[1][name])


@pytest.mark.parametrize("strategy", ["reward_weighted", "loss_weighted"])
def test_any_strategy_can_be_combined_with_own_parameters(strategy):
    """Three rounds, against the same with autograd."""
    found = []
    for fast in (True, False):
        config = make_config(strategy, per_worker_parameters=True).learners(fast_learner=fast)
        algorithm = config.build_algo()
        results = [algorithm.train() for _ in range(3)]
        found.append((algorithm.learner_group.per_worker_parameters(), results[-1]["merge"]))
        algorithm.stop()
    (stacks, merge), (reference, merge_reference) = found
    for name, stack in reference.items():
        np.testing.assert_allclose(stacks[name], stack, rtol=0, atol=1e-6)
        assert np.abs(stack[0] - stack[1]).max() > 1e-3
    weights = [merge["workers"][str(worker)]["weight"] for worker in range(3)]
    assert sum(weights) == pytest.approx(1 + 3 * 1 / 3)  # 1 + N m
    assert np.ptp(weights) > 1e-2
    assert merge["drift_mean"] == pytest.approx(merge_reference["drift_mean"], rel=1e-4)


def test_actor_average_is_average_with_own_parameters():
    found = []
    for strategy, own in (("actor_average", None), ("average", True)):
        algorithm = make_config(strategy, per_worker_parameters=own).build_algo()
        for _ in range(2):
            algorithm.train()
        found.append(algorithm.learner_group.per_worker_parameters())
        algorithm.stop()
    for name, stack in found[0].items():
        np.testing.assert_array_equal(stack, found[1][name])


def test_shared_strategies_have_no_drift():
    algorithm = make_config("average").build_algo()
    result = algorithm.train()
    assert "drift_mean" not in result["merge"]
    assert "drift" not in result["merge"]["workers"]["0"]
    assert algorithm.learner_group.per_worker_parameters() is None
    algorithm.stop()
