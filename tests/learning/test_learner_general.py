"""Custom losses, recurrent models, custom modules: slower, but the merge is right."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from tests.learning.helpers import (
    SGD,
    build_group,
    copy_parameters,
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    module_of,
    oracle_parameters,
    run_update,
    small_config,
)

LENGTHS = [[6, 4], [17], [6]]
REWARDS = [2.0, -1.0, 4.0]
STRATEGIES = ["average", "sum", "reward_weighted", "loss_weighted"]


class CustomLoss(SGD):
    """PPO's loss and a penalty on large logits."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        return loss + 0.3 * fwd_out[Columns.ACTION_DIST_INPUTS].square().mean()


class TinyModule(TorchRLModule, ValueFunctionAPI):
    """A module of the user's own, with nothing of RLlib's catalogs."""

    def setup(self):
        self.body = torch.nn.Linear(3, 5)
        self.policy = torch.nn.Linear(5, 2)
        self.value = torch.nn.Linear(5, 1)

    def _forward(self, batch, **kwargs):
        features = torch.tanh(self.body(batch[Columns.OBS]))
        return {
            Columns.EMBEDDINGS: features,
            Columns.ACTION_DIST_INPUTS: self.policy(features),
        }

    def _forward_train(self, batch, **kwargs):
        return self._forward(batch)

    def compute_values(self, batch, embeddings=None):
        if embeddings is None:
            embeddings = torch.tanh(self.body(batch[Columns.OBS]))
        return self.value(embeddings).squeeze(-1)

    def get_inference_action_dist_cls(self):
        from ray.rllib.models.torch.torch_distributions import TorchCategorical

        return TorchCategorical

    get_exploration_action_dist_cls = get_inference_action_dist_cls
    get_train_action_dist_cls = get_inference_action_dist_cls


def _custom_loss():
    return small_config(3).learners(learner_class=CustomLoss)


def _custom_module():
    config = small_config(3).learners(learner_class=SGD)
    return config.rl_module(rl_module_spec=RLModuleSpec(module_class=TinyModule))


def _lstm():
    model = DefaultModelConfig(fcnet_hiddens=[4], use_lstm=True, lstm_cell_size=3, max_seq_len=5)
    return small_config(3).learners(learner_class=SGD).rl_module(model_config=model)


def _shared_layers():
    model = DefaultModelConfig(fcnet_hiddens=[4], vf_share_layers=True)
    return small_config(3).learners(learner_class=SGD).rl_module(model_config=model)


class DictModule(TinyModule):
    """A module of the user's own that reads a dict of observations."""

    def _forward(self, batch, **kwargs):
        return super()._forward({Columns.OBS: _joined(batch)})

    def compute_values(self, batch, embeddings=None):
        return super().compute_values({Columns.OBS: _joined(batch)}, embeddings)


def _joined(batch):
    return torch.cat([batch[Columns.OBS]["position"], batch[Columns.OBS]["speed"]], dim=-1)


DICT = gym.spaces.Dict(
    {
        "position": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        "speed": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
    }
)


def _dict_observations():
    config = small_config(3).learners(learner_class=SGD)
    return config.rl_module(rl_module_spec=RLModuleSpec(module_class=DictModule))


def _plain():
    return small_config(3).learners(learner_class=SGD)


CASES = {
    "custom loss": (_custom_loss, False, {}),
    "custom module": (_custom_module, True, {}),
    "lstm": (_lstm, False, {}),
    "shared layers": (_shared_layers, True, {}),
    "continuous": (_plain, True, {"action_space": gym.spaces.Box(-1.0, 1.0, (2,), np.float32)}),
    "multi-discrete": (_plain, True, {"action_space": gym.spaces.MultiDiscrete([2, 3])}),
    "dict observations": (_dict_observations, True, {"obs_space": DICT}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Two equal groups, their first parameters, a maker of episodes."""
    make_config, is_fast, spaces = CASES[request.param]
    groups = [build_group(make_config(), **spaces) for _ in range(2)]
    copy_parameters(*groups)
    module = module_of(groups[0])
    start = {key: value.clone() for key, value in module.state_dict().items()}

    def episodes():
        made = make_episodes(LENGTHS, **spaces)
        if not module.is_stateful():
            return made
        for episode in made:
            rng = np.random.default_rng(len(episode))
            states = {
                key: rng.normal(size=(len(episode), *value.shape)).astype(np.float32)
                for key, value in module.get_initial_state().items()
            }
            episode.extra_model_outputs["state_out"] = InfiniteLookbackBuffer(states, lookback=0)
        return made

    assert learner_of(groups[0]).has_stock_loss(DEFAULT_MODULE_ID) == is_fast
    return groups, start, episodes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_merge_equals_the_slow_oracle(case, strategy):
    groups, start, episodes = case
    for group in groups:
        module_of(group).load_state_dict(start)
    before = flat_parameters(groups[0])
    request = make_request(3, strategy, rewards=REWARDS, min_weight=0.2)
    settings = {"num_epochs": 2, "minibatch_size": 11}
    report = run_update(groups[0], episodes(), request, shuffle_batch_per_epoch=True, **settings)
    expected = oracle_parameters(groups[1], episodes(), request, strategy, **settings)
    torch.testing.assert_close(flat_parameters(groups[0]), expected, rtol=0, atol=1e-9)
    assert (expected - before).abs().max() > 1e-3
    assert report.drops == [None] * 3
    assert report.num_steps > 2


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "policy"},
        {"loss": "value"},
        {"scope": "round"},
        {"loss": "value", "scope": "round"},
    ],
)
def test_loss_signals(case, options):
    groups, start, episodes = case
    module_of(groups[0]).load_state_dict(start)
    request = make_request(3, "loss_weighted", options, min_weight=0.0)
    report = run_update(groups[0], episodes(), request, num_epochs=2)
    assert all(signal is not None for signal in report.signals)
    # Mean signals are not the mean losses: the one is a part, or from before the first step.
    assert report.signals != pytest.approx(report.losses, rel=1e-6)
    assert sum(report.weights) == pytest.approx(1)
    assert max(report.weights) - min(report.weights) > 1e-3


def test_a_dropped_worker_of_a_recurrent_or_custom_module(case):
    groups, start, episodes = case
    for group in groups:
        module_of(group).load_state_dict(start)
    bad = episodes()
    next(e for e in bad if len(e) == 17).rewards.data[3] = float("nan")
    request = make_request(3, "loss_weighted")
    settings = {"num_epochs": 2, "minibatch_size": 8, "shuffle_batch_per_epoch": True}
    report = run_update(groups[0], bad, request, **settings)
    run_update(groups[1], [e for e in episodes() if len(e) != 17], request, **settings)
    assert "rewards" in report.drops[1]
    first, second = map(flat_parameters, groups)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-7)
    assert torch.isfinite(first).all()


def test_a_state_from_before_the_first_round_brings_the_kl_coefficient_back():
    config = small_config(2).training(use_kl_loss=True, kl_coeff=0.3)
    learner = learner_of(build_group(config))
    fresh = copy.deepcopy(learner.get_state())
    learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID].data.fill_(7.0)
    learner.set_state(fresh)
    assert learner.kl_coeff(DEFAULT_MODULE_ID) == pytest.approx(0.3)


def test_the_adaptive_kl_coefficient_sees_all_workers():
    """RLlib's loss logs under one key per call: the last worker's value must not stand for all."""
    config = small_config(2).training(use_kl_loss=True, kl_coeff=1.0, kl_target=1e6)
    group = build_group(config.learners(learner_class=CustomLoss))
    (results,) = group.update(
        episodes=make_episodes([[6], [9]]), merge=make_request(2), num_epochs=1
    )
    kl = results[DEFAULT_MODULE_ID]["mean_kl_loss"].peek()
    fast = build_group(config.learners(learner_class=SGD))
    copy_parameters(group, fast)
    (results,) = fast.update(
        episodes=make_episodes([[6], [9]]), merge=make_request(2), num_epochs=1
    )
    assert kl > 0
    assert results[DEFAULT_MODULE_ID]["mean_kl_loss"].peek() == pytest.approx(kl, rel=0.2)
    assert float(learner_of(group).curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) == 0.5


def test_new_memory_is_not_filled_while_it_learns(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    group, seen = build_group(small_config(2)), []

    def look(**kwargs):
        seen.append(torch.utils.deterministic.fill_uninitialized_memory)

    monkeypatch.setattr(learner_of(group), "after_gradient_based_update", look)
    group.update(episodes=make_episodes([[6], [9]]), merge=make_request(2), num_epochs=1)
    assert seen == [False]
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_ray_trains_wrapper_does_not_hide_the_stock_loss():
    """In an actor, a subclass wraps every method for tracing."""

    def traced(cls, name):
        return lambda self, **kwargs: getattr(super(cls, self), name)(**kwargs)

    for base, is_fast in ((SGD, True), (CustomLoss, False)):
        learner = learner_of(build_group(small_config(2).learners(learner_class=base)))
        wrapper = type("_WrappedExecutable", (base,), {"__module__": "ray.train._internal"})
        for name in ("compute_losses", "compute_loss_for_module"):
            setattr(wrapper, name, traced(wrapper, name))
        learner.__class__ = wrapper
        assert learner.has_stock_loss(DEFAULT_MODULE_ID) == is_fast
