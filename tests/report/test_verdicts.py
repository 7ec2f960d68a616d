from __future__ import annotations

import math

import pytest
from scipy import stats

from rllib_weighted.report import Results, compute
from rllib_weighted.report.statistics import POWER, seeds_needed
from rllib_weighted.report.verdicts import identical_arms
from tests.report.helpers import make_results
from tests.report.test_conclusions import reaching

BASE = {seed: 20 + seed for seed in range(1, 11)}
FASTER = {seed: at - 6 - seed % 3 for seed, at in BASE.items()}


def verdict_of(arms, **kwargs) -> str:
    kwargs = {"threshold": 1.0, "hold": 1} | kwargs
    return compute(make_results(arms), **kwargs).verdicts["Env"][0]


def test_an_arm_that_leads() -> None:
    text = verdict_of({"average": reaching(BASE), "sum": reaching(FASTER)})
    assert text.startswith("sum leads: it was 27.5 % faster to 1 than average (on 10 paired seeds")
    assert "95 % interval" in text
    assert "p = 0.002" in text
    assert "Corrected" not in text


def test_of_several_comparisons_the_correction_is_named() -> None:
    arms = {"average": BASE, "sum": FASTER, "max": {seed: at + 1 for seed, at in BASE.items()}}
    text = verdict_of({arm: reaching(times) for arm, times in arms.items()})
    assert text.startswith("sum leads")
    assert text.endswith(" Corrected for 2 comparisons p = 0.0039.")


def test_a_lead_that_the_correction_takes_away() -> None:
    # Of 6 pairs p is 2 / 2^6 = 0.031 at the least, and twice that of two comparisons.
    six = {seed: BASE[seed] for seed in range(1, 7)}
    arms = {"average": six, "sum": {seed: FASTER[seed] for seed in six}, "max": six}
    text = verdict_of({arm: reaching(times) for arm, times in arms.items()})
    assert text.startswith("sum seems to lead: it was ")
    assert text.endswith(" Corrected for 2 comparisons p = 0.062, so it may be chance.")


def test_a_baseline_that_leads() -> None:
    text = verdict_of({"average": reaching(FASTER), "sum": reaching(BASE)})
    assert text.startswith("average leads: even the best other arm, sum, was 37.8 % slower to 1")


def test_undecided_it_says_how_many_seeds_it_takes() -> None:
    # Ratios of the times within pairs are 1.5, 1 / 1.5, 1.5, 1 / 1.5: their logarithms have mean 0.
    times = ({1: 20, 2: 30, 3: 20, 4: 30}, {1: 30, 2: 20, 3: 30, 4: 20})
    text = verdict_of({"average": reaching(times[0]), "sum": reaching(times[1])})
    assert text.startswith(
        "No arm is shown to be better than average. The best, sum, was 0.0 % faster to 1 than "
        "average (on 4 paired seeds"
    )
    assert "To see a difference of 20 % would take about " in text


def test_one_seed_says_nothing_of_others() -> None:
    text = verdict_of({"average": reaching({1: 9}), "sum": reaching({1: 5})})
    assert "How many seeds would show a difference of 20 % cannot be told from 1 seed." in text


def test_where_nobody_arrives_final_returns_decide() -> None:
    returns = {seed: [0.0, 10.0 + seed] for seed in range(8)}
    better = {seed: [0.0, 15.0 + seed + seed % 2] for seed in range(8)}
    text = verdict_of({"average": returns, "sum": better}, threshold=1000.0)
    assert text.startswith("sum leads: it ended 5.5 above average (on 8 paired seeds")


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"sum": {1: [0.0, 1.0]}}, "There is nothing to compare: one arm at most"),
        ({"sum": {1: [0.0, 1.0]}, "max": {1: [0.0, 3.0]}}, "max has the highest final return, 3,"),
    ],
)
def test_without_a_comparison(arms: dict[str, dict[int, list[float]]], expected: str) -> None:
    assert verdict_of(arms).startswith(expected)


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_seeds_needed_by_the_definition(spread: float) -> None:
    # Deviation of one seed from a t interval of half length `spread` over 5 seeds.
    deviation = spread / stats.t.ppf(0.975, 4) * math.sqrt(5)
    found = seeds_needed(spread, 5, 0.2)
    assert found is not None

    def shown(number: int) -> bool:
        quantiles = stats.t.ppf(0.975, number - 1) + stats.t.ppf(POWER, number - 1)
        return bool(quantiles * deviation / math.sqrt(number) <= 0.2)

    assert shown(found)
    assert not shown(found - 1)


@pytest.mark.parametrize(
    ("spread", "num_seeds", "effect"),
    [(math.nan, 5, 0.2), (0.1, 1, 0.2), (0.1, 5, math.nan), (0.1, 5, 0.0), (1e6, 5, 0.2)],
)
def test_seeds_that_cannot_be_told(spread: float, num_seeds: int, effect: float) -> None:
    assert seeds_needed(spread, num_seeds, effect) is None


RUNS = {1: [0.0, 1.0, 2.0], 2: [0.0, 3.0, 5.0]}


def flags(results: Results) -> list[str]:
    return list(identical_arms(results, "Env"))


def test_sum_and_average_that_came_out_identical() -> None:
    (text,) = flags(make_results({"average": RUNS, "sum": RUNS | {3: [0.0, 9.0]}}))
    assert text == (
        "average and sum came out identical on 2 common seeds, probably because their weights "
        "differ by a factor only, which gradient clipping (`grad_clip`) and Adam take out of a "
        "step again."
    )


def test_arms_that_differ_in_one_digit_of_one_seed_are_not_identical() -> None:
    other = RUNS | {2: [0.0, 3.0, 5.0 + 1e-12]}
    assert flags(make_results({"average": RUNS, "sum": other})) == []
    assert flags(make_results({"average": RUNS, "sum": {7: RUNS[1]}})) == []  # no common seed
    assert flags(make_results({"average": {1: [0.0] * 3}, "sum": {1: [0.0] * 3}})) == []


def test_equal_shares_explain_a_weighting_that_does_nothing() -> None:
    results = make_results({"average": RUNS, ("reward_weighted", 0.5): RUNS})
    (unknown,) = flags(results)
    assert unknown.endswith("probably because what they differ in is not in use.")
    shares = {"share_min": 0.5, "share_max": 0.5}
    results.weights["run"] = results.runs["run"]
    for name, value in shares.items():
        results.weights[name] = value
    (known,) = flags(results)
    assert known.endswith("because all workers had the same share throughout, as under `average`.")


def test_a_flag_stands_beside_the_verdict() -> None:
    first, second = compute(make_results({"average": RUNS, "sum": RUNS})).verdicts["Env"]
    assert first.startswith("No arm is shown to be better than average.")
    assert second.startswith("average and sum came out identical on 2 common seeds")
