"""Comparisons by hand, and whether they claim no more than they may."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from rllib_weighted.report import ReportError, Results, comparisons
from rllib_weighted.report.conclusions import can_claim, fewest_pairs
from tests.report.helpers import SECONDS, STEPS, make_results

STEPS_TO = "env steps to threshold"
TIME_TO = "wall time to threshold"


def reaching(rounds: Mapping[int | None, int | None], length: int = 40) -> dict[Any, list[float]]:
    """Runs that hold the threshold 1 from the given round on; None: never."""
    return {
        seed: [float(at is not None and index + 1 >= at) for index in range(length)]
        for seed, at in rounds.items()
    }


def compare(arms: Mapping[str, Any], measure: str = STEPS_TO, **kwargs: Any) -> dict[str, Any]:
    results = make_results(arms, **kwargs)
    table = comparisons(results, threshold=1.0, hold=1)
    (row,) = table[table["measure"] == measure].to_dict("records")
    return row


def test_percent_faster_by_hand() -> None:
    # Means 12 and 15 rounds, everybody reached it: 100 (1 - 12 / 15) = 20 % faster.
    arms = {
        "average": reaching({1: 10, 2: 20, 3: 15}),
        "sum": reaching({1: 8, 2: 15, 3: 13}),
    }
    row = compare(arms)
    assert row["effect"] == pytest.approx(20.0)
    assert row["low"] <= 20.0 <= row["high"]
    assert row["num_pairs"] == 3
    assert row["horizon"] == 20 * STEPS
    assert row["probability"] == 1.0
    assert compare(arms, TIME_TO)["effect"] == pytest.approx(20.0)
    assert compare(arms, TIME_TO)["horizon"] == 20 * SECONDS


def test_three_seeds_can_claim_nothing_however_large_the_effect() -> None:
    row = compare({"average": reaching({1: 30, 2: 30, 3: 31}), "sum": reaching({1: 1, 2: 1, 3: 1})})
    assert row["effect"] > 90
    assert row["probability"] == 1.0
    assert row["probability_low"] < 0.5
    assert row["p"] == 2 / 2**3
    assert not row["claim"]


def test_ten_seeds_that_agree_claim_it() -> None:
    base = {seed: 20 + seed for seed in range(1, 11)}
    faster = {seed: at - 6 - seed % 3 for seed, at in base.items()}
    row = compare({"average": reaching(base), "sum": reaching(faster)})
    assert row["low"] > 0
    assert row["probability_low"] > 0.5
    assert row["p"] == 2 / 2**10
    assert row["p_holm"] == row["p"]  # a single comparison
    assert row["claim"]


def test_negative_control_the_same_times_on_other_seeds() -> None:
    rounds = [12, 30, 17, 25, 21, 28, 14, 19]
    arms = {
        "average": reaching(dict(enumerate(rounds))),
        "sum": reaching(dict(enumerate(rounds[::-1]))),
    }
    row = compare(arms)
    assert row["effect"] == pytest.approx(0.0, abs=1e-9)
    assert not row["claim"]


def test_censored_runs_count() -> None:
    # The arm's two fast runs do not make up for the two that never reached it in 40 rounds:
    # (5 + 5 + 40 + 40) / 4 = 22.5 against 20: 12.5 % slower.
    arms = {
        "average": reaching({1: 20, 2: 20, 3: 20, 4: 20}),
        "sum": reaching({1: 5, 2: 5, 3: None, 4: None}),
    }
    row = compare(arms)
    assert row["effect"] == pytest.approx(-12.5)
    assert row["probability"] == 0.5


def test_what_is_first_where_a_run_is_cut_off() -> None:
    # Seed 1: cut off before the other one reached it: open, 1/2. Seed 2: cut off after: lost.
    arms = {
        "average": reaching({1: 30, 2: 10}),
        "sum": {1: [0.0] * 20, 2: [0.0] * 20},
    }
    assert compare(arms)["probability"] == 0.25


def test_nobody_reached_it() -> None:
    row = compare({"average": reaching({1: None, 2: None}), "sum": reaching({1: None, 2: None})})
    assert math.isnan(row["effect"])
    assert row["horizon"] == 40 * STEPS
    assert not row["claim"]


def test_only_common_seeds_are_compared() -> None:
    arms = {"average": reaching({1: 10, 2: 20, 9: 1}), "sum": reaching({1: 5, 2: 10, 8: 40})}
    row = compare(arms)
    assert row["effect"] == pytest.approx(50.0)
    assert (row["num_runs"], row["num_baseline"], row["num_pairs"]) == (2, 2, 2)


def test_without_common_seeds_the_samples_are_independent() -> None:
    arms = {"average": reaching({1: 10, 2: 20}), "sum": reaching({3: 5, 4: 10, 5: 6})}
    row = compare(arms)
    assert row["effect"] == pytest.approx(100 * (1 - 7 / 15))
    assert row["num_pairs"] == 0
    assert math.isnan(row["probability"])
    assert math.isfinite(row["low"])


def test_runs_without_seeds() -> None:
    results = make_results({"average": reaching({None: 10}), "sum": reaching({None: 5})})
    table = comparisons(results, threshold=1.0, hold=1)
    assert (table["num_pairs"] == 0).all()
    assert not table["claim"].any()


def test_one_seed_has_no_interval() -> None:
    row = compare({"average": reaching({1: 10}), "sum": reaching({1: 5})})
    assert row["effect"] == pytest.approx(50.0)
    assert math.isnan(row["low"])
    assert math.isnan(row["p"])
    assert not row["claim"]


def test_final_returns_by_hand() -> None:
    arms = {
        "average": {seed: [0.0, 10.0 * seed] for seed in (1, 2, 3)},
        "sum": {seed: [0.0, 10.0 * seed + gain] for seed, gain in ((1, 1.0), (2, 0.0), (3, 5.0))},
    }
    row = compare(arms, "final return")
    assert row["effect"] == pytest.approx(2.0)  # (1 + 0 + 5) / 3
    assert row["probability"] == pytest.approx(2.5 / 3)  # two wins and a tie


def test_the_gap_between_training_and_held_out_seeds() -> None:
    arms = {"average": {1: [0.0, 10.0], 2: [0.0, 12.0]}, "sum": {1: [0.0, 20.0], 2: [0.0, 22.0]}}
    held_out = {"average": {1: 9.0, 2: 11.0}, "sum": {1: 10.0, 2: 15.0}}
    row = compare(arms, "training minus held-out", held_out=held_out)
    assert row["effect"] == pytest.approx((10 + 7) / 2 - (1 + 1) / 2)
    assert row["probability"] == 1.0
    assert compare(arms, "held-out return", held_out=held_out)["effect"] == pytest.approx(2.5)


def test_without_a_baseline_there_is_nothing_to_compare() -> None:
    table = comparisons(make_results({"sum": {1: [1.0]}}))
    assert table.empty
    assert "claim" in table
    with pytest.raises(ReportError, match="unknown baseline 'average'"):
        comparisons(make_results({"sum": {1: [1.0]}}), baseline="average")


def test_p_values_are_corrected_within_each_measure() -> None:
    base = {seed: 20 + seed for seed in range(8)}
    arms = {
        "average": reaching(base),
        "sum": reaching({seed: at - 5 for seed, at in base.items()}),
        "max": reaching({seed: at - 5 + 10 * (seed % 2) for seed, at in base.items()}),
    }
    table = comparisons(make_results(arms), threshold=1.0, hold=1)
    rows = table[table["measure"] == STEPS_TO].set_index("arm")
    assert rows["p_holm"]["sum"] == pytest.approx(2 * rows["p"]["sum"])
    assert rows["p_holm"]["max"] == pytest.approx(rows["p"]["max"])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 5, 5), False), ((6, 6, 6), True), ((3, 3, 0), False), ((4, 4, 0), True)],
)
def test_fewest_runs(counts: tuple[int, int, int], expected: bool) -> None:
    assert can_claim(*counts) == expected


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_fewest_pairs(confidence: float) -> None:
    fewest = fewest_pairs(confidence)
    assert 2 / 2**fewest <= 1 - confidence < 2 / 2 ** (fewest - 1)


def simulated(rng: np.random.Generator, num_seeds: int, ratio: float) -> Results:
    """Two arms whose times share a part from seed to seed; `ratio` of the means."""
    shared = rng.normal(size=num_seeds)
    times = np.exp(3.2 + 0.3 * (shared + rng.normal(size=(2, num_seeds))))
    times[1] *= ratio

    def runs(values: np.ndarray) -> Mapping[int | None, Sequence[float]]:
        rounds = np.ceil(values).astype(int)
        return reaching({seed: int(at) for seed, at in enumerate(rounds)}, length=50)

    return make_results({"average": runs(times[0]), "sum": runs(times[1])})


def claims(num_seeds: int, ratio: float, repeats: int) -> float:
    rng = np.random.default_rng(num_seeds)
    found = 0
    for _ in range(repeats):
        table = comparisons(simulated(rng, num_seeds, ratio), threshold=1.0, hold=1)
        found += bool(table.loc[table["measure"] == STEPS_TO, "claim"].iloc[0])
    return found / repeats


# Of 200 repeats at a true rate of 0.05, more than 0.10 come up once in 500 times.
@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, 6, 10])
def test_equal_arms_are_seldom_told_apart(num_seeds: int) -> None:
    rate = claims(num_seeds, 1.0, 200)
    assert rate <= (0.0 if num_seeds < 6 else 0.10)


@pytest.mark.slow
def test_arms_that_differ_much_are_told_apart() -> None:
    assert claims(10, 0.5, 50) > 0.8
