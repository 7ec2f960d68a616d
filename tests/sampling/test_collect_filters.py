from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.utils.filter import RunningStat

from rllib_weighted.sampling.collect import is_finite, repair_deltas

_SPACE = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

Rounds = Sequence[Sequence[np.ndarray]]
"""[round][env runner] -> observations [n, 2]."""


def _filter() -> MeanStdFilter:
    connector = MeanStdFilter()
    connector.input_action_space = gym.spaces.Discrete(2)
    connector.input_observation_space = _SPACE
    return connector


def _state(connector: MeanStdFilter) -> dict[str, Any]:
    return {"MeanStdFilter": connector.get_state()}


def _see(connector: MeanStdFilter, observations: np.ndarray) -> None:
    connector.get_state()  # Makes the filters.
    for observation in observations:
        connector._filters[None](observation)


def _merged(rounds: Rounds, *, repair: bool) -> RunningStat:
    """The driver's statistics after rounds of sampling, merging and broadcasting."""
    driver, runners = _filter(), [_filter() for _ in rounds[0]]
    for observations in rounds:
        states = []
        for runner, seen in zip(runners, observations, strict=True):
            before = _state(runner)
            _see(runner, seen)
            after = repair_deltas(before, _state(runner)) if repair else _state(runner)
            states.append(after["MeanStdFilter"])
        merged = driver.merge_states(states)
        for runner in runners:
            runner.set_state(merged)
    return driver._filters[None].running_stats


def _assert_pooled(stat: RunningStat, rounds: Rounds) -> None:
    pooled = np.concatenate([seen for round_ in rounds for seen in round_])
    assert stat.n == len(pooled)
    np.testing.assert_allclose(stat.mean, pooled.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(stat.std, pooled.std(axis=0, ddof=1), rtol=1e-5, atol=1e-6)


def _random_rounds(counts: Sequence[Sequence[int]], mean: float = 5.0) -> Rounds:
    rng = np.random.default_rng(0)
    return [
        [mean + k + rng.normal(size=(n, 2)) * [1, 10] for k, n in enumerate(row)] for row in counts
    ]


@pytest.mark.parametrize(
    "counts",
    [
        [[4]],
        [[3], [5], [2]],
        [[20, 30], [5, 40], [1, 1], [33, 7]],
        [[0, 9], [9, 0], [0, 0], [2, 2]],  # A runner that saw nothing new.
    ],
)
def test_repaired_merging_gives_the_statistics_of_all_observations(
    counts: Sequence[Sequence[int]],
) -> None:
    rounds = [
        [seen.reshape(-1, 2) for seen in round_] for round_ in _random_rounds(counts, mean=5.0)
    ]
    _assert_pooled(_merged(rounds, repair=True), rounds)


def test_repaired_merging_is_stable_far_from_0() -> None:
    rounds = _random_rounds([[100, 100]] * 20, mean=1e6)
    _assert_pooled(_merged(rounds, repair=True), rounds)


def test_stock_merging_drifts() -> None:
    # Negative control. Two runners see 5 and nothing else: the mean is 5 and stays 5. RLlib reads
    # the increment of the mean (0) as the mean of the new observations: (2n * 5 + 2n * 0) / 4n.
    fives = np.full((10, 2), 5.0)
    rounds = [[fives, fives], [fives, fives]]
    np.testing.assert_allclose(_merged(rounds, repair=False).mean, [2.5, 2.5])
    np.testing.assert_allclose(_merged(rounds, repair=True).mean, [5, 5])
    with pytest.raises(AssertionError):
        _assert_pooled(_merged(rounds, repair=False), rounds)


def test_upstream_still_keeps_increments_of_the_mean() -> None:
    stat = RunningStat((1,))
    stat.num_pushes, stat.mean_array = 1, np.array([5.0])
    stat.push(np.array([5.0]))
    assert stat.num_pushes_delta == 1
    assert stat.mean_delta_array.item() == 0, (
        "RLlib's RunningStat now keeps the mean of the new observations: `repair_deltas` and its "
        "use in the env runner can go."
    )


def test_repairing_by_hand() -> None:
    # Before: 2, 4 (n = 2, mean 3). New: 6, 12 (mean 9, squares 9 + 9 = 18).
    connector = _filter()
    _see(connector, np.array([[2, 0], [4, 0]]))
    before = _state(connector)
    _see(connector, np.array([[6, 0], [12, 0]]))
    repaired = repair_deltas(before, _state(connector))
    (state,) = repaired["MeanStdFilter"][None]["running_stats"]
    stat = RunningStat.from_state(state)
    assert stat.num_pushes_delta == 2
    np.testing.assert_allclose(stat.mean_delta_array, [9, 0])
    np.testing.assert_allclose(stat.sum_sq_diff_delta_array, [18, 0])
    np.testing.assert_allclose(stat.mean_array, [6, 0])  # (2 + 4 + 6 + 12) / 4


def test_repairing_leaves_its_inputs_and_everything_else_alone() -> None:
    connector = _filter()
    before = {**_state(connector), "other": {"list": [1, {"x": 2}], "number": 3}}
    _see(connector, np.ones((3, 2)))
    after = {**_state(connector), "other": {"list": [1, {"x": 5}], "number": 4}}
    snapshots = copy.deepcopy(before), copy.deepcopy(after)
    repaired = repair_deltas(before, after)
    assert str((before, after)) == str(snapshots)
    assert repaired["other"] == after["other"]
    assert repair_deltas({}, after)["other"] == after["other"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_found(value: float) -> None:
    connector = _filter()
    _see(connector, np.ones((3, 2)))
    assert is_finite(_state(connector))
    assert is_finite({"nothing": [1, "a", {}]})
    with np.errstate(invalid="ignore"):
        _see(connector, np.array([[1, value]]))
    assert not is_finite([_state(connector)])
