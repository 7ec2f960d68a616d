"""`average` over one worker is stock RLlib's PPO, parameter for parameter."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_weighted import WeightedPPOConfig
from tests.learning.helpers import (
    build_group,
    copy_parameters,
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    small_config,
    standardized,
)

LENGTHS = [[9, 14, 1, 23, 8]]
STEPS = "num_env_steps_sampled_lifetime"
BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


class RealRowsOnly(GeneralAdvantageEstimation):
    """Stock advantages, standardised over real steps only.

    Stock RLlib counts the artificial row at the end of each episode chunk in the mean and the
    deviation of the advantages, with a value that depends on the next episode in the list. This
    is the one thing that is neutralised here; standardising twice is standardising once.
    """

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> Any:
        batch = super().__call__(batch=batch, **kwargs)
        for columns in batch.values():
            columns[Postprocessing.ADVANTAGES] = standardized(
                columns[Postprocessing.ADVANTAGES], columns[Columns.LOSS_MASK]
            )
        return batch


class StockLearner(PPOTorchLearner):
    def build(self) -> None:
        super().build()
        self._learner_connector.remove(GeneralAdvantageEstimation)
        self._learner_connector.append(
            RealRowsOnly(gamma=self.config.gamma, lambda_=self.config.lambda_)
        )


def pair(*, stock_learner: Any = StockLearner, ours: dict[str, Any] | None = None, **settings: Any):
    """Stock PPO's learner group and ours, with the same first parameters."""
    model = settings.pop("model", None)
    action_space = settings.pop("action_space", gym.spaces.Discrete(2))
    groups = []
    for base in (PPOConfig, WeightedPPOConfig):
        config = small_config(1, base).training(**settings)
        if model is not None:
            config.rl_module(model_config=model)
        if base is PPOConfig:
            config.learners(learner_class=stock_learner)
        else:
            config.training(**(ours or {}))
        groups.append(build_group(config, action_space=action_space))
    copy_parameters(*groups)
    return groups


def updated(groups: list[Any], *, num_rounds: int = 3, num_epochs: int = 4, **kwargs: Any):
    """Parameters of both after a few rounds over the same episodes."""
    stock, ours = groups
    for k in range(num_rounds):
        common = {
            "num_epochs": num_epochs,
            "minibatch_size": None,
            "shuffle_batch_per_epoch": True,
            "timesteps": {STEPS: 100 * (k + 1)},
        }
        stock.update(episodes=make_episodes(LENGTHS, seed=k, **kwargs), **common)
        ours.update(
            episodes=make_episodes(LENGTHS, seed=k, **kwargs),
            merge=make_request(1, "average", round=k + 1),
            **common,
        )
    return flat_parameters(stock), flat_parameters(ours)


def kl_coefficient(group: Any) -> float:
    return float(learner_of(group).curr_kl_coeffs_per_module[DEFAULT_MODULE_ID])


def learning_rate(group: Any) -> float:
    (optimizer,) = learner_of(group)._named_optimizers.values()
    return float(optimizer.param_groups[0]["lr"])


SETTINGS = {
    "plain": {},
    "one worker is the batch": {"ours": {"advantage_normalization": "batch"}},
    "kl": {"use_kl_loss": True, "kl_coeff": 0.5},
    "kl, far from its target": {"use_kl_loss": True, "kl_coeff": 0.5, "kl_target": 1e-5},
    "entropy schedule": {"entropy_coeff": [[0, 0.5], [300, 0.0]]},
    "lr schedule": {"lr": [[0, 0.01], [300, 0.0001]]},
    "no critic": {"use_critic": False},
    "clipped value loss": {"vf_clip_param": 0.05},
    "clip by value": {"grad_clip": 0.01, "grad_clip_by": "value"},
    "clip by norm": {"grad_clip": 0.01, "grad_clip_by": "norm"},
    "clip by global norm": {"grad_clip": 0.01, "grad_clip_by": "global_norm"},
    "shared layers": {
        "model": DefaultModelConfig(fcnet_hiddens=[8], vf_share_layers=True),
        "vf_loss_coeff": 0.3,
    },
    "continuous actions": {"action_space": BOX},
    "free standard deviation": {
        "action_space": BOX,
        "model": DefaultModelConfig(fcnet_hiddens=[8], free_log_std=True),
        "use_kl_loss": True,
    },
}
# Adam divides by the root of the second moment: rounding of a gradient entry near 0 is scaled up
# to a part of the learning rate. SGD-like tolerances hold for the rest.
TOLERANCE = 2e-4


@pytest.mark.parametrize("name", SETTINGS)
def test_average_over_one_worker_is_stock_ppo(name):
    settings = dict(SETTINGS[name])
    space = settings.get("action_space", gym.spaces.Discrete(2))
    groups = pair(lr=settings.pop("lr", 0.01), **settings)
    before = flat_parameters(groups[0])
    assert torch.equal(before, flat_parameters(groups[1]))
    stock, ours = updated(groups, action_space=space)
    moved = (stock - before).abs().max()
    assert moved > 0.01
    assert (stock - ours).abs().max() < min(TOLERANCE, moved / 100)
    assert kl_coefficient(groups[0]) == kl_coefficient(groups[1])
    assert learning_rate(groups[0]) == learning_rate(groups[1])
    if "kl" in name:
        assert kl_coefficient(groups[0]) != 0.5


def test_the_adaptive_kl_coefficient_and_the_schedules_go_the_same_way():
    groups = pair(
        lr=[[0, 0.01], [300, 0.001]],
        use_kl_loss=True,
        kl_coeff=0.5,
        entropy_coeff=[[0, 0.5], [300, 0.2]],
    )
    updated(groups, num_rounds=3)
    assert kl_coefficient(groups[0]) == kl_coefficient(groups[1])
    entropy = [
        float(
            learner_of(g).entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].get_current_value()
        )
        for g in groups
    ]
    assert entropy == pytest.approx([0.2, 0.2])
    assert [learning_rate(g) for g in groups] == pytest.approx([0.001, 0.001])


SAME_METRICS = [
    "total_loss",
    "policy_loss",
    "vf_loss",
    "vf_loss_unclipped",
    "entropy",
    "mean_kl_loss",
    "curr_kl_coeff",
    "curr_entropy_coeff",
    "default_optimizer_learning_rate",
]


def test_the_losses_that_both_log_agree():
    groups = pair(lr=0.01, use_kl_loss=True)
    results = []
    for k, group in enumerate(groups):
        kwargs = {"merge": make_request(1)} if k else {}
        (found,) = group.update(
            episodes=make_episodes(LENGTHS), num_epochs=3, timesteps={STEPS: 55}, **kwargs
        )
        results.append({key: stats.peek() for key, stats in found[DEFAULT_MODULE_ID].items()})
    for key in SAME_METRICS:
        assert float(results[0][key]) == pytest.approx(float(results[1][key]), abs=1e-4), key
    assert set(results[0]) - set(results[1]) <= {
        "num_trainable_parameters",
        "num_non_trainable_parameters",
        "diff_num_grad_updates_vs_sampler_policy",
    }


@pytest.mark.parametrize(
    "ours", [{"clip_param": 0.1}, {"advantage_normalization": "none"}, {"vf_loss_coeff": 0.9}]
)
def test_another_setting_is_no_longer_equal(ours):
    """Negative control: the tolerance tells one setting from another."""
    stock, found = updated(pair(lr=0.01, ours=ours))
    assert (stock - found).abs().max() > 5 * TOLERANCE


def test_what_is_neutralised_is_really_there():
    """Should stock RLlib one day leave the artificial rows out, `RealRowsOnly` can go."""
    stock, ours = updated(pair(lr=0.01, stock_learner=PPOTorchLearner))
    assert (stock - ours).abs().max() > 5 * TOLERANCE
