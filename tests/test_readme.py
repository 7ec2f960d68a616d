"""The README's code runs as it stands there, and its tables are those of the code."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from rllib_weighted.merging import merge_weights, unregister_strategy
from rllib_weighted.records.metrics import metrics_table
from tests.report.helpers import write_sweep

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    (block,) = [block for block in BLOCKS if text in block]
    return block


@pytest.mark.usefixtures("ray_session")
def test_the_first_example_trains() -> None:
    scope: dict[str, object] = {}
    exec(block_with("instead of PPOConfig"), scope)
    merge = scope["result"]["merge"]  # type: ignore[index]
    assert merge["num_workers"] == 8
    assert merge["num_dropped"] == 0


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_the_sweep_sweeps() -> None:
    scope: dict[str, object] = {}
    exec(block_with("merge_grid").replace("100_000", "1_000"), scope)
    results = list(scope["results"])  # type: ignore[call-overload]
    assert not any(result.error for result in results)
    arms = {(r.config["merge_strategy"], r.config["min_weight"], r.config["seed"]) for r in results}
    assert len(arms) == len(results) == 4 * 2
    assert ("average", None, 0) in arms


def test_the_sweep_is_fifteen_lines() -> None:
    assert len(block_with("merge_grid").splitlines()) == 15


def test_a_strategy_of_ones_own_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("code_of_the_readme")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(block_with("above_median"), vars(module))
    shares = module.config.resolve_merge_strategy().shares(torch.tensor([0.0, 1.0, 2.0]))
    unregister_strategy("above_median")
    assert shares.tolist() == pytest.approx([1 / 4, 1 / 4, 2 / 4])


def test_the_pure_functions_line() -> None:
    assert "`rllib_weighted.merge_weights([1.0, 3.0]) == [0.75, 1.25]`" in README
    assert merge_weights([1.0, 3.0]).tolist() == [0.75, 1.25]


def test_the_report_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "ray_results" / "my_sweep")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    exec(block_with("rllib_weighted.report"), {})
    assert "env steps to threshold" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == 4


def test_the_metrics_table_is_the_codes() -> None:
    assert metrics_table().strip() in README
