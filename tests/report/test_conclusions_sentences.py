from __future__ import annotations

import pytest

from rllib_weighted.report import comparisons, thresholds
from rllib_weighted.report.conclusions import Sentence, format_p, sentences
from tests.report.helpers import make_results
from tests.report.test_conclusions import reaching


def said(arms, measure="env steps to threshold", **kwargs) -> Sentence:
    results = make_results(arms, **kwargs)
    table = comparisons(results, threshold=1.0, hold=1)
    found = sentences(table, thresholds(results, 1.0), 0.95)
    (sentence,) = [each for each in found if each.measure == measure]
    return sentence


BASE = {seed: 20 + seed for seed in range(1, 11)}
FASTER = {seed: at - 6 - seed % 3 for seed, at in BASE.items()}


def test_a_claim() -> None:
    sentence = said({"average": reaching(BASE), "sum": reaching(FASTER)})
    assert sentence.claim
    assert sentence.text.startswith(
        "sum held 1 27.5 % sooner than average, in env steps, on 10 paired seeds: 95 % interval "
    )
    assert "probability of improvement 1.00 (0.69 to 1.00), p = 0.002." in sentence.text


def test_a_claim_of_being_slower() -> None:
    sentence = said({"average": reaching(FASTER), "sum": reaching(BASE)})
    assert "later than average" in sentence.text
    assert "% slower" in sentence.text


def test_three_seeds() -> None:
    sentence = said({"average": reaching({1: 9, 2: 9, 3: 9}), "sum": reaching({1: 1, 2: 2, 3: 1})})
    assert not sentence.claim
    assert sentence.text.startswith(
        "No difference in env steps to 1 between sum and average can be claimed from 3 paired seeds"
    )
    assert "From fewer than 6 pairs none could be" in sentence.text


def test_one_seed() -> None:
    sentence = said({"average": reaching({1: 9}), "sum": reaching({1: 1})})
    assert "can be claimed from 1 seed: 88.9 % faster. From so few runs none could be" in (
        sentence.text
    )


def test_no_common_seeds() -> None:
    sentence = said({"average": reaching({1: 9, 2: 8}), "sum": reaching({3: 9, 4: 8})})
    assert "from 2 and 2 runs without common seeds" in sentence.text


def test_wall_time() -> None:
    sentence = said({"average": reaching(BASE), "sum": reaching(FASTER)}, "wall time to threshold")
    assert "sooner than average, in wall time, on" in sentence.text


def test_nobody() -> None:
    sentence = said({"average": reaching({1: None}), "sum": reaching({1: None})})
    assert sentence.text == (
        "sum and average cannot be compared: no run of either held 1 within 4,000 env steps, up to "
        "which both are known."
    )


def test_final_returns() -> None:
    arms = {
        "average": {seed: [0.0, 10.0 + seed] for seed in range(8)},
        "sum": {seed: [0.0, 14.0 + seed + 0.1 * (seed % 2)] for seed in range(8)},
    }
    held_out = {name: {seed: 1.0 * seed for seed in range(8)} for name in arms}
    assert said(arms, "final return").text.startswith(
        "The final return of sum is 4.05 above that of average, on 8 paired seeds: 95 % "
    )
    gap = said(arms, "training minus held-out", held_out=held_out)
    assert gap.text.startswith("The gap between training and held-out seeds of sum is 4.05 above")
    assert "probability of a larger gap 1.00" in gap.text


def test_many_comparisons_are_corrected_for() -> None:
    arms = {
        "average": reaching(BASE),
        "sum": reaching(FASTER),
        **{f"other{i}": reaching(BASE) for i in range(30)},
    }
    results = make_results(arms)
    table = comparisons(results, threshold=1.0, hold=1)
    texts = [s.text for s in sentences(table, thresholds(results, 1.0), 0.95) if s.claim]
    assert "Corrected for 31 comparisons p = 0.061: it no longer stands." in texts[0]


@pytest.mark.parametrize(
    ("p", "text"), [(0.0001, "p < 0.001"), (0.0312, "p = 0.031"), (1.0, "p = 1")]
)
def test_p(p: float, text: str) -> None:
    assert format_p(p) == text
