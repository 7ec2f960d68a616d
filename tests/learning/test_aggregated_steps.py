"""Steps whose gradients are merged by TorchJD, against the strategies that they must equal."""

from __future__ import annotations

import math

import pytest
import torch

from tests.learning.helpers import (
    SGD,
    learner_of,
    make_episodes,
    make_request,
    pooled_group,
    run_update,
)

LENGTHS = ([5, 3], [4], [2, 2, 2])


def parameters(group):
    return torch.cat([p.detach().flatten() for p in learner_of(group)._params.values()])


def train(strategy, options=None, *, episodes=LENGTHS, **kwargs):
    group = pooled_group(3, SGD)
    before = parameters(group).clone()
    result = run_update(
        group,
        make_episodes(episodes),
        make_request(3, strategy, options, **kwargs),
        num_epochs=2,
        minibatch_size=9,
    )
    assert not torch.equal(parameters(group), before)
    return parameters(group), result


@pytest.mark.parametrize(("aggregator", "plain"), [("Mean", "average"), ("Sum", "sum")])
def test_the_mean_of_the_gradients_is_the_average(aggregator, plain):
    found, result = train("torchjd", {"aggregator": aggregator})
    wanted, other = train(plain)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert result.weights == pytest.approx(other.weights)
    assert result.num_steps == other.num_steps
    assert result.signals == other.signals


def test_upgrad_is_not_the_average():
    found, result = train("torchjd")
    wanted, _ = train("average")
    assert float((found - wanted).abs().max()) > 1e-6
    assert all(map(math.isfinite, result.weights))


def test_a_dropped_worker_is_left_out_of_the_matrix():
    found, result = train("torchjd", {"aggregator": "Mean"}, invalid={1: "its reward is NaN"})
    wanted, _ = train("average", invalid={1: "its reward is NaN"})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert result.drops == [None, "its reward is NaN", None]
    assert result.weights[1] == 0.0


def test_a_worker_without_finite_numbers_is_dropped_by_the_step():
    group = pooled_group(3, SGD)
    episodes = make_episodes(LENGTHS)
    logp = episodes[2].extra_model_outputs["action_logp"]
    logp.data[:] = -1e30  # A ratio beyond all numbers.
    result = run_update(group, episodes, make_request(3, "torchjd", {"aggregator": "Mean"}))
    assert result.drops[1] is not None
    assert result.drops[0] is result.drops[2] is None
    assert torch.isfinite(parameters(group)).all()


def test_without_a_worker_there_is_no_step():
    group = pooled_group(3, SGD)
    before = parameters(group).clone()
    request = make_request(3, "torchjd", invalid=dict.fromkeys(range(3), "gone"))
    result = run_update(group, make_episodes(LENGTHS), request)
    assert torch.equal(parameters(group), before)
    assert result.num_steps == 0
    assert result.num_skipped_steps == 1
