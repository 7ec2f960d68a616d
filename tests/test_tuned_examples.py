"""Every tuned example loads, is valid, says what was measured, and trains."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest

from rllib_weighted.cli import load_file
from tests.test_packaging import PROJECT

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tuned_examples").glob("*.py"))
SINGLE = [file for file in FILES if not file.stem.endswith("_sweep")]
NEEDS = {"dmc_walker": "dm_control"}  # Not in `make install`: see pyproject.toml.
MEASURED = re.compile(
    r"^    seed \d+ +[\d,]+ steps +[\d.]+ minutes +return -?[\d,.]+", re.MULTILINE
)

# Small enough for a round within seconds; what is left is what the example is about.
SMALL: dict[str, Any] = {
    "num_env_runners": 0,
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 1,
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_a_train_file_whose_stop_can_be_reached(file: Path) -> None:
    loaded = load_file(file)
    assert loaded.stop
    if file in SINGLE:
        loaded.config.validate()


@pytest.mark.parametrize("file", SINGLE, ids=lambda file: file.stem)
def test_the_header_says_what_was_measured_and_what_it_needs(file: Path) -> None:
    header = ast.get_docstring(ast.parse(file.read_text("utf-8")), clean=False) or ""
    assert MEASURED.search(header), "seeds, steps, minutes and returns"
    assert "Ray 2." in header
    assert "2-core machine" in header
    extras = re.findall(r"extra `([a-z0-9]+)`", header)
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("file", SINGLE, ids=lambda file: file.stem)
def test_it_trains(file: Path) -> None:
    if needed := NEEDS.get(file.stem):
        pytest.importorskip(needed)
    config = load_file(file).config.copy(copy_frozen=False)
    config.update_from_dict(SMALL)
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
        assert result["num_env_steps_sampled_lifetime"] >= SMALL["train_batch_size"]
        assert result["merge"]["num_workers"] == 2
        assert math.isfinite(result["learners"]["default_policy"]["total_loss"])
    finally:
        algorithm.stop()
