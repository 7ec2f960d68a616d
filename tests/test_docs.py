"""The code on the documentation's pages is the code of the files that they show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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
