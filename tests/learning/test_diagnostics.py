"""What a round measures of its workers' gradients, against a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_weighted.learning import diagnostics
from rllib_weighted.learning.diagnostics import (
    half_batches,
    measure_gradients,
    predicted_weights,
)
from rllib_weighted.merging import AdvantageScaled, Average, GradientSums, diagnose
from tests.learning.helpers import (
    SGD,
    learner_of,
    make_episodes,
    make_request,
    oracle_gradients,
    pooled_group,
    run_update,
)
from tests.learning.test_gradients import OwnLoss, round_of

LENGTHS = ([9, 3], [8], [7, 2, 2])


def slow(round, request):
    """Two gradients per worker, by two passes each."""
    sums = []
    for half in (0, 1):
        parts = {w: half_batches(round, request, w)[half] for w in round.batch.rows}
        learner = round.learner
        sums.append(oracle_gradients(learner, DEFAULT_MODULE_ID, round.batch, parts)[0])
    return diagnose(GradientSums.of(*sums))


@pytest.mark.parametrize("block", [1 << 26, 1])
@pytest.mark.parametrize("learner_class", [SGD, OwnLoss])
def test_against_a_slow_loop(learner_class, block, monkeypatch):
    monkeypatch.setattr(diagnostics, "_BLOCK", block)  # 1: worker after worker
    round = round_of(pooled_group(3, learner_class), LENGTHS)
    request = make_request(3, rewards=[1.0, 2.0, 3.0])
    found, signals = measure_gradients(round, request, {"return": request.reward_signals})
    wanted = slow(round, request)
    for name in ("signal_norm", "noise_scale", "heterogeneity", "agreement", "spread"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9), name
    assert found.noises == pytest.approx(wanted.noises)
    assert list(signals["gradient_noise"].values()) == pytest.approx(wanted.noises)
    assert signals["gradient_spread"] == pytest.approx(dict.fromkeys(range(3), wanted.spread))
    assert signals["gradient_agreement"] == pytest.approx(dict(enumerate(wanted.agreements)))
    assert set(found.parts) == (set() if learner_class is OwnLoss else {"policy", "value"})
    assert {"average", "reward_weighted", "inverse_variance"} <= found.speed.keys()
    assert found.speed["average"] == pytest.approx(1.0)
    assert found.gain["sum"] == pytest.approx(1.0)


def test_the_runs_own_options_are_predicted_and_the_others_have_their_defaults():
    scales = {"advantage_scale": {0: 1.0, 1: 2.0, 2: 3.0}}

    def weights(strategy):
        found = predicted_weights(make_request(3, strategy), [0, 1, 2], scales)
        return {name: (w / w.sum()).tolist() for name, w in found.items() if "scaled" in name}

    by_default = {
        "advantage_scaled": pytest.approx([1 / 6, 2 / 6, 3 / 6]),
        "advantage_scaled_inverse": pytest.approx([6 / 11, 3 / 11, 2 / 11]),
    }
    assert weights(Average()) == by_default
    squared = {"advantage_scaled": pytest.approx([1 / 14, 4 / 14, 9 / 14])}
    assert weights(AdvantageScaled(exponent=2.0)) == {**by_default, **squared}


def test_halves_are_halves():
    round = round_of(pooled_group(3, SGD), LENGTHS)
    request = make_request(3)
    for worker, rows in round.batch.rows.items():
        first, second = half_batches(round, request, worker)
        assert len(first) == len(second) == len(rows) // 2
        assert len({*first, *second}) == 2 * len(first)
        assert {*first, *second} <= {*rows}
    again = half_batches(round, make_request(3, round=2), 0)
    assert not np.array_equal(again[0], half_batches(round, request, 0)[0])


def test_halves_of_whole_episodes(monkeypatch):
    round = round_of(pooled_group(3, SGD), ([9, 3, 4, 5], [8], [7, 2, 2]))
    monkeypatch.setattr(round.learner.config, "merge_diagnostics_halves", "episodes", raising=False)
    chunks = round.batch.chunks
    assert np.unique(chunks, return_counts=True)[1].tolist() == [9, 3, 4, 5, 8, 7, 2, 2]
    first, second = half_batches(round, make_request(3), 0)
    assert sorted([*first, *second]) == sorted(round.batch.rows[0])
    assert not {*chunks[first]} & {*chunks[second]}
    assert len({*chunks[first]}) == len({*chunks[second]}) == 2
    assert half_batches(round, make_request(3), 1) is None  # A single episode.
    found, signals = measure_gradients(round, make_request(3), {})
    assert signals["gradient_noise"].keys() == {0, 2}
    assert len(found.noises) == 2


def test_a_worker_with_a_single_row_is_not_measured():
    round = round_of(pooled_group(3, SGD), ([4], [1], [5]))
    found, signals = measure_gradients(round, make_request(3), {})
    assert signals["gradient_noise"].keys() == {0, 2}
    assert len(found.noises) == 2


def test_nobody_can_be_measured():
    round = round_of(pooled_group(3, SGD), ([1], [1], [1]))
    assert measure_gradients(round, make_request(3), {}) == (None, {})


def test_a_gradient_that_is_not_finite_spoils_nobodys_else():
    round = round_of(pooled_group(3, SGD), LENGTHS)
    request = make_request(3)
    row = round.batch.rows[1][0]
    round.batch.columns["advantages"][row] = math.inf
    found, signals = measure_gradients(round, request, {})
    assert signals["gradient_noise"].keys() == {0, 2}
    assert all(map(math.isfinite, (*found.noises, found.signal_norm, found.spread)))


def test_an_update_measures_before_its_first_step_and_changes_nothing():
    """The same parameters with and without; the measurement is that of the old parameters."""
    plain, measured = (pooled_group(3, SGD) for _ in range(2))
    kwargs = {"num_epochs": 2, "minibatch_size": 8}
    request = make_request(3, measures_gradients=True)
    first = run_update(plain, make_episodes(LENGTHS), make_request(3), **kwargs)
    second = run_update(measured, make_episodes(LENGTHS), request, **kwargs)
    for one, other in zip(
        learner_of(plain)._params.values(), learner_of(measured)._params.values(), strict=True
    ):
        assert torch.equal(one, other)
    assert first.diagnostics is None
    assert first.gradient_signals == {}
    fresh = round_of(pooled_group(3, SGD), LENGTHS)
    wanted, signals = measure_gradients(fresh, make_request(3), {})
    assert second.diagnostics.noises == pytest.approx(wanted.noises)
    assert second.gradient_signals.keys() == signals.keys()
    for name, values in signals.items():
        assert second.gradient_signals[name] == pytest.approx(values, rel=1e-12)


def test_inverse_variance_weighs_by_what_was_measured():
    group = pooled_group(3, SGD, merge_strategy="inverse_variance")
    request = make_request(3, "inverse_variance", measures_gradients=True)
    result = run_update(group, make_episodes(LENGTHS), request)
    found = result.diagnostics
    variances = torch.tensor(found.noises) + found.spread
    expected = (1 / variances) / (1 / variances).sum()
    squares = float(expected.square().sum())
    if 1 / squares >= 1.5:  # Else it is mixed with equal weights.
        assert result.weights == pytest.approx(expected.tolist(), rel=1e-6)
    assert result.ages == [0, 0, 0]
    # The next round does not measure: the same signals, one round old.
    later = make_request(3, "inverse_variance", round=2)
    kept = run_update(group, make_episodes(LENGTHS, seed=5), later)
    assert kept.weights == pytest.approx(result.weights)
    assert kept.ages == [1, 1, 1]
