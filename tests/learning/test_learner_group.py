from __future__ import annotations

import pytest
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE

from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import (
    WeightedLearnerGroup,
    WorkerTrainingData,
    group_by_worker,
)
from tests.learning.helpers import (
    flat_parameters,
    learner_of,
    make_episode,
    make_episodes,
    make_request,
    pooled_group,
    run_update,
)


def test_the_config_builds_the_packages_own_group_and_learner():
    group = pooled_group(2)
    assert isinstance(group, WeightedLearnerGroup)
    assert isinstance(learner_of(group), WeightedPPOLearner)


def test_episodes_of_unknown_workers_are_refused():
    group = pooled_group(2)
    before = flat_parameters(group)
    with pytest.raises(ValueError, match="should carry one of the workers 0 … 1"):
        run_update(group, [make_episode(2, 5, seed=0)], make_request(2))
    assert torch.equal(flat_parameters(group), before)


def test_training_data_can_be_given_grouped():
    group, other = pooled_group(2), pooled_group(2)
    episodes = make_episodes([[4], [6]])
    data = WorkerTrainingData.from_workers(group_by_worker(episodes, num_workers=2))
    group.update(training_data=data, merge=make_request(2), num_epochs=2)
    run_update(other, make_episodes([[4], [6]]), make_request(2), num_epochs=2)
    assert torch.equal(flat_parameters(group), flat_parameters(other))


def test_a_worker_that_sent_nothing_is_merged_around():
    group, other = pooled_group(3), pooled_group(3)
    episodes = make_episodes([[4], [6], [5]])
    report = run_update(group, [episodes[2], episodes[0]], make_request(3, "sum"))
    assert report.weights == [1.0, 0.0, 1.0]
    assert report.losses[1] is report.signals[1] is None
    run_update(other, make_episodes([[4], [6], [5]]), make_request(3, "sum"))
    assert not torch.equal(flat_parameters(group), flat_parameters(other))


def test_weights_and_their_version_come_out_of_the_state():
    group = pooled_group(2)
    key = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
    before = group.get_state(components=key, inference_only=True)[COMPONENT_LEARNER]
    run_update(group, make_episodes([[4], [6]]), make_request(2))
    after = group.get_state(components=key, inference_only=True)[COMPONENT_LEARNER]
    assert after["weights_seq_no"] == before["weights_seq_no"] + 1
