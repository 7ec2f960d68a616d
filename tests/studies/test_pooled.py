from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from studies import page, pooled
from studies.design import Arm, Experiment, Part
from tests.studies.made_up import TASK, runs


def _part(name, *, contexts=()):
    """Returns a part whose only task has arms "average" and "fast" with known speeds."""
    arms = (Arm("average"), Arm("fast", {"lr": 1.0}), Arm("same", algorithm="PPO"))
    task = replace(TASK, contexts=contexts)
    return Part(name, name, "?", "Nothing.", (Experiment(task, arms, tuple(range(20)), ()),))


def _runs(speed):
    return runs(speed=speed).replace({"arm": {"base": "average"}})


def test_random_effects_by_hand():
    mean, half, between = pooled.random_effects([0.0, 0.4, 0.2], [0.04, 0.01, 0.01])
    # Weights 25, 100, 100; centre 60/225 = 0.26667; Q = 25 (0.07111) + 100 (0.01778) +
    # 100 (0.00444) = 4.0; excess 2.0; tau² = 2 / (225 - 20625/225) = 2 / 133.33 = 0.015.
    assert between == pytest.approx(np.sqrt(0.015))
    # Weights 1/0.055 = 18.18, 1/0.025 = 40, 40: mean (16 + 8) / 98.18 = 0.24444.
    assert mean == pytest.approx(0.244444, rel=1e-5)
    # Hartung and Knapp: sum w (y - mean)² = 1.0864 + 0.9679 + 0.0790 = 2.1333, / 2 = 1.0667;
    # t(0.975, 2) = 4.30265.
    assert half == pytest.approx(4.30265 * np.sqrt(1.066667 / 98.181818), rel=1e-5)


def test_effects_that_agree_by_chance_are_no_surer_than_their_errors():
    mean, half, between = pooled.random_effects([0.1, 0.1], [0.01, 0.01])
    assert (mean, between) == (pytest.approx(0.1), 0.0)
    assert half == pytest.approx(12.7062 * np.sqrt(0.01 / 2), rel=1e-4)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        errors = random.uniform(0.003, 0.02, 8)
        found = random.normal(0.05, 0.06, 8) + random.normal(0.0, np.sqrt(errors))
        mean, half, _ = pooled.random_effects(found, errors)
        hits += abs(mean - 0.05) <= half
    assert 0.92 <= hits / 400 <= 0.99


def test_a_merge_is_summed_up_over_complete_tasks_with_identical_workers():
    alike = [(_part(f"at {speed}"), _runs(speed)) for speed in (1.2, 1.3, 1.4)]
    unlike = (_part("d", contexts=({"force": 1.0},)), _runs(9.0))
    unfinished = (_part("e"), _runs(9.0).query("seed < 12"))
    found = pooled.speeds([*alike, unlike, unfinished])
    assert found["arm"].tolist() == ["fast"]  # RLlib's own algorithms are no merges.
    fast = found.iloc[0]
    assert (fast["num_tasks"], fast["num_pairs"]) == (3, 60)
    assert fast["low"] < 1.3 < fast["high"]
    assert fast["effect"] == pytest.approx(1.3, rel=0.1)
    assert "| fast | 3 | 60 | **1.26** (1.04 – 1.53) |" in page._pooled(found)


def test_two_tasks_are_too_few():
    assert pooled.speeds([(_part(name), _runs(1.2)) for name in "ab"]).empty
    assert page._pooled(pooled.speeds([])) == ""


def test_no_run_at_all():
    empty = pd.DataFrame(columns=_runs(1.0).columns)
    assert pooled.speeds([(_part("a"), empty)]).empty
