from __future__ import annotations

import dataclasses

import pytest
import torch

from rllib_weighted.merging import GradientSums, diagnose
from rllib_weighted.records import metrics, summarize, worker_metrics
from tests.records.helpers import record

NAMES = [
    name
    for name, value in vars(metrics).items()
    if name.isupper() and name[0] != "_" and isinstance(value, str)
]


def test_the_names_are_those_of_the_interface() -> None:
    assert {name: getattr(metrics, name) for name in NAMES} == {
        "MERGE": "merge",
        "SHARE_MIN": "share_min",
        "SHARE_MAX": "share_max",
        "SHARE_ENTROPY": "share_entropy",
        "EFFECTIVE_WORKERS": "effective_workers",
        "NUM_WORKERS": "num_workers",
        "NUM_DROPPED": "num_dropped",
        "NUM_SKIPPED_STEPS": "num_skipped_steps",
        "NUM_REPLACED": "num_replaced",
        "DROP_CAUSE": "drop_cause",
        "EPISODE_RETURN_MEAN": "episode_return_mean",
        "WORKERS": "workers",
        "SIGNAL": "signal",
        "SHARE": "share",
        "WEIGHT": "weight",
        "LOSS": "loss",
        "EPISODE_RETURN": "episode_return",
        "NUM_EPISODES": "num_episodes",
        "DRIFT": "drift",
        "DRIFT_MEAN": "drift_mean",
        "SIGNAL_AGE": "signal_age",
        "SIGNAL_AGE_MEAN": "signal_age_mean",
        "GRADIENT_NOISE": "gradient_noise",
        "GRADIENT_AGREEMENT": "gradient_agreement",
        "DIAGNOSTICS": "diagnostics",
        "FAST_SAMPLING": "fast_sampling",
        "COLUMNS": "columns",
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_level_of_a_metric_in_the_table(name: str) -> None:
    first_cells = [line.split(" | ")[0] for line in metrics.metrics_table().splitlines()]
    levels = {level for cell in first_cells for level in cell.strip("| `").split("/")}
    assert getattr(metrics, name) in levels


def test_the_table_has_exactly_the_metrics_that_are_reported() -> None:
    # Workers with parameters of their own whose gradients are measured report all there is.
    records = [record(drift=0.5, signal_age=1, gradient_noise=2.0, gradient_agreement=0.5)]
    ones = torch.ones(2)
    found = diagnose(GradientSums(ones, ones, ones, ones, ones[0]), {"<strategy>": ones})
    per_round = {f"merge/{name}" for name in [*summarize(records), "drop_cause"]}  # Of a drop.
    per_round |= {f"merge/diagnostics/{name}" for name in metrics.diagnostic_metrics(found)}
    per_worker = {f"merge/workers/<i>/{name}" for name in worker_metrics(records)["0"]}
    assert {info.name for info in metrics.METRICS} == per_round | per_worker
    assert len(metrics.METRICS) == len(per_round | per_worker)


def test_the_parts_of_the_loss_have_the_same_metrics() -> None:
    ones = torch.ones(2)
    part = diagnose(GradientSums(ones, ones, ones, ones, ones[0]), {"sum": ones})
    plain = metrics.diagnostic_metrics(part)
    found = metrics.diagnostic_metrics(dataclasses.replace(part, parts={"value": part}))
    assert found == {**plain, **{f"value/{name}": value for name, value in plain.items()}}


def test_the_table_is_markdown_with_four_filled_cells_a_row() -> None:
    lines = metrics.metrics_table().splitlines()
    assert lines[0] == "| Metric | Formula | Unit | Meaning |"
    assert lines[1] == "| --- | --- | --- | --- |"
    assert len(lines) == 2 + len(metrics.METRICS)
    for line in lines:
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        assert len(cells) == 4
        assert all(cells)


def test_a_bar_in_a_cell_does_not_end_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    info = metrics.MetricInfo("x", "|a|", "1", "A bar.")
    monkeypatch.setattr(metrics, "METRICS", (info,))
    assert metrics.metrics_table().splitlines()[2] == r"| `x` | `\|a\|` | 1 | A bar. |"
