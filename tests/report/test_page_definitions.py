from __future__ import annotations

import html
import re

from rllib_weighted.report import compute
from rllib_weighted.report.page import render
from tests.report.helpers import make_results


def test_the_words_follow_the_numbers() -> None:
    results = make_results({"average": {1: [0.0, 1.0]}})
    page = render(compute(results, hold=7, confidence=0.9), [])
    found = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page, re.DOTALL)
    texts = {term: " ".join(html.unescape(text).split()) for term, text in found}
    assert len(texts) == 11
    assert "In the first of 7 rounds in a row" in texts["Threshold held"]
    assert "90 % band and intervals of an arm" in texts
    assert "2,000 times" in texts["90 % band and intervals of an arm"]
    assert "p <= 0.1. From fewer than 5 pairs" in texts["Claims"]
    assert "last 10% of a run's environment steps" in texts["Final return"]
