"""Each worker's gradient from one batched pass equals that of a pass over its rows alone."""

from __future__ import annotations

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_weighted.learning.gradients import WorkerGradients
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import WorkerTrainingData, group_by_worker
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.learning.steps import Round
from tests.learning.helpers import (
    SGD,
    learner_of,
    make_episodes,
    make_request,
    oracle_gradients,
    pooled_group,
)

LENGTHS = ([5, 3], [4], [2, 2, 2])


class OwnLoss(SGD):
    """A loss that one batched pass cannot know."""

    def compute_loss_for_module(self, **kwargs):
        return 2 * super().compute_loss_for_module(**kwargs)


def round_of(group, lengths=LENGTHS):
    episodes = make_episodes(lengths)
    learner = learner_of(group)
    data = WorkerTrainingData.from_workers(group_by_worker(episodes, num_workers=len(lengths)))
    module_id, batch = learner._round_batch(data)
    batch.standardize_advantages("worker")
    request = make_request(len(lengths))
    return Round(learner, module_id, batch, RoundWeights(request), list(batch.rows))


@pytest.mark.parametrize("learner_class", [SGD, OwnLoss])
@pytest.mark.parametrize("workers", [[0, 1, 2], [2, 0]])
def test_against_one_pass_per_worker(learner_class, workers):
    group = pooled_group(3, learner_class)
    round = round_of(group)
    parts = {worker: round.batch.rows[worker] for worker in workers}
    found = WorkerGradients(round).of(Minibatch.of(parts), in_parts=True)
    wanted, losses = oracle_gradients(learner_of(group), DEFAULT_MODULE_ID, round.batch, parts)
    torch.testing.assert_close(found.total, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.losses.total, losses, rtol=0, atol=1e-12)
    assert not found.losses.total.requires_grad
    assert (found.value is None) == (learner_class is OwnLoss)


def test_the_parts_of_the_loss_add_up():
    group = pooled_group(3, SGD)
    round = round_of(group)
    gradients = WorkerGradients(round)
    apart = gradients.of(Minibatch.of(round.batch.rows), in_parts=True)
    whole = gradients.of(Minibatch.of(round.batch.rows))
    assert whole.value is None
    torch.testing.assert_close(apart.policy + apart.value, whole.policy, rtol=0, atol=1e-12)
    assert float(apart.value.norm()) > 0
    # The value function's own layers are moved by its part alone.
    parts = {name: gradients.named(apart.policy[0]) for name in ("policy",)}
    names = [name for name in parts["policy"] if name.startswith("vf.")]
    assert names
    assert all(bool((parts["policy"][name] == 0).all()) for name in names)


def test_names_and_shapes():
    group = pooled_group(3, SGD)
    round = round_of(group)
    gradients = WorkerGradients(round)
    named = gradients.named(torch.arange(float(gradients.num_parameters)))
    parameters = dict(round.module.named_parameters())
    assert {n: t.shape for n, t in named.items()} == {n: p.shape for n, p in parameters.items()}
    assert torch.cat([t.flatten() for t in named.values()]).tolist() == list(
        range(gradients.num_parameters)
    )


def test_parameters_per_worker_have_their_own_gradients():
    group = pooled_group(3, WeightedPPOLearner, merge_strategy="actor_average")
    learner = learner_of(group)
    with torch.no_grad():
        for stacked in learner.per_worker.stacked.values():
            stacked[1] += 0.1
    round = round_of(group)
    found = WorkerGradients(round).of(Minibatch.of(round.batch.rows)).total
    for worker, rows in round.batch.rows.items():
        for parameter, stacked in zip(
            round.module.parameters(), learner.per_worker.stacked.values(), strict=True
        ):
            parameter.data.copy_(stacked[worker])
        wanted, _ = oracle_gradients(learner, DEFAULT_MODULE_ID, round.batch, {worker: rows})
        torch.testing.assert_close(found[worker], wanted[0], rtol=0, atol=1e-5)
    assert not torch.equal(found[0], found[1])
