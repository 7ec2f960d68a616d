from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from rllib_weighted.report import Results, compute
from rllib_weighted.report.measures import pooled_scores, scores
from rllib_weighted.report.tables import pooled_view
from tests.report.helpers import make_results


def together(envs: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]) -> Results:
    """The results of several environments as one."""
    parts = [make_results(arms, env=env) for env, arms in envs.items()]
    offsets = np.cumsum([0, *(len(part.runs) for part in parts[:-1])])
    runs, progress = (
        pd.concat(
            [
                getattr(part, name).assign(run=getattr(part, name)["run"] + offset)
                for part, offset in zip(parts, offsets, strict=True)
            ],
            ignore_index=True,
        )
        for name in ("runs", "progress")
    )
    arms = pd.concat([part.arms for part in parts], ignore_index=True)
    return dataclasses.replace(parts[0], runs=runs, progress=progress, arms=arms)


# The baseline comes from 0 to 10 in A, and from -100 to -50 in B.
ENVS = {
    "A": {
        "average": {1: [0.0, 8.0], 2: [0.0, 12.0]},
        "sum": {1: [0.0, 20.0], 2: [0.0, 20.0]},
        "max": {1: [0.0, 1.0]},
    },
    "B": {
        "average": {1: [-100.0, -50.0], 2: [-100.0, -50.0]},
        "sum": {1: [-100.0, -75.0], 2: [-100.0, -100.0]},
    },
}


def test_scores_by_hand() -> None:
    table = scores(together(ENVS)).set_index(["env", "arm"])["score"]
    assert table["A", "average"].tolist() == [0.8, 1.2]
    assert table["A", "sum"].tolist() == [2.0, 2.0]
    assert table["A", "max"] == 0.1
    assert table["B", "sum"].tolist() == [0.5, 0.0]


def test_pooled_scores_by_hand() -> None:
    table = pooled_scores(together(ENVS)).set_index("arm")
    assert list(table.index) == ["average", "sum"]  # `max` is in one of them only.
    assert table["score"].tolist() == pytest.approx([1.0, (2.0 + 0.25) / 2])
    assert table["num_runs"].tolist() == [4, 4]
    assert table.loc["sum", "low"] < 1.125 < table.loc["sum", "high"]


def test_environments_count_the_same_however_many_runs_they_have() -> None:
    many = {seed: [0.0, 20.0] for seed in range(20)}
    envs = {**ENVS, "A": {**ENVS["A"], "sum": many}}
    assert pooled_scores(together(envs)).set_index("arm").loc["sum", "score"] == 1.125


def test_nothing_is_pooled_of_one_environment_or_without_improvement() -> None:
    assert pooled_scores(together({"A": ENVS["A"]})).empty
    flat = {"average": {1: [5.0, 5.0]}, "sum": {1: [0.0, 9.0]}}
    both = together({"A": ENVS["A"], "B": flat})
    assert set(scores(both)["env"]) == {"A"}
    assert pooled_scores(both).empty
    assert pooled_view(compute(both)) is None


def test_single_runs_have_no_interval() -> None:
    envs = {env: {"average": {1: [0.0, 1.0]}} for env in "AB"}
    (row,) = pooled_scores(together(envs)).to_dict("records")
    assert row["score"] == 1.0
    assert math.isnan(row["low"])


def test_the_best_comes_first() -> None:
    view = pooled_view(compute(together(ENVS)))
    assert view is not None
    assert [row[0] for row in view.rows] == ["sum", "average"]
    assert view.rows[0][1].startswith("1.12 [")
