from __future__ import annotations

from rllib_weighted.report import compute
from rllib_weighted.report.page import methods
from tests.report.helpers import make_results


def test_the_words_follow_the_numbers() -> None:
    results = make_results({"average": {1: [0.0, 1.0]}})
    texts = dict(methods(compute(results, hold=7, confidence=0.9)))
    assert "In the first of 7 rounds in a row" in texts["Threshold held"]
    assert "90 % band and intervals of an arm" in texts
    assert "p <= 0.1. From fewer than 5 pairs" in texts["Claims"]
    assert "last 10% of a run's environment steps" in texts["Final return"]
