"""The tuned examples that come with the package."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from rllib_weighted.cli.errors import InputError
from rllib_weighted.suggest import nearest

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside an installed package, or beside it in a checkout.
_FOLDERS = (_PACKAGE / "tuned_examples", _PACKAGE.parent / "tuned_examples")


@dataclass(frozen=True)
class Example:
    """A tuned example.

    Args:
        name: Its name, e.g. `"cartpole"`.
        path: Its file.
    """

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(ast.parse(self.source())) or "").partition("\n")[0]

    def source(self) -> str:
        """Returns the text of its file."""
        return self.path.read_text(encoding="utf-8")


def list_examples() -> list[Example]:
    """Returns all tuned examples, by name.

    Raises:
        InputError: This installation has none.
    """
    for folder in _FOLDERS:
        paths = sorted(folder.glob("[!_]*.py"))
        if paths:
            return [Example(path.stem, path) for path in paths]
    raise InputError(f"no tuned examples found; they should lie in {_FOLDERS[0]}: reinstall")


def find_example(name: str) -> Example:
    """Returns the example of a name (`cartpole` or `cartpole.py`).

    Raises:
        InputError: There is none of that name.
    """
    examples = {example.name: example for example in list_examples()}
    stem = name.removesuffix(".py")
    if stem not in examples:
        known = ", ".join(examples)
        raise InputError(f"no example {name!r}{nearest(stem, examples)} (there are: {known})")
    return examples[stem]
