"""The simulated cluster, against rounds computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cluster_model import PHASES, Costs, Setup, fit_line, remedies, saturation, simulate

COSTS = Costs(
    sample=1e-3,
    sample_spread=0.0,
    collect=1e-2,
    take_in=1e-4,
    step=2e-3,
    row=1e-5,
    worker=1e-6,
    step_bytes=100.0,
    order_bytes=1000.0,
    parameter_bytes=4000.0,
)
SETUP = Setup(steps_per_runner=100, minibatch=50, epochs=2, bytes_per_s=1e6)


def test_a_round_by_hand():
    found = simulate(COSTS, SETUP, 3)
    assert found["sampling"] == pytest.approx(100 * 1e-3)
    assert found["network"] == pytest.approx((300 * 100 + 3 * 1000) / 1e6)
    assert found["driver"] == pytest.approx(3 * 1e-2 + 300 * 1e-4)
    assert found["learner"] == pytest.approx(2 * 6 * (2e-3 + 50 * 1e-5 + 3 * 1e-6))
    assert found["steps_per_s"] == pytest.approx(300 / sum(found[phase] for phase in PHASES))


def test_two_learners_share_rows_and_workers_and_pay_for_the_sum():
    found = simulate(COSTS, replace(SETUP, learners=2), 3)
    per_step = 2e-3 + (50 * 1e-5 + 3 * 1e-6) / 2 + 2 * 4000 / 1e6
    assert found["learner"] == pytest.approx(2 * 6 * per_step)
    direct = simulate(COSTS, replace(SETUP, learners=2, direct=True), 3)
    assert direct["driver"] == pytest.approx(3 * 1e-2 + 300 * 1e-4 / 2)
    assert direct["network"] == pytest.approx((300 * 100 / 2 + 3 * 1000) / 1e6)


def test_a_fixed_batch_is_shared_out():
    fixed = replace(SETUP, steps_per_runner=None, batch=600)
    assert simulate(COSTS, fixed, 3)["sampling"] == pytest.approx(200 * 1e-3)
    assert simulate(COSTS, fixed, 6)["sampling"] == pytest.approx(100 * 1e-3)


def test_minibatches_that_grow_keep_the_number_of_steps():
    large = replace(SETUP, minibatch_share=0.5)
    assert simulate(COSTS, large, 3)["learner"] == pytest.approx(
        2 * 2 * (2e-3 + 150 * 1e-5 + 3 * 1e-6)
    )


def test_the_round_waits_for_the_slowest():
    spread = replace(COSTS, sample_spread=0.5)
    times = [simulate(spread, SETUP, runners)["sampling"] for runners in (1, 10, 100)]
    assert times[0] == pytest.approx(0.1, rel=0.15)  # The mean of one is the mean.
    assert times == sorted(times)
    # E max of 100 standard normal draws is 2.51: exp(0.5 * 2.51 - 0.125) and a little more.
    assert times[2] == pytest.approx(0.1 * 3.2, rel=0.08)
    assert simulate(spread, SETUP, 10, seed=1) == simulate(spread, SETUP, 10, seed=1)
    assert simulate(spread, SETUP, 10, seed=1) != simulate(spread, SETUP, 10, seed=2)


def test_saturation_names_what_limits():
    counts = [1, 2, 5, 10, 100, 1000]
    count, limit, _ = saturation(COSTS, SETUP, counts)
    # 0.1 s of sampling against 0.043 s more for every env runner.
    assert limit in ("driver", "learner")
    assert 10 <= count <= 100
    slow = replace(COSTS, sample=10.0)
    assert saturation(slow, SETUP, counts)[:2] == (1000, "sampling")


def test_remedies_start_from_what_is():
    found = remedies(SETUP)
    assert found["as it is"] == SETUP
    assert all(other != SETUP for name, other in found.items() if name != "as it is")


def test_a_fitted_line_by_hand():
    assert fit_line([1, 2, 3], [5, 7, 9]) == pytest.approx((3, 2))
    assert fit_line([1, 2, 3], [1, 0, -1]) == (pytest.approx(2), 0)
