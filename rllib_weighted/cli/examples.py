"""The tuned examples that come with the package."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from rllib_weighted.cli import InputError
from rllib_weighted.suggest import nearest, shown

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
    def text(self) -> str:
        """Its name, and what its docstring says."""
        return f"{self.name}\n{ast.get_docstring(ast.parse(self.source())) or ''}"

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.text.split("\n")[1]

    def source(self) -> str:
        """Returns the text of its file."""
        return self.path.read_text(encoding="utf-8")


def list_examples(word: str = "") -> list[Example]:
    """Returns the tuned examples, by name.

    Args:
        word: Only those that have it in their name or in the text that begins them, in any case.

    Raises:
        InputError: There is none with that word, or this installation has none at all.
    """
    for folder in _FOLDERS:
        paths = sorted(folder.glob("[!_]*.py"))
        examples = [Example(path.stem, path) for path in paths]
        found = [example for example in examples if word.lower() in example.text.lower()]
        if examples and not found:
            known = ", ".join(example.name for example in examples)
            raise InputError(
                f"no example has {shown(word)} in its name or text (there are: {known})"
            )
        if found:
            return found
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
        raise InputError(f"no example {shown(name)}{nearest(stem, examples)} (there are: {known})")
    return examples[stem]
