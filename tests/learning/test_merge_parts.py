"""Weights of its own for the value function's part of the loss."""

from __future__ import annotations

import pytest
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from rllib_weighted.merging import LossWeighted, resolve_strategy
from tests.learning.helpers import (
    LR,
    SGD,
    build_group,
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    pooled_group,
    run_update,
    small_config,
)

LENGTHS = ([5, 3], [4], [2, 2, 2])
REWARDS = [1.0, 3.0, 0.0]


def slow_step(group, weights, value_weights):
    """One step of plain gradient descent: two backward passes for every worker."""
    learner = learner_of(group)
    episodes = make_episodes(LENGTHS)
    data = WorkerTrainingData.from_workers(group_by_worker(episodes, num_workers=3))
    module_id, batch = learner._round_batch(data)
    batch.standardize_advantages("worker")
    config = learner.config.get_config_for_module(module_id)
    parameters = list(learner.module[module_id].parameters())
    step = torch.zeros_like(flat_parameters(group))
    for rows, weight, of_value in zip(batch.rows.values(), weights, value_weights, strict=True):
        for coeff, factor in ((0.0, weight), (config.vf_loss_coeff, of_value)):
            columns = batch.take(rows)
            part = config.copy(copy_frozen=False)
            part.vf_loss_coeff = coeff
            loss = learner.compute_loss_for_module(
                module_id=module_id,
                config=part,
                batch=columns,
                fwd_out=learner.module[module_id].forward_train(columns),
            )
            if coeff:  # What the value's part adds.
                part.vf_loss_coeff = 0.0
                loss = loss - learner.compute_loss_for_module(
                    module_id=module_id,
                    config=part,
                    batch=columns,
                    fwd_out=learner.module[module_id].forward_train(columns),
                )
            found = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
            step += factor * torch.cat([g.flatten() for g in found])
    return flat_parameters(group) - LR * step


def test_each_part_has_its_weights():
    group = pooled_group(3, SGD)
    # Returns 1, 3, 0: shares 1/4, 3/4, 0; m = 0. The value's part: the average.
    wanted = slow_step(group, [0.25, 0.75, 0.0], [1 / 3] * 3)
    other = slow_step(group, [0.25, 0.75, 0.0], [0.25, 0.75, 0.0])
    request = make_request(
        3,
        "reward_weighted",
        rewards=REWARDS,
        min_weight=0.0,
        value_strategy=resolve_strategy("average"),
    )
    result = run_update(group, make_episodes(LENGTHS), request)
    torch.testing.assert_close(flat_parameters(group), wanted, rtol=0, atol=1e-12)
    assert float((flat_parameters(group) - other).abs().max()) > 1e-4
    assert result.weights == pytest.approx([0.25, 0.75, 0.0])


@pytest.mark.parametrize("value", ["average", "loss_weighted", "advantage_scaled"])
def test_the_same_strategy_twice_is_one_strategy(value):
    def train(**kwargs):
        group = pooled_group(3, SGD)
        options = {"minibatch_size": 9, "num_epochs": 2}
        run_update(group, make_episodes(LENGTHS), make_request(3, value, **kwargs), **options)
        return flat_parameters(group)

    both = train(value_strategy=resolve_strategy(value))
    torch.testing.assert_close(both, train(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", ["average", LossWeighted(scope="round", direction="low")])
def test_without_autograd_as_with_it(value):
    found = []
    for fast in (True, False):
        group = pooled_group(3, fast_learner=fast)
        assert (learner_of(group).closed_form_networks is not None) == fast
        request = make_request(
            3, "reward_weighted", rewards=REWARDS, value_strategy=resolve_strategy(value)
        )
        run_update(group, make_episodes(LENGTHS), request, num_epochs=3, minibatch_size=9)
        found.append(flat_parameters(group))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_from_the_config():
    config = small_config(3).training(
        merge_strategy="average",
        merge_parts={"value": {"merge_strategy": "loss_weighted", "min_weight": 0.5}},
    )
    request = learner_of(build_group(config))._request_from({}, 0)
    assert request.value_strategy == LossWeighted()
    assert request.value_min_weight == 0.5
    assert config.merge_signals == ("loss",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("average", '`merge_parts` should be None or a dict with the key "value"'),
        ({"policy": "average"}, "with the key \"value\", found {'policy'"),
        ({"value": "averge"}, "in `merge_parts`.* found 'averge'.* mean 'average'"),
        ({"value": {"strategy": "average"}}, "should have the keys .* found \\['strategy'\\]"),
        ({"value": {"merge_strategy": "average", "min_weight": -1}}, "`min_weight` in .* found -1"),
        ({"value": {"merge_strategy": "sum", "merge_options": {"a": 1}}}, "takes no options"),
        ({"value": "torchjd"}, "needs shared parameters and strategies with weights"),
    ],
)
def test_bad_parts(parts, message):
    with pytest.raises(ValueError, match=message):
        small_config(3).environment("CartPole-v1").training(merge_parts=parts).validate()


def test_parameters_per_worker_have_no_parts():
    config = small_config(3).training(
        merge_strategy="actor_average", merge_parts={"value": "average"}
    )
    with pytest.raises(ValueError, match="needs shared parameters"):
        config.validate()


def test_a_recurrent_module_has_no_parts():
    config = small_config(3).training(merge_parts={"value": "average"})
    config.rl_module(model_config=DefaultModelConfig(use_lstm=True, max_seq_len=4))
    with pytest.raises(ValueError, match=r"`merge_parts` needs PPO's own loss.* recurrent"):
        build_group(config)
