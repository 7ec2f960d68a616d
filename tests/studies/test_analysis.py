import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from studies import analysis
from studies.design import Arm, Experiment, Part
from tests.studies.made_up import EXPERIMENT, PART, TASK, row, runs


def speeds(table):
    return analysis.contrasts(PART, table).query("measure == 'speed'").set_index("arm")


def test_a_known_speed_is_found_and_no_speed_is_not():
    found = speeds(runs(speed=1.25, spread=0.2))
    assert found.loc["fast", "low"] < 1.25 < found.loc["fast", "high"]
    assert found.loc["fast", "low"] > 1.0
    assert found.loc["fast", "p_holm"] < 0.05
    assert found.loc["same", "low"] < 1.0 < found.loc["same", "high"]
    assert found.loc["same", "p_holm"] > 0.05


def test_speed_and_interval_by_hand():
    # ln(200/100) = 0.6931, ln(300/150) = 0.6931, ln(400/100) = 1.3863: mean 0.9242, sd 0.4002;
    # t(0.975, 2) = 4.3027, half width 4.3027 * 0.4002 / sqrt(3) = 0.9941.
    pairs = [(200, 100), (300, 150), (400, 100)]
    table = pd.DataFrame(
        [row("base", seed, base) for seed, (base, _) in enumerate(pairs)]
        + [row("fast", seed, fast) for seed, (_, fast) in enumerate(pairs)]
    )
    found = speeds(table).loc["fast"]
    assert found["effect"] == pytest.approx(math.exp(0.9242), rel=1e-3)
    assert found["low"] == pytest.approx(math.exp(0.9242 - 0.9941), rel=1e-3)
    assert found["high"] == pytest.approx(math.exp(0.9242 + 0.9941), rel=1e-3)
    assert found["p"] == pytest.approx(0.0571, rel=1e-2)  # t = 4.0, two degrees of freedom.


def test_only_common_seeds_are_paired_whatever_the_order_of_rows():
    table = runs()
    some = table[~((table["arm"] == "fast") & table["seed"].isin([3, 4]))]
    shuffled = some.sample(frac=1.0, random_state=1)
    assert speeds(shuffled).loc["fast", "num_pairs"] == 18
    pd.testing.assert_frame_equal(speeds(some), speeds(shuffled))


def test_a_run_that_did_not_arrive_counts_with_its_length():
    table = pd.DataFrame(
        [row("base", seed, 2000) for seed in range(3)]
        + [row("fast", seed, 500) for seed in range(3)]
    )
    found = speeds(table).loc["fast"]
    assert found["effect"] == pytest.approx(2.0)
    assert found["num_censored"] == 3


def test_two_arms_that_never_arrive_do_not_differ():
    table = pd.DataFrame([row(arm, seed, 2000) for arm in ("base", "fast") for seed in range(4)])
    found = speeds(table).loc["fast"]
    assert found["effect"] == 1.0
    assert found["num_censored"] == 8


def test_holm_counts_all_contrasts_of_a_measure():
    found = speeds(runs())
    smaller, larger = sorted(found["p"])
    assert sorted(found["p_holm"]) == pytest.approx([2 * smaller, max(larger, 2 * smaller)])


def test_holm_counts_contrasts_that_were_not_run_too():
    every = runs()
    both = speeds(every)
    alone = speeds(every[every["arm"] != "same"]).loc["fast"]
    assert alone["p_holm"] == pytest.approx(2 * both.loc["fast", "p"])


def test_holm_counts_contrasts_that_were_cut_later():
    both = speeds(runs())
    cut = replace(PART, num_cut_contrasts=3)
    found = analysis.contrasts(cut, runs()).query("measure == 'speed'").set_index("arm")
    assert found.loc["fast", "p_holm"] == pytest.approx(5 * both.loc["fast", "p"])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        differences = random.normal(0.1, 0.3, 10)
        found = analysis._paired(differences, False)
        covered += found["low"] < 0.1 < found["high"]
    assert 0.92 <= covered / 400 <= 0.98


def test_power_is_what_simulation_finds():
    from scipy import stats

    random = np.random.default_rng(4)
    samples = random.normal(math.log(1.2), 0.25, (4000, 15))
    seen = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
    assert analysis.power(1.2, 0.25, 15) == pytest.approx(seen, abs=0.03)
    assert analysis.power(1.1, 0.25, 15) < analysis.power(1.2, 0.25, 15)
    assert analysis.power(1.0, 0.25, 15) == pytest.approx(0.05, abs=1e-6)


def test_worst_contexts_are_compared_only_where_there_are_several():
    several = [
        row(arm, seed, 400, held_out=(1.0 + better, 0.5 + better), worst=(0.1 + better,) * 3)
        for arm, sign in (("base", 0.0), ("fast", 1.0))
        for seed, better in enumerate(sign * np.array([0.15, 0.2, 0.25, 0.3, 0.35]))
    ]
    found = analysis.contrasts(PART, pd.DataFrame(several)).set_index("measure")
    assert found.loc["held out, worst", "effect"] == pytest.approx(0.25)
    assert found.loc["worst worker", "effect"] == pytest.approx(0.25)
    alone = set(analysis.contrasts(PART, runs())["measure"])
    assert "held out, worst" not in alone
    assert "worst worker" not in alone
    assert "held out" in alone


def test_nothing_is_decided_before_all_pairs_are_there():
    every = runs(speed=1.5, spread=0.1)
    found = speeds(every)
    assert analysis.verdict(found.loc["fast"]) == "better"
    assert analysis.verdict(found.loc["same"]) == "open"
    some = speeds(every[every["seed"] < 19]).loc["fast"]
    assert some["p_holm"] < 0.001
    assert analysis.verdict(some) == "not complete"
    slow = analysis.contrasts(PART, runs(speed=0.6, spread=0.1)).query("measure == 'speed'")
    assert analysis.verdict(slow.iloc[0]) == "worse"


def test_a_winner_is_faster_than_all_of_its_baselines():
    experiment = replace(EXPERIMENT, contrasts=(("fast", "base"), ("fast", "same")))
    part = replace(PART, experiments=(experiment,))
    table = runs(speed=1.4, spread=0.1)
    found = analysis.winners(analysis.contrasts(part, table)).iloc[0]
    assert found["arm"] == "fast"
    assert found["wins"]
    assert found["held_out"]
    slow = table["arm"] == "same"
    table.loc[slow, "steps_to_threshold"] = (table.loc[slow, "steps_to_threshold"] / 1.4).round()
    table.loc[slow, "held_out"] = pd.Series(
        [(5.0 + seed,) for seed in range(20)], index=table[slow].index
    )
    found = analysis.winners(analysis.contrasts(part, table)).iloc[0]
    assert (found["baseline"], found["wins"]) == ("same", False)
    assert not found["held_out"]
    assert analysis.winners(analysis.contrasts(PART, table)).empty  # One baseline each.


def test_predictions_stand_beside_what_was_measured():
    arms = (
        Arm("base", {"merge_strategy": "average"}),
        Arm("fast", {"merge_strategy": "reward_weighted", "merge_options": {"normalize": True}}),
        Arm("same", {"merge_strategy": "reward_weighted", "merge_options": {"direction": "low"}}),
    )
    contrasts = (("fast", "base"), ("same", "base"))
    part = Part("p", "", "", "", (Experiment(TASK, arms, tuple(range(5)), contrasts),))
    table = runs(num_seeds=5)
    table["diagnostics"] = None
    is_base = table["arm"] == "base"
    texts = [json.dumps({"speed/reward_weighted": value}) for value in (0.5, 2.0, 1.0, 4.0, 0.25)]
    table.loc[is_base, "diagnostics"] = texts
    found = analysis.predictions(part, table)
    assert found["arm"].tolist() == ["fast"]  # The other weighs by other options.
    assert found["predicted"].tolist() == pytest.approx([1.0])
    measured = analysis.contrasts(part, table).query("measure == 'speed' and arm == 'fast'")
    assert found["measured"].tolist() == measured["effect"].tolist()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "advantage_scaled"),
        ({"exponent": 1.0}, "advantage_scaled"),
        ({"exponent": -1.0}, "advantage_scaled_inverse"),
        ({"exponent": 2.0}, None),
        ({"exponent": -1.0, "smoothing": 0.5}, None),
    ],
)
def test_which_prediction_is_of_an_arm(options, name):
    arms = (
        Arm("base", {"merge_strategy": "average"}),
        Arm("fast", {"merge_strategy": "advantage_scaled", "merge_options": options}),
    )
    part = Part("p", "", "", "", (Experiment(TASK, arms, tuple(range(5)), (("fast", "base"),)),))
    table = runs(num_seeds=5)
    found = {"speed/advantage_scaled": 0.5, "speed/advantage_scaled_inverse": 2.0}
    table["diagnostics"] = json.dumps(found)
    predicted = analysis.predictions(part, table)["predicted"].tolist()
    assert predicted == ([pytest.approx(found[f"speed/{name}"])] if name else [])


def test_arms_says_how_many_arrived_and_what_is_planned():
    table = pd.DataFrame([row("base", 0, 400), row("base", 1, 2000), row("base", 2, 600)])
    found = analysis.arms(PART, table).set_index("arm").loc["base"]
    assert (found["num_runs"], found["num_planned"], found["num_reached"]) == (3, 20, 2)
    assert found["steps"] == pytest.approx((400 + 1000 + 600) / 3)


def test_curves_are_interpolated_between_rounds():
    found = analysis.curves(EXPERIMENT, pd.DataFrame([row("base", s, 400) for s in range(3)]), 10)
    assert found["env_steps"].tolist() == np.linspace(100, 1000, 10).tolist()
    assert found["middle"].iloc[[0, 2, 9]].tolist() == pytest.approx([0.0, 0.5, 2.0])
