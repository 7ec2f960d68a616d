from __future__ import annotations

from rllib_weighted.report import compute
from rllib_weighted.report.page import MOST_SENTENCES, render
from tests.report.helpers import make_results
from tests.report.test_conclusions import reaching


def test_claims_come_first_and_the_rest_can_be_opened() -> None:
    base = {seed: 20 + seed for seed in range(10)}
    arms = {"average": reaching(base), "zzz": reaching({s: at - 9 for s, at in base.items()})}
    arms |= {f"other{i}": reaching(base) for i in range(8)}
    page = render(compute(make_results(arms), threshold=1.0, hold=1), [])
    claim = page.index('<li class="claim">zzz held 1')
    assert claim < page.index("Steps to the threshold: comparisons without a claim (8)")
    assert "<details>\n<summary>Steps to the threshold" in page  # closed, being many


def test_sentences_are_cut() -> None:
    arms = {"average": {1: [0.0, 1.0]}}
    arms |= {f"other{i}": {1: [0.0, 1.0]} for i in range(MOST_SENTENCES + 9)}
    page = render(compute(make_results(arms), threshold=1.0, hold=1), [])
    assert f"Steps to the threshold: comparisons without a claim ({MOST_SENTENCES})" in page
