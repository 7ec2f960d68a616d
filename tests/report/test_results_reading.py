from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from rllib_weighted.report.progress import ROUND
from rllib_weighted.report.results import METRIC, carried, is_late, read_run
from rllib_weighted.report.trials import find_trials
from tests.report.helpers import HELD_OUT, write_trial

METRICS = [METRIC, HELD_OUT]


def test_carried() -> None:
    values = carried(pd.Series([math.nan, 1.0, math.nan, math.nan, 3.0]))
    assert np.nan_to_num(values, nan=-1).tolist() == [-1, 1, 1, 1, 3]


def test_late_rounds_are_those_in_the_last_tenth_of_the_steps(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [0.0] * 20)
    rows = read_run(find_trials(tmp_path)[0][0], METRICS).progress.rows
    assert rows.loc[is_late(rows), ROUND].tolist() == [19, 20]


def test_a_single_round_is_late(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0])
    rows = read_run(find_trials(tmp_path)[0][0], METRICS).progress.rows
    assert is_late(rows).tolist() == [True]


def test_unreadable_results_leave_the_rest_alone(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", evaluation_interval=1)
    trial = find_trials(tmp_path)[0][0]
    (tmp_path / "t1" / "result.json").unlink()  # gone since it was listed
    run = read_run(trial, METRICS)
    assert math.isnan(run.held_out)
    assert run.problems[0].startswith(f"left out the evaluations of {tmp_path}/t1: ")
