from __future__ import annotations

from rllib_weighted.report import compute
from rllib_weighted.report.figures import MOST_LINES, EnvFigures, arm_styles, metric_label
from tests.report.helpers import METRIC, make_results


def scene(num_arms: int) -> EnvFigures:
    arms = {"average": {1: [0.0, 1.0]}}
    weighted = {("sum_x", float(m)): {1: [0.0, 1.0]} for m in range(1, num_arms)}
    tables = compute(make_results({**arms, **weighted}))
    names = list(tables.arms["arm"])
    return EnvFigures(1, "Env", tables, arm_styles(names, ["average"]), ["average"])


def test_few_arms_share_a_figure() -> None:
    ((label, arms),) = scene(MOST_LINES).groups()
    assert label == ""
    assert len(arms) == MOST_LINES


def test_many_arms_are_spread_beside_the_baseline() -> None:
    drawn = scene(20)
    groups = drawn.groups()
    assert [label for label, _ in groups] == [f"sum_x ({i})" for i in range(1, 5)]
    assert all(arms[0] == "average" and len(arms) <= MOST_LINES for _, arms in groups)
    assert sorted(arm for _, arms in groups for arm in arms[1:]) == sorted(list(drawn.styles)[1:])


def test_metrics_have_units() -> None:
    assert metric_label(METRIC) == "mean return (reward)"
    assert metric_label("x" * 90).endswith("… (its unit)")
