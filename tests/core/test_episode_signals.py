from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rllib_weighted.core.episode_signals import SUCCESS_DECAY, EpisodeSignals, success_of


def test_success_by_hand():
    known = EpisodeSignals()
    known.add(1, {0: [1.0, 0.0]}, {0: [True, False]})
    known.add(2, {0: [1.0]}, {0: [True]})
    # k = 0.9 x 1 + 1, n = 0.9 x 2 + 1
    assert SUCCESS_DECAY == 0.9
    signals = known.signals(2)
    assert signals["success"] == pytest.approx({0: 1.9 / 2.8})
    assert signals["success_episodes"] == pytest.approx({0: 2.8, 1: 0.0})


def test_a_return_can_stand_for_success():
    known = EpisodeSignals()
    known.add(1, {0: [1.0, 3.0], 1: [2.0]}, {0: [False, False]}, success_return=2.0)
    assert known.signals(2)["success"] == {0: 0.5, 1: 1.0}


def test_where_nothing_says_success_there_is_none():
    known = EpisodeSignals()
    known.add(1, {0: [1.0, 3.0]}, {})
    signals = known.signals(2)
    assert signals["success"] == signals["success_episodes"] == {}


def test_the_variance_is_in_units_of_the_range_of_all_workers():
    known = EpisodeSignals()
    known.add(1, {0: [0.0, 4.0], 1: [10.0]}, {})
    # worker 0: variance 4; range 10
    assert known.signals(2)["return_variance"] == pytest.approx({0: 0.04, 1: 0.0})
    known.add(2, {1: [20.0]}, {})
    assert known.signals(2)["return_variance"] == pytest.approx({0: 4 / 400, 1: 25 / 400})


def test_the_variance_forgets_old_episodes_but_not_the_range():
    known = EpisodeSignals()
    known.add(1, {0: [0.0, 100.0]}, {})
    known.add(2, {0: [50.0] * 32}, {})
    assert known.signals(1)["return_variance"] == {0: 0.0}
    known.add(3, {0: [51.0, 50.0, 51.0]}, {})
    assert 0 < known.signals(1)["return_variance"][0] < 1e-4


def test_equal_returns_have_no_variance():
    known = EpisodeSignals()
    known.add(1, {0: [3.0, 3.0]}, {})
    assert known.signals(1)["return_variance"] == {0: 0.0}


def test_ages():
    known = EpisodeSignals()
    known.add(1, {0: [1.0], 1: [1.0], 2: []}, {})
    known.add(4, {1: [1.0]}, {})
    assert known.ages(4) == {0: 3, 1: 0}


def test_it_comes_back_from_a_checkpoint():
    known = EpisodeSignals()
    known.add(1, {0: [1.0, 2.0]}, {0: [True]})
    again = EpisodeSignals(**dataclasses.asdict(known))
    assert again == known
    again.add(2, {0: [5.0]}, {})
    known.add(2, {0: [5.0]}, {})
    assert again.signals(1) == known.signals(1)


@pytest.mark.parametrize(
    ("info", "success"),
    [
        ({}, None),
        ({"is_success": True}, True),
        ({"success": 0.0}, False),
        ({"is_success": np.float32(1.0), "success": 0.0}, True),
        ({"success": np.array([True])}, True),
        ({"success": float("nan")}, None),
        ({"success": "yes"}, None),
        ({"success": [1, 0]}, None),
        ({"success": None}, None),
    ],
)
def test_what_an_info_says(info, success):
    assert success_of(info) is success
