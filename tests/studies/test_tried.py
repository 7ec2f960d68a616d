from dataclasses import replace

import pytest
import torch

from studies import training, tried
from studies.design import Arm, digest
from tests.studies import test_training
from tests.studies.test_training import reproducible

# So fast that a few steps show in the returns.
TASK = replace(test_training.TASK, training={**test_training.TASK.training, "lr": 1e-2})
AVERAGE = {"merge_strategy": "average"}


def test_agreement_is_the_mean_cosine_with_the_others():
    assert tried.agreement(torch.tensor([[1.0, 0.0], [2.0, 0.0]])) == pytest.approx(1.0)
    assert tried.agreement(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-1.0)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    # Cosines of the rows with (1, 2), (2, 1) and (1, 1).
    assert tried.agreement(rows) == pytest.approx((2 / 5**0.5 + 1) / 3)


def test_signal_to_noise_is_1_without_noise_and_0_without_signal():
    rows = torch.tensor([[2.0, 1.0, 0.0, 3.0], [2.0, -1.0, 0.0, 1.0]])
    # Of the last: m = 2, v = 2, N = 2.
    torch.testing.assert_close(
        tried.signal_to_noise(rows), torch.tensor([1.0, 0.0, 0.0, 4.0 / (4.0 + 1.0)])
    )


def with_learner(name):
    return Arm(name, AVERAGE, learner=name)


def test_workers_that_agree_take_all_epochs_and_those_that_do_not_take_one(
    ray_session, monkeypatch
):
    plain = training.train(TASK, Arm("average", AVERAGE), 1)
    one_epoch = Arm("one epoch", {**AVERAGE, "num_epochs": 1})
    monkeypatch.setattr(tried, "agreement", lambda rows: 1.0)
    found = training.train(TASK, with_learner("agreement"), 1)
    assert found["score"] == pytest.approx(plain["score"])
    monkeypatch.setattr(tried, "agreement", lambda rows: -1.0)
    found = training.train(TASK, with_learner("agreement"), 1)
    assert found["score"] == pytest.approx(training.train(TASK, one_epoch, 1)["score"])
    assert found["score"] != pytest.approx(plain["score"])


def test_equal_factors_change_nothing_and_others_do(ray_session, monkeypatch):
    plain = training.train(TASK, Arm("average", AVERAGE), 1)
    found = training.train(TASK, with_learner("signal to noise"), 1)
    assert found["score"] != pytest.approx(plain["score"])
    monkeypatch.setattr(tried, "signal_to_noise", lambda rows: torch.full_like(rows[0], 0.3))
    found = training.train(TASK, with_learner("signal to noise"), 1)
    assert found["score"] == pytest.approx(plain["score"])


def test_a_run_with_a_learner_depends_on_its_seed_alone(ray_session):
    first = training.train(TASK, with_learner("signal to noise"), 1)
    training.train(TASK, with_learner("agreement"), 2)
    again = training.train(TASK, with_learner("signal to noise"), 1)
    assert reproducible(again) == reproducible(first)


def test_a_learner_is_part_of_the_digest_and_none_is_not():
    arm = Arm("average", AVERAGE)
    assert digest(TASK, arm) == digest(TASK, replace(arm, learner=""))
    assert digest(TASK, arm) != digest(TASK, replace(arm, learner="agreement"))
