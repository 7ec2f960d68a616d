from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from rllib_weighted.report import compute, load_results
from rllib_weighted.report.tables import (
    Tables,
    arms_view,
    origins_view,
    provenance,
    runs_view,
    settings_view,
    versions_view,
)
from tests.report.helpers import make_results, write_sweep


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return compute(load_results(write_sweep(tmp_path)))


def test_arms_name_their_seeds_and_machine(tables: Tables) -> None:
    view = arms_view(tables, "CartPole-v1")
    rows = {row[0]: dict(zip(view.columns, row, strict=True)) for row in view.rows}
    row = rows["reward_weighted, m=0.5"]
    assert row["seeds"] == "1, 2, 3"
    assert row["machine"] == "machine"
    assert row["minimum weight"] == "0.5"
    assert row["last results"] == "2026-11-25"
    assert row["workers"] == "2"
    assert row["wall time, median (s)"] == "40"


def test_many_seeds_are_cut() -> None:
    tables = compute(make_results({"average": {seed: [0.0, 1.0] for seed in range(20)}}))
    assert arms_view(tables, "Env").rows[0][4].endswith("10, 11 and 8 more")


def test_shared_settings(tables: Tables) -> None:
    rows = dict(settings_view(tables, "CartPole-v1").rows)
    assert rows["lr"] == "0.001"
    assert "min_weight" not in rows


def test_recorded_versions_are_grouped(tables: Tables) -> None:
    view = origins_view(tables, "CartPole-v1")
    assert view is not None
    (row,) = view.rows
    assert row[0] == "average, reward_weighted, m=0.5, reward_weighted, m=1"
    assert row[list(view.columns).index("ray")] == importlib.metadata.version("ray")
    assert len(provenance(tables, "CartPole-v1")) == 3


def test_runs(tables: Tables) -> None:
    view = runs_view(tables)
    row = dict(zip(view.columns, view.rows[0], strict=True))
    assert row["seed"] == "1"
    assert row["steps"] == "2,000"
    assert row["counts"] == "yes"
    assert row["came to its end"] == "yes"


def test_versions() -> None:
    rows = dict(versions_view().rows)
    assert rows["scipy"] == importlib.metadata.version("scipy")
    assert "Python" in rows
