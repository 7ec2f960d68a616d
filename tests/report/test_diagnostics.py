"""Would weighting pay? What a report says of measured gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_weighted.report import load_results, write_report
from rllib_weighted.report.diagnostics import diagnostics_sentences, diagnostics_view
from rllib_weighted.report.tables import compute
from tests.report.helpers import write_trial

ENV = "CartPole-v1"


def measured(noise: float, **speeds: float) -> dict[str, Any]:
    found = {"noise_scale": noise, "heterogeneity": 0.5, "agreement": 0.25, "speed/average": 1.0}
    found |= {f"speed/{name}": value for name, value in speeds.items()}
    return {f"merge/diagnostics/{name}": value for name, value in found.items()}


# Measured in every second round; in between the last one is logged again.
ROUNDS = [
    measured(1.0, reward_weighted=0.8, inverse_variance=1.2),
    measured(1.0, reward_weighted=0.8, inverse_variance=1.2),
    measured(3.0, reward_weighted=0.9, inverse_variance=1.4),
    measured(3.0, reward_weighted=0.9, inverse_variance=1.4),
    measured(2.0, reward_weighted=1.0, inverse_variance=1.3),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (1, 2):
        write_trial(
            tmp_path / "results" / f"measured_{seed}",
            [10.0] * len(ROUNDS),
            more=ROUNDS,
            seed=seed,
            merge_diagnostics_interval=2,
        )
    write_trial(tmp_path / "results" / "plain", [10.0] * len(ROUNDS), seed=1)
    return tmp_path / "results"


def test_each_measurement_counts_once(folder: Path) -> None:
    found = load_results(folder).diagnostics
    noise = found[found["name"] == "noise_scale"]
    assert noise.groupby("run")["value"].apply(list).tolist() == [[1.0, 3.0, 2.0]] * 2
    assert found["arm"].nunique() == 1
    assert (noise.groupby("run")["env_steps"].diff().dropna() > 0).all()


def test_the_table_and_the_sentence(folder: Path) -> None:
    tables = compute(load_results(folder))
    view = diagnostics_view(tables, ENV)
    assert view is not None
    assert view.columns["noise scale"] == ["2"]
    # Medians 1.3 and 0.9, the fastest first; those of equal weights predict nothing.
    assert view.columns["predicted speed, by strategy"] == [
        "inverse_variance 1.30; reward_weighted 0.90"
    ]
    assert view.columns["measurements"] == ["6"]
    (sentence,) = diagnostics_sentences(tables, ENV)
    assert "inverse_variance is predicted to be 30 % faster" in sentence


def test_where_nothing_would_gain(tmp_path: Path) -> None:
    rounds = [measured(0.01, reward_weighted=0.99, inverse_variance=1.004)] * 3
    write_trial(tmp_path / "run", [10.0] * 3, more=rounds)
    (sentence,) = diagnostics_sentences(compute(load_results(tmp_path)), ENV)
    assert "Hardly: the best strategy, inverse_variance, is predicted to be +0.4 %" in sentence


def test_the_page(folder: Path, tmp_path: Path) -> None:
    page = write_report(load_results(folder), tmp_path / "report").page.read_text()
    assert "Would weighting pay?" in page
    assert "30 % faster than the average; try it" in page
    assert (tmp_path / "report" / "tables" / "diagnostics.csv").exists()
    assert list((tmp_path / "report" / "figures").glob("*diagnostics*.png"))


def test_without_measurements_there_is_no_section(tmp_path: Path) -> None:
    write_trial(tmp_path / "results" / "plain", [10.0] * 3)
    results = load_results(tmp_path / "results")
    assert results.diagnostics.empty
    page = write_report(results, tmp_path / "report").page.read_text()
    assert "Would weighting pay?" not in page
    assert not (tmp_path / "report" / "tables" / "diagnostics.csv").exists()


def test_what_has_no_strategys_name_is_said_by_its_options(tmp_path: Path) -> None:
    write_trial(tmp_path / "trial", [10.0], more=[measured(1.0, advantage_scaled_inverse=1.2)])
    tables = compute(load_results(tmp_path))
    (sentence,) = diagnostics_sentences(tables, ENV)
    assert "Perhaps: advantage_scaled(exponent=-1) is predicted to be 20 % faster" in sentence
    view = diagnostics_view(tables, ENV)
    assert view is not None
    assert view.columns["predicted speed, by strategy"] == ["advantage_scaled(exponent=-1) 1.20"]
