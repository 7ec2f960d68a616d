"""Which learners take their steps without autograd, and why the others do not."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.learning.learner import WeightedPPOLearner
from tests.learning.closed_form.helpers import BOX
from tests.learning.helpers import (
    build_group,
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    run_update,
    small_config,
)
from tests.learning.test_learner_general import TinyModule

FAST = "The learner takes its steps without autograd."


def outcome(learner: Any, caplog: pytest.LogCaptureFixture) -> str:
    """What the learner writes into the log of its steps, once."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "rllib_weighted"):
        networks = learner.closed_form_networks
        assert learner.closed_form_networks is networks
    (message,) = [text for text in caplog.messages if text.startswith("The learner takes")]
    assert (networks is not None) == (message == FAST)
    return message


def why_not(config: Any, caplog: pytest.LogCaptureFixture, **spaces: gym.Space) -> str:
    message = outcome(learner_of(build_group(config, **spaces)), caplog)
    start = "The learner takes its steps with autograd: "
    assert message.startswith(start), message
    return message.removeprefix(start)


@pytest.mark.parametrize("strategy", ["average", "actor_sum"])
@pytest.mark.parametrize("action_space", [gym.spaces.Discrete(2), BOX], ids=str)
def test_the_default_is_fast(strategy, action_space, caplog):
    assert WeightedPPOConfig().fast_learner is True
    config = small_config(2).training(merge_strategy=strategy, use_kl_loss=True, grad_clip=0.5)
    group = build_group(config, action_space=action_space)
    assert outcome(learner_of(group), caplog) == FAST


class Untouched(WeightedPPOLearner):
    """A learner of a user's that changes nothing of the steps."""

    def before_gradient_based_update(self, **kwargs):
        super().before_gradient_based_update(**kwargs)

    def build(self):
        super().build()


def test_a_learner_that_leaves_the_steps_alone_is_fast(caplog):
    config = small_config(2).learners(learner_class=Untouched)
    assert outcome(learner_of(build_group(config)), caplog) == FAST


SETTINGS = {
    "fast_learner": (lambda c: c.learners(fast_learner=False), "`fast_learner`=False."),
    "critic": (lambda c: c.training(use_critic=False), "`use_critic`=False."),
    "log": (lambda c: c.reporting(log_gradients=True), "`log_gradients`=True."),
    "schedulers": (
        lambda c: c.experimental(
            _torch_lr_scheduler_classes=[lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
        ),
        "torch learning-rate schedulers.",
    ),
    "mixed precision": (
        lambda c: c.experimental(_torch_grad_scaler_class=torch.amp.GradScaler),
        "mixed precision.",
    ),
    "lstm": (
        lambda c: c.rl_module(
            model_config=DefaultModelConfig(fcnet_hiddens=[4], use_lstm=True, lstm_cell_size=3)
        ),
        "the loss is a custom one, or the module a recurrent one.",
    ),
    "module": (
        lambda c: c.rl_module(rl_module_spec=RLModuleSpec(module_class=TinyModule)),
        "the module is a custom or a compiled one.",
    ),
    "layers": (
        lambda c: c.rl_module(model_config=DefaultModelConfig(fcnet_activation="silu")),
        "a network has a SiLU layer.",
    ),
}


@pytest.mark.parametrize(("change", "reason"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_need_the_general_way(change, reason, caplog):
    assert why_not(change(small_config(2)), caplog) == reason


def test_actions_that_need_the_general_way(caplog):
    reason = why_not(small_config(2), caplog, action_space=gym.spaces.MultiDiscrete([2, 3]))
    assert reason == "the actions are neither discrete nor continuous."


def test_one_of_several_learners_on_gpus_needs_the_general_way(monkeypatch, caplog):
    learner = learner_of(build_group(small_config(2)))
    monkeypatch.setattr(learner, "_device", torch.device("cuda", 0))
    monkeypatch.setattr(learner.collectives, "is_solo", False)
    assert "it is one of several learners on GPUs." in outcome(learner, caplog)


def test_on_a_gpu_layers_of_any_kind_will_do_with_one_set_of_parameters(monkeypatch, caplog):
    silu = DefaultModelConfig(fcnet_activation="silu")
    for strategy, reason in (("average", FAST), ("actor_sum", "a network has a SiLU layer.")):
        config = small_config(2).training(merge_strategy=strategy).rl_module(model_config=silu)
        learner = learner_of(build_group(config))
        monkeypatch.setattr(learner, "_device", torch.device("cuda", 0))
        assert outcome(learner, caplog).endswith(reason)


def subclass(name: str) -> type:
    """A learner of a user's that overrides one method, here by one that does the same."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(mine, self), name)(*args, **kwargs)

    mine = type("Mine", (WeightedPPOLearner,), {name: method, "__module__": __name__})
    return mine


@pytest.mark.parametrize(
    "hook",
    [
        "apply_gradients",
        "compute_gradients",
        "configure_optimizers",
        "configure_optimizers_for_module",
        "loss_gradients",
        "losses_of_rows",
        "postprocess_gradients",
        "postprocess_gradients_for_module",
        "worker_losses",
    ],
)
def test_hooks_of_the_users_own_are_called(hook, caplog):
    config = small_config(2).learners(learner_class=subclass(hook))
    assert why_not(config, caplog) == f"Mine overrides `{hook}`."


@pytest.mark.parametrize("method", ["compute_loss_for_module", "compute_losses"])
def test_losses_of_the_users_own_are_called(method, caplog):
    config = small_config(2).learners(learner_class=subclass(method))
    reason = "the loss is a custom one, or the module a recurrent one."
    assert why_not(config, caplog) == reason


def test_a_hook_that_is_inherited_twice_counts(caplog):
    class Again(subclass("apply_gradients")):
        """Nothing of its own."""

    config = small_config(2).learners(learner_class=Again)
    assert why_not(config, caplog) == "Mine overrides `apply_gradients`."


def swap_optimizer(learner: Any, make: Any) -> None:
    """Puts another optimizer where RLlib keeps its own."""
    (name,) = learner._named_optimizers
    old = learner._named_optimizers[name]
    learner._named_optimizers[name] = make(list(old.param_groups[0]["params"]))


class MyAdam(torch.optim.Adam):
    """Could do anything."""


def _in_two_groups(params: list[Any]) -> Any:
    return torch.optim.Adam([{"params": params[:2]}, {"params": params[2:]}])


CUSTOM = "the optimizer is a custom one."
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), CUSTOM),
    "adamw": (lambda p: torch.optim.AdamW(p), CUSTOM),
    "subclass": (lambda p: MyAdam(p), CUSTOM),
    "decay": (lambda p: torch.optim.Adam(p, weight_decay=0.1), CUSTOM),
    "amsgrad": (lambda p: torch.optim.Adam(p, amsgrad=True), CUSTOM),
    "maximize": (lambda p: torch.optim.Adam(p, maximize=True), CUSTOM),
    "groups": (_in_two_groups, CUSTOM),
    "some": (
        lambda p: torch.optim.Adam(p[:-2]),
        "the optimizer steps some of the parameters only.",
    ),
}


@pytest.mark.parametrize(("make", "reason"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_other_optimizers_need_the_general_way(make, reason, caplog):
    learner = learner_of(build_group(small_config(2)))
    swap_optimizer(learner, make)
    assert outcome(learner, caplog).endswith(reason)


def test_adam_with_settings_of_its_own_is_fast(caplog):
    learner = learner_of(build_group(small_config(2)))
    swap_optimizer(learner, lambda p: torch.optim.Adam(p, lr=0.3, betas=(0.5, 0.6), eps=1e-3))
    assert outcome(learner, caplog) == FAST


class PolicyOnly(WeightedPPOLearner):
    """Trains the policy's head alone, through the method that says what is trained."""

    def get_parameters(self, module):
        return [p for name, p in module.named_parameters() if name.startswith("pi.")]


def test_parameters_that_the_optimizer_does_not_know_stay_where_they_are(caplog):
    group = build_group(small_config(2).learners(learner_class=PolicyOnly))
    learner = learner_of(group)
    assert outcome(learner, caplog).endswith("steps some of the parameters only.")
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    start = flat_parameters(group)
    run_update(group, make_episodes([[5], [6]]), make_request(2))
    assert not torch.equal(flat_parameters(group), start)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("pi.")


def test_methods_that_ray_wraps_are_no_ones_own(caplog):
    """In an actor, Ray Train's subclass of every learner wraps all methods for tracing."""
    traced = subclass("apply_gradients")
    traced.__module__ = "ray.train.tracing"
    config = small_config(2).learners(learner_class=traced)
    assert outcome(learner_of(build_group(config)), caplog) == FAST
