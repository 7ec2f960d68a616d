"""The specification's page shows the file that it is about; CONTRIBUTING lists what is needed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rllib_weighted.core.eligibility import Requirement
from rllib_weighted.core.modules import NETWORKS, PER_WORKER, STACKED
from rllib_weighted.learning.batch import COLUMNS
from rllib_weighted.learning.closed_form.steps import CLOSED_FORM
from rllib_weighted.learning.losses import STOCK_LOSS
from rllib_weighted.sampling.fast_sampler import COLUMN_SAMPLING, FAST_SAMPLING

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
SPECIFICATION = (ROOT / "tests" / "reference_ppo.py").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
ESSENTIAL = [
    "Settings",
    "gae",
    "standardized",
    "ppo_loss",
    "gradient",
    "shares",
    "weights",
    "minibatches",
    "update",
    "take_step",
]


def lines_of(name: str) -> str:
    """A function or class of the specification, with its decorators and comments."""
    (node,) = [
        node
        for node in ast.parse(SPECIFICATION).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
    ]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "".join(SPECIFICATION.splitlines(keepends=True)[first - 1 : node.end_lineno])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_block_stands_in_the_specification(block: str) -> None:
    assert f"\n{block}" in SPECIFICATION


@pytest.mark.parametrize("name", ESSENTIAL)
def test_the_page_shows_what_is_essential(name: str) -> None:
    assert any(lines_of(name) in block for block in BLOCKS)


def test_a_changed_block_is_noticed() -> None:
    changed = lines_of("weights").replace("1 / n", "2 / n")
    assert changed not in SPECIFICATION


@pytest.mark.parametrize("link", re.findall(r"\]\((\.\.?/[^)]+)\)", PAGE))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / "docs" / link).is_file()


# CONTRIBUTING

PATHS: dict[str, Iterable[Requirement[Any]]] = {
    "arrays while sampling": FAST_SAMPLING,
    "columns from the env runner": COLUMN_SAMPLING,
    "columns to the learner": COLUMNS,
    "all workers' losses at once": STOCK_LOSS,
    "layers of a module": NETWORKS,
    "closed-form steps": CLOSED_FORM,
    "parameters per worker": PER_WORKER,
    "these in one forward pass": STACKED,
}


def eligibility_table() -> str:
    """What every fast path needs, a row per requirement, as CONTRIBUTING has it."""
    rows = [f"| {path} | {row.needs} |" for path, table in PATHS.items() for row in table]
    return "\n".join(["| Path | needs |", "|---|---|", *rows])


def test_contributing_lists_what_every_fast_path_needs() -> None:
    assert eligibility_table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
