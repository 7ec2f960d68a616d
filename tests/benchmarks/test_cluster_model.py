"""The simulated cluster, against rounds computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cluster_model import (
    PHASES,
    Costs,
    Network,
    Setup,
    fit_line,
    levels_off,
    remedies,
    saturation,
    simulate,
)

COSTS = Costs(
    sample=1e-3,
    sample_spread=0.0,
    collect=1e-2,
    read=1e-4,
    build=3e-4,
    step=2e-3,
    row=1e-5,
    worker=1e-6,
    step_bytes=100.0,
    order_bytes=1000.0,
    parameter_bytes=4000.0,
)
NETWORK = Network(bytes_per_s=1e6, latency=4e-3, streams=2, runners_per_node=2)
SETUP = Setup(steps_per_runner=100, minibatch=50, epochs=2, network=NETWORK)
FREE = replace(COSTS, **{name: 0.0 for name in vars(COSTS) if name != "sample"})


def test_a_round_by_hand():
    found = simulate(COSTS, SETUP, 3)
    assert found["sampling"] == pytest.approx(100 * 1e-3)
    # 3 env runners are on 2 machines; all 3 finish at once, so that none is carried meanwhile.
    orders = 2 * 4e-3 / 2 + 2 * 1000 / 1e6
    assert found["network"] == pytest.approx(orders + 3 * (4e-3 / 2 + 100 * 100 / 1e6))
    assert found["driver"] == pytest.approx(3 * 1e-2 + 300 * 1e-4)
    # 2 epochs of 300 / 50 = 6 steps.
    steps = 2 * 6 * (2e-3 + 50 * 1e-5 + 3 * 1e-6)
    assert found["learner"] == pytest.approx(300 * 3e-4 + steps)
    assert found["round"] == pytest.approx(sum(found[phase] for phase in PHASES))
    assert found["steps_per_s"] == pytest.approx(300 / found["round"])


def test_two_learners_share_rows_and_workers_and_pay_for_the_sum():
    found = simulate(COSTS, replace(SETUP, learners=2), 3)
    # A ring of 2 sends 2 * (1 / 2) of the parameters; the losses and the gradients wait once each.
    per_step = 2e-3 + (50 * 1e-5 + 3 * 1e-6) / 2 + 4000 / 1e6 + 2 * 4e-3
    assert found["learner"] == pytest.approx(300 * 3e-4 / 2 + 2 * 6 * per_step)
    alone = simulate(COSTS, SETUP, 3)
    handed_on = 2 * 4e-3 / 2 + 300 * 100 / 1e6
    assert found["network"] == pytest.approx(alone["network"] + handed_on)
    assert found["driver"] == alone["driver"]


def test_rollouts_that_go_straight_to_two_learners_are_carried_and_read_side_by_side():
    through = simulate(COSTS, replace(SETUP, learners=2), 3)
    direct = simulate(COSTS, replace(SETUP, learners=2, direct=True), 3)
    assert direct["driver"] == pytest.approx(3 * 1e-2)
    assert direct["learner"] == pytest.approx(through["learner"] + 300 * 1e-4 / 2)
    orders = 2 * 4e-3 / 2 + 2 * 1000 / 1e6
    assert direct["network"] == pytest.approx(orders + 3 * (4e-3 / 2 + 100 * 100 / 1e6) / 2)


def test_the_link_is_an_obvious_queue():
    spread = replace(FREE, sample_spread=0.7, step_bytes=100.0)
    found = simulate(spread, SETUP, 5, rounds=50, seed=3)
    draws = np.random.default_rng([3, 5]).normal(size=(50, 5))
    waited = []
    for row in draws:
        times = sorted(0.1 * np.exp(0.7 * z - 0.7**2 / 2) for z in row)
        free = 0.0
        for time in times:
            free = max(free, time) + 4e-3 / 2 + 100 * 100 / 1e6
        waited.append(free - times[-1])
    orders = 3 * 4e-3 / 2
    assert found["network"] == pytest.approx(orders + np.mean(waited))
    # A control: carried only after the slowest, they would take 5 x 12 ms.
    assert found["network"] < orders + 5 * 12e-3 - 1e-3


def test_a_fixed_batch_is_shared_out():
    fixed = replace(SETUP, steps_per_runner=None, batch=600)
    assert simulate(COSTS, fixed, 3)["sampling"] == pytest.approx(200 * 1e-3)
    assert simulate(COSTS, fixed, 6)["sampling"] == pytest.approx(100 * 1e-3)


def test_a_minibatch_has_a_row_of_every_worker_or_more():
    assert SETUP.minibatches(3) == 300 // 50
    assert SETUP.minibatches(50) == 5000 // 50
    assert SETUP.minibatches(200) == 20_000 // 200  # Not 400: a worker has 100 rows.
    fixed = replace(SETUP, steps_per_runner=None, batch=600)
    assert fixed.minibatches(1000) == 1


def test_minibatches_that_grow_keep_the_number_of_steps():
    large = replace(SETUP, minibatch_share=0.5)
    assert [large.minibatches(runners) for runners in (3, 6, 40)] == [2, 2, 2]
    assert replace(SETUP, minibatch_share=1e-3).minibatches(3) == 6  # `minibatch` is the least.


def test_the_round_waits_for_the_slowest():
    spread = replace(COSTS, sample_spread=0.5)
    times = [simulate(spread, SETUP, runners)["sampling"] for runners in (1, 10, 100)]
    assert times[0] == pytest.approx(0.1, rel=0.15)  # The mean of one is the mean.
    assert times == sorted(times)
    # E max of 100 standard normal draws is 2.51: exp(0.5 * 2.51 - 0.125) and a little more.
    assert times[2] == pytest.approx(0.1 * 3.2, rel=0.08)
    assert simulate(spread, SETUP, 10, seed=1) == simulate(spread, SETUP, 10, seed=1)
    assert simulate(spread, SETUP, 10, seed=1) != simulate(spread, SETUP, 10, seed=2)


@pytest.mark.parametrize("name", [n for n in vars(COSTS) if n not in ("sample_spread",)])
def test_whatever_costs_more_makes_a_round_longer(name):
    setup = replace(SETUP, learners=2)
    dearer = replace(COSTS, **{name: 3 * getattr(COSTS, name)})
    assert simulate(dearer, setup, 4)["round"] > simulate(COSTS, setup, 4)["round"]


def test_saturation_by_hand():
    # Per round 0.1 s of sampling and 0.01 s of the driver for every env runner: the throughput is
    # 100 R / (0.1 + 0.01 R), its limit 10,000, and 90 % of that are reached at R = 90.
    # 8 times as many bring 8 (0.1 + 0.01 R) / (0.1 + 0.08 R) times as much: 1.1 at R = 86.25.
    costs = replace(FREE, collect=1e-2)
    setup = replace(SETUP, network=replace(NETWORK, latency=0.0))
    found = saturation(costs, setup, [1, 10, 86, 87, 89, 90, 91, 1000], beyond=[10**6])
    assert found.limit == pytest.approx(10_000, rel=1e-3)
    assert found.at_last == pytest.approx(100_000 / 10.1)
    assert (found.ninety.runners, found.ninety.phase) == (90, "driver")
    assert found.ninety.share == pytest.approx(0.9 / 1.0)
    assert (found.knee.runners, found.knee.phase) == (87, "driver")
    assert found.knee.share == pytest.approx(0.87 / 0.97)


def test_what_still_rises_straight_is_not_called_saturated():
    costs, counts = replace(FREE, collect=1e-6), [10, 100, 900, 1000]
    setup = replace(SETUP, network=replace(NETWORK, latency=0.0))
    found = saturation(costs, setup, counts, beyond=[16_000])
    assert (found.ninety.runners, found.knee.runners) == (None, None)
    assert found.ninety.phase == found.knee.phase == "sampling"
    # A control: without looking further.
    assert saturation(costs, setup, counts).ninety.runners == 900


def test_a_fixed_batch_levels_off_by_hand():
    # Rounds of 60 s / R of sampling and 6 s of building: 60 / R + 6 against 30 / R + 6.
    costs = replace(FREE, sample=0.1, build=1e-2)
    network = replace(NETWORK, latency=0.0)
    setup = replace(SETUP, steps_per_runner=None, batch=600, network=network)
    # R = 10 saves 3 of 12 s, a quarter; R = 12 saves 2.5 of 11 s.
    assert levels_off(costs, setup, [1, 5, 9, 12, 20], times=(2,), gain=4 / 3) == 12
    assert levels_off(costs, setup, [1, 5, 9], times=(2,), gain=4 / 3) is None


def test_remedies_start_from_what_is_and_change_it():
    for setup in (SETUP, Setup(steps_per_runner=None)):
        found = remedies(setup, learners=4)
        assert found["as it is"] == setup
        others = [other for name, other in found.items() if name != "as it is"]
        assert all(other != setup for other in others)
        assert {other.learners for other in others} == {1, 4}
        large = found["minibatches of a 16th of the batch"]
        assert large.minibatches(100) < setup.minibatches(100)


def test_a_fitted_line_by_hand():
    assert fit_line([1, 2, 3], [5, 7, 9]) == pytest.approx((3, 2))
    assert fit_line([1, 2, 3], [1, 0, -1]) == (pytest.approx(2), 0)


def test_a_relative_fit_is_not_ruled_by_the_greatest():
    # 3 + 2 x, but for a last point that is 10 % too high.
    xs, ys = [1, 10, 1000], [5, 23, 2203]
    intercept, slope = fit_line(xs, ys, relative=True)
    # Errors of (a + b x) / y - 1, by the normal equations in 1 / y and x / y.
    u, v = np.array([1 / y for y in ys]), np.array([x / y for x, y in zip(xs, ys, strict=True)])
    expected = np.linalg.solve([[u @ u, u @ v], [u @ v, v @ v]], [u.sum(), v.sum()])
    assert (intercept, slope) == pytest.approx(tuple(expected))
    assert abs(intercept - 3) < 0.2
    assert abs(fit_line(xs, ys)[0] - 3) > 0.2  # A control.
