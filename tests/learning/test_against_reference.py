"""The learner against the specification, `tests/reference_ppo.py`: the same steps, in float64.

Three rounds of CartPole: the specification's workers sample, and both learn from what they sampled,
starting from the same parameters, with the same minibatches. Parameters are compared after each
round.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.minibatches import minibatches, num_minibatches
from tests import reference_ppo as reference
from tests.learning.helpers import (
    EitherPrecision,
    build_group,
    learner_of,
    make_request,
    module_of,
    run_update,
    small_config,
)
from tests.learning.test_update_columns import columns_of

Chunks = list[dict[str, Any]]  # Of one worker, as `reference.Worker.sample` returns them.
SPACES = {
    "obs_space": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
    "action_space": gym.spaces.Discrete(2),
}
# The limits are tight enough for each of them to bite; the negative controls would pass otherwise.
SETTINGS = reference.Settings(
    num_workers=3,
    num_rounds=3,
    num_epochs=2,
    hidden=8,
    lr=0.02,
    gamma=0.9,
    lambda_=0.8,
    clip=0.1,
    value_clip=9.0,
    entropy_coeff=0.01,
    grad_clip=0.3,
)
NUM_STEPS = [40, 8, 33]  # Of each worker; worker 1 has no return in the first round.
MINIBATCH_SIZE = 25
CASES: dict[str, dict[str, Any]] = {
    "average": {"strategy": "average"},
    "sum": {"strategy": "sum"},
    "reward": {},
    "reward, low": {"direction": "low", "min_weight": 0.1},
    "reward, lowest 0": {"offset": "min", "min_weight": 0.0},
    "reward, offset": {"offset": 5.0},
    "loss": {"strategy": "loss_weighted"},
    "loss, low": {"strategy": "loss_weighted", "direction": "low", "min_weight": 0.05},
    "policy loss": {"strategy": "loss_weighted", "loss": "policy"},
    "value loss, low": {"strategy": "loss_weighted", "loss": "value", "direction": "low"},
    "loss of the round": {"strategy": "loss_weighted", "scope": "round"},
    "value loss of the round": {"strategy": "loss_weighted", "scope": "round", "loss": "value"},
    "actor average": {"strategy": "average", "per_worker_parameters": True},
    "actor sum": {"strategy": "sum", "per_worker_parameters": True},
}
# Whether steps are taken in closed form, and what the learner is fed.
PATHS = {
    "closed form, columns": (True, columns_of),
    "closed form, episodes": (True, None),
    "autograd, columns": (False, columns_of),
    "autograd, episodes": (False, None),
}


def make_group(settings: reference.Settings, *, fast_learner: bool) -> Any:
    """The package's learner with these settings, in float64."""
    config = small_config(settings.num_workers)
    config.learners(learner_class=EitherPrecision, fast_learner=fast_learner)
    config.training(
        merge_strategy=strategy_of(settings)[0],
        lr=settings.lr,
        gamma=settings.gamma,
        lambda_=settings.lambda_,
        clip_param=settings.clip,
        vf_clip_param=settings.value_clip,
        vf_loss_coeff=settings.value_coeff,
        entropy_coeff=settings.entropy_coeff,
        grad_clip=settings.grad_clip,
        grad_clip_by="global_norm",
    )
    config.rl_module(
        model_config=DefaultModelConfig(
            fcnet_hiddens=[settings.hidden] * 2, fcnet_activation="tanh", vf_share_layers=False
        )
    )
    group = build_group(config, **SPACES)
    learner_of(group).use(torch.float64)
    assert (learner_of(group).closed_form_networks is not None) == fast_learner
    return group


def strategy_of(settings: reference.Settings) -> tuple[str, dict[str, Any]]:
    """`merge_strategy` and `merge_options` of the package."""
    if settings.per_worker_parameters:
        return f"actor_{settings.strategy}", {}
    names = {"reward_weighted": ["offset", "direction"]}
    names["loss_weighted"] = [*names["reward_weighted"], "loss", "scope"]
    options = {name: getattr(settings, name) for name in names.get(settings.strategy, [])}
    return settings.strategy, options


# The specification's names of RLlib's layers, in the order of the specification's parameters.
LAYERS = {
    "policy.0": "encoder.actor_encoder.net.mlp.0",
    "policy.2": "encoder.actor_encoder.net.mlp.2",
    "policy.4": "pi.net.mlp.0",
    "value.0": "encoder.critic_encoder.net.mlp.0",
    "value.2": "encoder.critic_encoder.net.mlp.2",
    "value.4": "vf.net.mlp.0",
}


def parameters_of(group: Any) -> list[dict[str, Tensor]]:
    """Each worker's parameters under the specification's names; only one set if they share it."""
    own = learner_of(group).per_worker_parameters()
    if own is None:
        sets = [dict(module_of(group).named_parameters())]
    else:
        num_workers = len(next(iter(own.values())))
        sets = [{n: torch.from_numpy(a[i]) for n, a in own.items()} for i in range(num_workers)]
    return [
        {
            f"{layer}.{kind}": each[f"{rllibs}.{kind}"].detach().clone()
            for layer, rllibs in LAYERS.items()
            for kind in ("weight", "bias")
        }
        for each in sets
    ]


class Both:
    """The learner and the specification, round after round."""

    def __init__(
        self, settings: reference.Settings, path: str, specified: reference.Settings | None = None
    ) -> None:
        fast_learner, self.columns_of = PATHS[path]
        self.settings, self.specified = settings, specified or settings
        self.group = make_group(settings, fast_learner=fast_learner)
        self.nets = []
        for own in parameters_of(self.group):
            self.nets.append(reference.Net(4, 2, settings.hidden).double())
            self.nets[-1].load_state_dict(own)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=self.specified.lr) for net in self.nets
        ]
        torch.manual_seed(0)
        self.workers = [reference.Worker("CartPole-v1", seed) for seed in range(len(NUM_STEPS))]

    def net_of(self, worker: int) -> reference.Net:
        return self.nets[worker if self.settings.per_worker_parameters else 0]

    def take_round(self, number: int) -> None:
        # What is sampled is in float32, as in RLlib; all that follows from it is in float64.
        chunks = [
            worker.sample(copy.deepcopy(self.net_of(i)).float(), num_steps)
            for i, (worker, num_steps) in enumerate(zip(self.workers, NUM_STEPS, strict=True))
        ]
        signals = [worker.signal for worker in self.workers]
        self.update_learner(number, chunks, signals)
        self.update_specification(number, chunks, signals)

    def update_learner(self, number: int, chunks: list[Chunks], signals: list[float]) -> None:
        episodes = [make_episode(i, chunk) for i, own in enumerate(chunks) for chunk in own]
        request = make_request(
            len(NUM_STEPS),
            *strategy_of(self.settings),
            rewards=[None if math.isnan(signal) else signal for signal in signals],
            min_weight=self.settings.min_weight,
            round=number,
            root_seed=7,
        )
        settings = {
            "num_epochs": self.settings.num_epochs,
            "minibatch_size": MINIBATCH_SIZE,
            "shuffle_batch_per_epoch": True,
        }
        if self.columns_of is None:
            result = run_update(self.group, episodes, request, **settings)
        else:
            self.group.update(columns=[self.columns_of(episodes)], merge=request, **settings)
            result = self.group.take_update_result()
        assert result.num_steps == 2 * 3  # 81 steps by 25
        assert result.drops == [None] * 3

    def update_specification(self, number: int, chunks: list[Chunks], signals: list[float]) -> None:
        nets = [self.net_of(i) for i in range(len(NUM_STEPS))]
        batches = [
            make_batch(net, own, self.specified) for net, own in zip(nets, chunks, strict=True)
        ]
        steps = minibatches(
            {i: np.arange(n) for i, n in enumerate(NUM_STEPS)},
            per_epoch=num_minibatches(NUM_STEPS, sum(NUM_STEPS), MINIBATCH_SIZE),
            num_epochs=self.settings.num_epochs,
            shuffle=True,
            seed=7,
            round=number,
        )
        rows = [[step.parts[i] for i in range(len(NUM_STEPS))] for step in steps]
        reference.update(nets, self.optimizers, batches, signals, rows, self.specified)

    def compare(self, tolerance: float = 1e-10) -> None:
        found = parameters_of(self.group)
        assert len(found) == len(self.nets)
        for own, net in zip(found, self.nets, strict=True):
            wanted = {name: p.detach() for name, p in net.named_parameters()}
            torch.testing.assert_close(own, wanted, rtol=tolerance, atol=tolerance)


def make_episode(worker: int, chunk: dict[str, Any]) -> SingleAgentEpisode:
    episode = SingleAgentEpisode(
        observations=chunk["obs"].numpy(),
        observation_space=SPACES["obs_space"],
        actions=chunk["actions"].numpy(),
        action_space=SPACES["action_space"],
        rewards=chunk["rewards"].numpy(),
        infos=[{}] * len(chunk["obs"]),
        terminated=chunk["terminated"],
        extra_model_outputs={
            "action_logp": chunk["logp"].numpy(),
            # Only RLlib's KL penalty would read them, which is off.
            "action_dist_inputs": np.zeros((len(chunk["actions"]), 2), np.float32),
        },
        len_lookback_buffer=0,
    )
    episode.custom_data[WORKER_KEY] = worker
    return episode.to_numpy()


def in_float64(chunk: dict[str, Any]) -> dict[str, Any]:
    is_float = {name: isinstance(c, Tensor) and c.is_floating_point() for name, c in chunk.items()}
    return {name: c.double() if is_float[name] else c for name, c in chunk.items()}


def make_batch(net: reference.Net, chunks: Chunks, settings: reference.Settings) -> reference.Batch:
    """The specification's batch, rounded where the learner stores float32 between computations.

    Those are value predictions, advantages and value targets, whatever it computes with.
    """
    predicting = SimpleNamespace(value=lambda obs: net.value(obs).float().double())
    batch = reference.make_batch(predicting, [in_float64(chunk) for chunk in chunks], settings)
    values = (batch["targets"] - batch["advantages"]).float()
    advantages = batch["advantages"].float()
    targets = advantages + values
    return {**batch, "advantages": advantages.double(), "targets": targets.double()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
def test_parameters_are_those_of_the_specification(case: str, path: str) -> None:
    both = Both(dataclasses.replace(SETTINGS, **CASES[case]), path)
    both.compare()
    before = flat(both.group)
    for number in (1, 2, 3):
        both.take_round(number)
        both.compare()
        after = flat(both.group)
        assert (after - before).abs().amax(dim=1).min() > 0.01  # Every set of parameters moved.
        before = after
    own = CASES[case].get("per_worker_parameters", False)
    assert len(after) == (3 if own else 1)
    assert not own or not torch.allclose(after[0], after[1], atol=0.01)


def flat(group: Any) -> Tensor:
    return torch.stack([torch.cat([p.flatten() for p in s.values()]) for s in parameters_of(group)])


# Negative controls. Name -> the settings of both, and what is different in the specification.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "min_weight": ({}, {"min_weight": 0.334}),
    "offset": ({}, {"offset": 0.1}),
    "direction": ({}, {"direction": "low"}),
    "strategy": ({}, {"strategy": "loss_weighted"}),
    "loss": (CASES["loss"], {"loss": "policy"}),
    "scope": (CASES["loss"], {"scope": "round"}),
    "lr": ({}, {"lr": 0.0201}),
    "gamma": ({}, {"gamma": 0.901}),
    "lambda": ({}, {"lambda_": 0.801}),
    "clip": ({}, {"clip": 0.12}),
    "value_clip": ({}, {"value_clip": 9.1}),
    "value_coeff": ({}, {"value_coeff": 0.501}),
    "entropy_coeff": ({}, {"entropy_coeff": 0.011}),
    "grad_clip": ({}, {"grad_clip": 0.301}),
    "sum for average": (CASES["actor average"], {"strategy": "sum"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_specification_does_not_match(change: str) -> None:
    case, other = CHANGES[change]
    settings = dataclasses.replace(SETTINGS, **case)
    both = Both(settings, "closed form, columns", dataclasses.replace(settings, **other))
    both.compare()
    for number in (1, 2, 3):
        both.take_round(number)
    with pytest.raises(AssertionError, match="not close"):
        both.compare(tolerance=1e-7)


def test_a_missing_reward_is_among_the_signals() -> None:
    both = Both(SETTINGS, "closed form, columns")
    both.take_round(1)
    assert [math.isnan(worker.signal) for worker in both.workers] == [False, True, False]


def test_one_weight_of_one_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(SETTINGS, "closed form, columns")
    weights, calls = reference.weights, []

    def changed(*args: Any) -> np.ndarray:
        calls.append(args)
        w = weights(*args)
        w[2] += 1e-3 if len(calls) == 5 else 0.0
        return w

    monkeypatch.setattr(reference, "weights", changed)
    both.take_round(1)
    with pytest.raises(AssertionError, match="not close"):
        both.compare()
