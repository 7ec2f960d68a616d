"""Own parameters per worker: N separate networks with N separate Adams, stepped one by one."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.torch_utils import clip_gradients

from rllib_weighted.core.modules import why_not_stacked
from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from rllib_weighted.learning.minibatches import Minibatch, minibatches, num_minibatches
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.learning.steps import Round, padding
from rllib_weighted.learning.update import make_steps
from rllib_weighted.merging import Weighting
from tests.learning.helpers import (
    LR,
    EitherPrecision,
    build_group,
    learner_of,
    make_episodes,
    make_request,
    module_of,
    run_update,
    small_config,
)
from tests.learning.test_learner_general import TinyModule

LENGTHS = [[6, 4], [17], [6]]
REWARDS = [2.0, -1.0, 4.0]
BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
STRATEGIES = ["actor_average", "actor_sum"]


class CustomLoss(EitherPrecision):
    """PPO's loss and a penalty on large logits."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        return loss + 0.3 * fwd_out[Columns.ACTION_DIST_INPUTS].square().mean()


def make_group(strategy: str = "actor_average", *, learner=EitherPrecision, model=None, **kwargs):
    """A group of three workers in float64, with gradient clipping that bites."""
    action_space = kwargs.pop("action_space", None)
    spec = kwargs.pop("spec", None)
    config = small_config(3).learners(learner_class=learner)
    config.training(
        merge_strategy=strategy,
        grad_clip=0.3,
        grad_clip_by="global_norm",
        use_kl_loss=True,
        **kwargs,
    )
    if model is not None:
        config.rl_module(model_config=DefaultModelConfig(fcnet_activation="tanh", **model))
    if spec is not None:
        config.rl_module(rl_module_spec=spec)
    group = build_group(config, **({"action_space": action_space} if action_space else {}))
    learner_of(group).use(torch.float64)
    learner_of(group).per_worker.start_from_module()
    return group


CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "mlp": ({}, True),
    "shared layers": ({"model": {"fcnet_hiddens": [6], "vf_share_layers": True}}, True),
    "continuous": ({"action_space": BOX}, True),
    "custom loss": ({"learner": CustomLoss}, False),
    "custom module": ({"spec": RLModuleSpec(module_class=TinyModule)}, False),
    "lstm": (
        {"model": {"fcnet_hiddens": [4], "use_lstm": True, "lstm_cell_size": 3, "max_seq_len": 5}},
        False,
    ),
}


def episodes_for(group: Any, round: int = 1, action_space: Any = None) -> list[Any]:
    kwargs = {"action_space": action_space} if action_space is not None else {}
    made = make_episodes(LENGTHS, seed=1000 * round, **kwargs)
    module = module_of(group)
    for episode in made if module.is_stateful() else ():
        rng = np.random.default_rng(len(episode))
        states = {
            key: rng.normal(size=(len(episode), *value.shape)).astype(np.float32)
            for key, value in module.get_initial_state().items()
        }
        episode.extra_model_outputs["state_out"] = InfiniteLookbackBuffer(states, lookback=0)
    return made


class Oracle:
    """N modules and N optimizers; a twin of the learner under test makes the batches."""

    def __init__(self, group: Any, weight: float | dict[int, float]) -> None:
        self.twin = learner_of(group)
        self.weight = weight  # Of each worker's gradient in the merged one, or of all of them.
        module = module_of(group)
        self.modules = [copy.deepcopy(module) for _ in range(3)]
        self.optimizers = [torch.optim.Adam(m.parameters(), lr=LR) for m in self.modules]

    def update(self, episodes: list[Any], request: Any, *, without: int | None = None) -> None:
        for worker, module in enumerate(self.modules):
            for name, parameter in module.named_parameters():
                self.twin.per_worker.stacked[name].data[worker] = parameter.detach()
        data = WorkerTrainingData.from_workers(group_by_worker(episodes, num_workers=3))
        module_id, batch = self.twin._round_batch(data)
        batch.drop([] if without is None else [without])
        batch.standardize_advantages("worker")
        sizes = [len(rows) for rows in batch.rows.values()]
        for minibatch in minibatches(
            batch.rows,
            per_epoch=num_minibatches(sizes, batch.num_steps, 11),
            num_epochs=2,
            shuffle=True,
            seed=request.root_seed,
            round=request.round,
        ):
            self.step(module_id, batch, minibatch)

    def take_kl_coefficient(self, group: Any) -> None:
        """It adapts after a round; the twin has none of its own."""
        found = learner_of(group).curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]
        own = self.twin.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]
        assert found != own
        own.data.copy_(found)

    def step(self, module_id: str, batch: Any, minibatch: Any) -> None:
        gradients = {}
        for worker, rows in minibatch.parts.items():
            columns = batch.take(rows)
            gradients[worker] = self.gradient(module_id, self.modules[worker], columns)
        weights = (
            self.weight if isinstance(self.weight, dict) else dict.fromkeys(gradients, self.weight)
        )
        columns_of = zip(*gradients.values(), strict=True)
        merged = [
            sum(weights[w] * g for w, g in zip(gradients, own, strict=True)) for own in columns_of
        ]
        for worker, own in gradients.items():
            parameters = list(self.modules[worker].parameters())
            total = {p: g + m for p, g, m in zip(parameters, own, merged, strict=True)}
            clip_gradients(total, grad_clip=0.3, grad_clip_by="global_norm")
            for parameter, gradient in total.items():
                parameter.grad = gradient
            self.optimizers[worker].step()

    def gradient(self, module_id: str, module: Any, columns: Any) -> list[torch.Tensor]:
        original = self.twin._module[module_id]
        self.twin._module._rl_modules[module_id] = module  # What RLlib's loss reads.
        try:
            loss = self.twin.compute_loss_for_module(
                module_id=module_id,
                config=self.twin.config.get_config_for_module(module_id),
                batch=columns,
                fwd_out=module.forward_train(columns),
            )
        finally:
            self.twin._module._rl_modules[module_id] = original
        found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(module.parameters(), found, strict=True)
        ]

    @property
    def parameters(self) -> torch.Tensor:
        return torch.stack([flat(dict(m.named_parameters())) for m in self.modules])


def flat(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in sorted(parameters.items())])


def actor_rows(group: Any) -> torch.Tensor:
    """[N, P]: every worker's parameters."""
    parameters = learner_of(group).per_worker
    return torch.stack([flat(parameters.of_worker(worker)) for worker in range(3)])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_three_rounds_equal_separate_networks_with_separate_adams(case, strategy):
    kwargs, is_stacked = CASES[case]
    group, twin = (make_group(strategy, **kwargs) for _ in range(2))
    twin_module = module_of(twin)
    twin_module.load_state_dict(module_of(group).state_dict())
    start = actor_rows(group)
    assert torch.equal(start[0], start[1])
    oracle = Oracle(twin, weight=1 / 3 if strategy == "actor_average" else 1.0)
    for round in (1, 2, 3):
        request = make_request(3, strategy, rewards=REWARDS, round=round)
        made = [episodes_for(group, round, kwargs.get("action_space")) for _ in range(2)]
        report = run_update(
            group, made[0], request, num_epochs=2, minibatch_size=11, shuffle_batch_per_epoch=True
        )
        oracle.update(made[1], request)
        oracle.take_kl_coefficient(group)
        torch.testing.assert_close(actor_rows(group), oracle.parameters, rtol=0, atol=1e-10)
        assert report.drops == [None] * 3
    moved = (actor_rows(group) - start).abs().amax(dim=1)
    assert (moved > 1e-2).all()
    assert (actor_rows(group)[0] - actor_rows(group)[2]).abs().max() > 1e-3
    module, stock = module_of(group), learner_of(group).has_stock_loss(DEFAULT_MODULE_ID)
    assert (stock and why_not_stacked(module) is None) == is_stacked


def spoiled(group: Any, round: int = 1) -> list[Any]:
    made = episodes_for(group, round)
    bad = next(e for e in made if len(e) == 17)
    bad.rewards.data[3] = math.nan
    return made


def test_a_dropped_worker_stays_where_it_is_and_the_others_merge_without_it():
    group, twin = make_group(), make_group()
    module_of(twin).load_state_dict(module_of(group).state_dict())
    oracle = Oracle(twin, weight=1 / 2)
    request = make_request(3, "actor_average", rewards=REWARDS)
    settings = {"num_epochs": 2, "minibatch_size": 11, "shuffle_batch_per_epoch": True}
    before = actor_rows(group)
    report = run_update(group, spoiled(group), request, **settings)
    assert "rewards" in report.drops[1]
    assert torch.equal(actor_rows(group)[1], before[1])
    oracle.update(episodes_for(twin), request, without=1)
    oracle.take_kl_coefficient(group)
    torch.testing.assert_close(actor_rows(group), oracle.parameters, rtol=0, atol=1e-10)
    # It comes back with an optimizer that was never there.
    oracle.weight = 1 / 3
    request = make_request(3, "actor_average", rewards=REWARDS, round=2)
    run_update(group, episodes_for(group, 2), request, **settings)
    oracle.update(episodes_for(twin, 2), request)
    torch.testing.assert_close(actor_rows(group), oracle.parameters, rtol=0, atol=1e-10)


class BadGradient(EitherPrecision):
    """A loss that is finite and has no finite gradient, for the rows of worker 1."""

    def losses_of_rows(self, module_id, columns, fwd_out, sizes):
        losses = super().losses_of_rows(module_id, columns, fwd_out, sizes)
        poison = fwd_out[Columns.VF_PREDS].sum() * 0.0
        total = losses.total.clone()
        total[1] = total[1] + torch.sqrt(poison - poison.detach())
        return dataclasses.replace(losses, total=total)


def test_a_gradient_that_is_not_finite_drops_its_worker_only():
    group = make_group(learner=BadGradient)
    before = actor_rows(group)
    report = run_update(group, episodes_for(group), make_request(3, "actor_sum", rewards=REWARDS))
    assert "its gradient is not finite" in report.drops
    after = actor_rows(group)
    dropped = [reason is not None for reason in report.drops]
    for worker in range(3):
        assert torch.equal(after[worker], before[worker]) == dropped[worker]
    assert torch.isfinite(after).all()
    assert not all(dropped) or report.num_skipped_steps


def test_without_any_worker_the_step_is_skipped():
    group = make_group()
    before = actor_rows(group)
    made = episodes_for(group)
    for episode in made:
        episode.rewards.data[:] = math.nan
    report = run_update(group, made, make_request(3, "actor_average"), num_epochs=2)
    assert report.num_steps == 0
    assert report.num_skipped_steps == 2
    assert torch.equal(actor_rows(group), before)


def test_each_worker_is_bootstrapped_by_its_own_value_function():
    group = make_group()
    learner = learner_of(group)
    for worker in range(3):
        for stack in learner.per_worker.stacked.values():
            stack.data[worker] += 0.1 * worker
    made = episodes_for(group)
    data = WorkerTrainingData.from_workers(group_by_worker(made, num_workers=3))
    _, batch = learner._round_batch(data)
    for worker in range(3):
        module = copy.deepcopy(module_of(group))
        module.load_state_dict({**module.state_dict(), **learner.per_worker.of_worker(worker)})
        columns = batch.take(batch.rows[worker])
        values = module.compute_values(columns)
        # Value targets are advantages plus values, the advantages not standardised yet.
        found = columns[Postprocessing.VALUE_TARGETS] - columns[Postprocessing.ADVANTAGES]
        torch.testing.assert_close(found, values.detach(), rtol=0, atol=1e-6)
        other = learner.per_worker.of_worker((worker + 1) % 3)
        module.load_state_dict({**module.state_dict(), **other})
        assert (found - module.compute_values(columns)).abs().max() > 1e-3


class Tilted(Weighting):
    """A strategy of a user's: only worker 0 counts in what is merged."""

    signal = "none"
    per_worker_parameters = True

    def shares(self, signals, *, generator=None):
        shares = torch.zeros_like(signals)
        shares[0] = 1.0
        return shares

    def weights(self, shares, *, min_weight=None):
        return shares


def test_a_users_weights_decide_what_is_merged():
    group, twin = make_group(Tilted()), make_group(Tilted())
    module_of(twin).load_state_dict(module_of(group).state_dict())
    oracle = Oracle(twin, weight={0: 1.0, 1: 0.0, 2: 0.0})
    request = make_request(3, Tilted())
    settings = {"num_epochs": 2, "minibatch_size": 11, "shuffle_batch_per_epoch": True}
    start = actor_rows(group)
    report = run_update(group, episodes_for(group), request, **settings)
    oracle.update(episodes_for(twin), request)
    torch.testing.assert_close(actor_rows(group), oracle.parameters, rtol=0, atol=1e-10)
    assert report.weights == [1.0, 0.0, 0.0]
    assert ((actor_rows(group) - start).abs().amax(dim=1) > 1e-2).all()


def test_losses_of_the_round_are_each_workers_own():
    group = make_group()
    learner = learner_of(group)
    for worker in range(3):
        for stack in learner.per_worker.stacked.values():
            stack.data[worker] += 0.1 * worker
    data = WorkerTrainingData.from_workers(group_by_worker(episodes_for(group), num_workers=3))
    module_id, batch = learner._round_batch(data)
    request = make_request(3, "actor_sum")
    merger = RoundWeights(request)
    found = make_steps(
        Round(learner, module_id, batch, merger, [0, 1, 2]), request
    ).losses_of_round()
    assert not found.total.requires_grad
    assert found.total.unique().numel() == 3
    for worker in range(3):
        with learner.per_worker.as_worker(worker), torch.no_grad():
            alone = learner.worker_losses(module_id, batch, Minibatch.of(batch.rows), [worker])
        torch.testing.assert_close(found.total[worker], alone.total[0], rtol=0, atol=1e-12)


# Sizes 2, 3, 1: rows 0 1 | 2 3 4 | 5. The rectangle repeats each worker's first row.
def test_padding_by_hand():
    indices, real = padding([2, 3, 1])
    assert indices.tolist() == [[0, 1, 0], [2, 3, 4], [5, 5, 5]]
    assert real.tolist() == [0, 1, 3, 4, 5, 6]


def test_nothing_is_padded_where_all_have_the_same_number():
    indices, real = padding([2, 2])
    assert indices.tolist() == [[0, 1], [2, 3]]
    assert real is None
