"""RLlib's own settings keep working: tiny runs, each of which must move the parameters."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.learning.connectors import ScaleRewards
from rllib_weighted.learning.learner import WeightedPPOLearner

pytestmark = pytest.mark.usefixtures("ray_session")

MODEL = DefaultModelConfig(fcnet_hiddens=[8])


class RandomEnv(gym.Env):
    """Episodes of 7 random steps in the spaces of `config`; the return is the length."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.observation_space = config.get("observation", gym.spaces.Box(-1, 1, (3,), np.float32))
        self.action_space = config.get("action", gym.spaces.Discrete(2))
        self.scale = config.get("scale", 1.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.steps += 1
        done = self.steps == 7
        return self.observation_space.sample(), self.scale, done, False, {}


def tiny(env: Any = "CartPole-v1", *, num_env_runners: int = 0, **env_config: Any) -> Any:
    """Two workers: two env runners, or two sub-environments of the local one."""
    config = (
        WeightedPPOConfig()
        .environment(env, env_config=env_config)
        .env_runners(
            num_env_runners=num_env_runners, num_envs_per_env_runner=1 if num_env_runners else 2
        )
        .training(
            merge_strategy="reward_weighted",
            merge_unit="env",
            train_batch_size=64,
            minibatch_size=32,
            num_epochs=2,
            lr=0.01,
            use_kl_loss=False,
        )
        .rl_module(model_config=MODEL)
        .debugging(seed=3)
        .fault_tolerance(restart_failed_env_runners=False)
    )
    return config


class Run:
    """Trains a few rounds; says what came out."""

    def __init__(self, config: Any, rounds: int = 2) -> None:
        algo = config.build_algo()
        try:
            module = algo.get_module()
            before = self._parameters(algo)
            self.results = [algo.train() for _ in range(rounds)]
            self.parameters = self._parameters(algo)
            self.coefficients = [r["learners"][DEFAULT_MODULE_ID] for r in self.results]
            assert module is not None
        finally:
            algo.stop()
        assert torch.isfinite(self.parameters).all()
        assert not torch.equal(before, self.parameters)
        assert [r["training_iteration"] for r in self.results] == list(range(1, rounds + 1))
        for result in self.results:
            assert result["merge"]["num_dropped"] == 0
            assert result["merge"]["num_skipped_steps"] == 0

    @staticmethod
    def _parameters(algo: Any) -> torch.Tensor:
        state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]
        arrays = state[DEFAULT_MODULE_ID].values()
        return torch.cat([torch.tensor(np.array(array)).flatten() for array in arrays])


@pytest.fixture(scope="module")
def plain():
    return Run(tiny())


def test_the_same_seed_gives_the_same_parameters(plain):
    assert torch.equal(Run(tiny()).parameters, plain.parameters)
    assert not torch.equal(Run(tiny().debugging(seed=4)).parameters, plain.parameters)


@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_gradient_clipping(by, plain):
    run = Run(tiny().training(grad_clip=1e-3, grad_clip_by=by))
    assert not torch.equal(run.parameters, plain.parameters)


def test_logged_gradients():
    """RLlib then returns no gradients from its postprocessing when nothing is clipped."""
    run = Run(tiny().reporting(log_gradients=True))
    key = "gradients_default_optimizer_global_norm"
    assert all(c[key] > 0 for c in run.coefficients)


def test_a_schedule_of_the_learning_rate_reaches_the_optimizer():
    run = Run(tiny().training(lr=[[0, 0.01], [128, 0.002]]))
    rates = [c["default_optimizer_learning_rate"] for c in run.coefficients]
    assert rates == pytest.approx([0.006, 0.002])


def test_the_adaptive_kl_coefficient_moves():
    run = Run(tiny().training(use_kl_loss=True, kl_coeff=0.5, kl_target=1e3))
    assert [c["curr_kl_coeff"] for c in run.coefficients] == pytest.approx([0.25, 0.125])
    assert all(c["mean_kl_loss"] > 0 for c in run.coefficients)


def test_a_schedule_of_the_entropy_coefficient():
    run = Run(tiny().training(entropy_coeff=[[0, 0.5], [128, 0.0]]))
    assert [c["curr_entropy_coeff"] for c in run.coefficients] == pytest.approx([0.25, 0.0])


def test_a_schedule_of_the_minimum_weight():
    run = Run(tiny().training(min_weight=[[0, 1.0], [128, 0.0]]))
    workers = [r["merge"]["workers"] for r in run.results]
    sums = [sum(w["weight"] for w in found.values()) for found in workers]
    # After 64 steps 1/2 each, after 128 none: sum w = 1 + 2 m.
    assert sums == pytest.approx([2.0, 1.0])


def test_shared_layers():
    model = DefaultModelConfig(fcnet_hiddens=[8], vf_share_layers=True)
    Run(tiny().rl_module(model_config=model).training(vf_loss_coeff=0.01))


@pytest.mark.parametrize("strategy", ["average", "sum", "loss_weighted"])
def test_strategies_differ(strategy, plain):
    run = Run(tiny().training(merge_strategy=strategy))
    assert not torch.equal(run.parameters, plain.parameters)


def test_minibatches_of_none_take_the_whole_batch():
    run = Run(tiny().training(minibatch_size=None, num_epochs=3))
    assert all(c["module_train_batch_size_mean"] == 64 for c in run.coefficients)
    assert all(c["num_module_steps_trained"] == 3 * 64 for c in run.coefficients)


def test_complete_episodes_give_workers_batches_of_unequal_size():
    run = Run(tiny().env_runners(batch_mode="complete_episodes"))
    for result in run.results:
        assert result["env_runners"]["num_env_steps_sampled"] >= 64
        episodes = [w["num_episodes"] for w in result["merge"]["workers"].values()]
        assert min(episodes) >= 1


def test_evaluation_counts_its_episodes():
    """The first round is evaluated whatever the interval; then every second one."""
    config = tiny().evaluation(
        evaluation_interval=2,
        evaluation_duration=3,
        evaluation_duration_unit="episodes",
        evaluation_num_env_runners=0,
    )
    run = Run(config)
    assert len(run.results) == 2
    for result in run.results:
        found = result["evaluation"]["env_runners"]
        assert found["num_episodes"] == 3
        assert found["episode_return_mean"] > 0


def test_a_recurrent_model():
    model = DefaultModelConfig(fcnet_hiddens=[4], use_lstm=True, lstm_cell_size=4, max_seq_len=8)
    run = Run(tiny().rl_module(model_config=model))
    for worker in run.results[-1]["merge"]["workers"].values():
        assert math.isfinite(worker["loss"])


class Penalty(WeightedPPOLearner):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        return loss + fwd_out[Columns.ACTION_DIST_INPUTS].square().mean()


def test_a_custom_loss(plain):
    run = Run(tiny().learners(learner_class=Penalty))
    assert not torch.equal(run.parameters, plain.parameters)


def test_scaled_rewards_leave_the_returns_alone():
    runs = [
        Run(tiny(RandomEnv, scale=2.0).training(learner_connector=connector))
        for connector in (None, lambda obs, action: ScaleRewards(0.01))
    ]
    for run in runs:
        for result in run.results:
            assert result["env_runners"]["episode_return_mean"] == 14  # 7 steps of 2
            for worker in result["merge"]["workers"].values():
                assert worker["episode_return"] == worker["signal"] == 14
    plain, scaled = (run.coefficients[0]["vf_loss"] for run in runs)
    assert scaled < plain / 100
    assert not torch.equal(runs[0].parameters, runs[1].parameters)


@pytest.mark.parametrize(
    "action",
    [
        gym.spaces.Box(-2.0, 2.0, (2,), np.float32),
        gym.spaces.MultiDiscrete([2, 3]),
    ],
    ids=["box", "multi-discrete"],
)
def test_action_spaces(action):
    Run(tiny(RandomEnv, action=action))


def test_dict_observations():
    space = gym.spaces.Dict(
        {"position": gym.spaces.Box(-1, 1, (2,), np.float32), "kind": gym.spaces.Discrete(3)}
    )
    config = tiny(RandomEnv, observation=space)
    Run(
        config.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations()
        )
    )


def test_an_observation_filter():
    config = tiny().env_runners(env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
    Run(config)


@pytest.mark.slow
def test_two_env_runners_and_a_learner_of_its_own():
    """Nothing depends on where the learner lives, to the last bit: not even which path it takes."""
    runs = [
        Run(tiny(num_env_runners=2).learners(num_learners=n, num_cpus_per_learner=1))
        for n in (0, 1)
    ]
    assert torch.equal(runs[0].parameters, runs[1].parameters)
    first, second = (run.results[-1]["merge"]["workers"] for run in runs)
    assert first == second
    assert len(first) == 2
