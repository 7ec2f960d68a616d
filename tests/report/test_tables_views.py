from __future__ import annotations

import math

from rllib_weighted.report import compute
from rllib_weighted.report.tables import (
    convergence_view,
    drops_view,
    finals_view,
    headline,
    with_interval,
)
from tests.report.helpers import make_results
from tests.report.test_conclusions import reaching


def test_values_and_intervals() -> None:
    assert with_interval(1234.5, 1000.0, 1500.0) == "1,234 [1,000, 1,500]"
    assert with_interval(1.5, math.nan, math.nan) == "1.5"
    assert with_interval(math.nan, 1.0, 2.0) == "–"


def test_the_headline_by_hand() -> None:
    arms = {
        "average": reaching({1: 10, 2: 20, 3: 15}),
        "sum": reaching({1: 8, 2: 15, 3: 13}),
        "max": reaching({1: None, 2: None, 3: None}),
    }
    view = headline(compute(make_results(arms), threshold=1.0, hold=1), "Env")
    rows = {row[0]: row for row in view.rows}
    assert list(view.columns)[:3] == ["arm", "faster than baseline", "mean steps to 1"]
    assert rows["sum"][1].startswith("20.0 % [")  # What is asked for first.
    assert rows["sum"][2].startswith("1,200 [")
    assert rows["sum"][3:6] == ["1 [1, 1]", "3 of 3", "3"]
    assert rows["sum"][6].startswith("1.00 [0.29, 1.00]")
    assert rows["average"][1] == "–"
    assert rows["average"][6:] == ["–", "–"]
    assert [view.rows[number][0] for number in view.marked] == ["average"]
    assert rows["max"][4] == "0 of 3"
    assert rows["max"][2] == "> 4,000"  # at least as long as it ran


def test_without_a_threshold() -> None:
    tables = compute(make_results({"average": {1: [5.0, 5.0]}}))
    assert convergence_view(tables, "Env") is None
    assert headline(tables, "Env").rows[0][1:3] == ["–", "–"]


def test_finals_say_what_is_left_out() -> None:
    runs = {1: [5.0] * 20, 2: [7.0] * 19, 3: [0.0]}
    view = finals_view(compute(make_results({"average": runs}, finished=False)), "Env")
    assert view.rows[0][:3] == ["average", "2 (+1 unfinished)", "6 [5, 7]"]
    assert "A run without evaluation" in view.note


def test_without_a_merge_history_there_are_no_drops() -> None:
    assert drops_view(compute(make_results({"average": {1: [1.0]}})), "Env") is None


def test_what_a_notebook_shows_of_results_and_of_their_statistics() -> None:
    arms = {"average": reaching({1: 10, 2: 20}), "a<b": reaching({1: 8, 2: 15})}
    results = make_results(arms)
    results.problems.append("trial x is damaged")
    shown = results._repr_html_()
    assert "<tr><td>Env</td><td>a&lt;b</td><td>2</td>" in shown
    assert "<p>trial x is damaged</p>" in shown

    tables = compute(results, threshold=1.0, hold=1)
    shown = tables._repr_html_()
    assert shown.startswith(f"<p>{tables.verdicts['Env'][0]}</p>".replace("a<b", "a&lt;b"))
    assert "<caption>Env: At a glance</caption>" in shown
    assert "<tr><th>average</th>" in shown  # The baseline stands out,
    assert "<tr><td>a&lt;b</td>" in shown  # and nothing else does.
    assert shown.endswith("<p>trial x is damaged</p>")
