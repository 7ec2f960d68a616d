"""The tuned examples that come with the package."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from rllib_weighted.cli.cluster import InputError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside an installed package, or beside it in a checkout.
_FOLDERS = (_PACKAGE / "tuned_examples", _PACKAGE.parent / "tuned_examples")


@dataclass(frozen=True)
class Example:
    """A tuned example.

    Args:
        name: Its name, e.g. `"cartpole"`.
        path: Its file.
        summary: The first line of its docstring.
    """

    name: str
    path: Path
    summary: str

    def source(self) -> str:
        """Returns the text of its file."""
        return self.path.read_text(encoding="utf-8")


def examples_folder() -> Path:
    """Returns the folder of the tuned examples.

    Raises:
        InputError: This installation has none.
    """
    for folder in _FOLDERS:
        if any(folder.glob("*.py")):
            return folder
    raise InputError(f"no tuned examples found; they should lie in {_FOLDERS[0]}: reinstall")


def list_examples() -> list[Example]:
    """Returns all tuned examples, by name."""
    paths = sorted(examples_folder().glob("*.py"))
    return [
        Example(path.stem, path, _summary(path)) for path in paths if not path.stem.startswith("_")
    ]


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


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]
