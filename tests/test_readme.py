"""The README's code runs as it stands there, and it says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import rllib_weighted
from rllib_weighted.merging.strategies import BUILT_IN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == 1


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 150


def test_the_function_that_plays_is_public() -> None:
    assert "`policy = rllib_weighted.load_policy(checkpoint)`" in README
    assert callable(rllib_weighted.load_policy)


def test_every_built_in_strategy_has_a_row() -> None:
    rows = re.findall(r'^\| `"(\w+)"`', README, flags=re.MULTILINE)
    assert rows == [*BUILT_IN, "torchjd"]


def test_the_citation_is_that_of_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rllib_weighted.__version__
    assert citation["license"] == "Apache-2.0"
    assert "2304.12778" in citation["references"][0]["url"]
