"""Text from configs, environments and files, made safe to be shown."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import Path

_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: parts of words in Persian or Hindi, and of emoji."""

_LONGEST_MESSAGE = 20_000  # Characters; a traceback of a user's file has a few hundred.


def printable(text: str) -> str:
    r"""Returns text in which nothing moves the cursor, changes colours or reorders what is read.

    Control characters (C0, DEL, C1, line breaks and tabs among them), invisible formatting such as
    bidirectional overrides, lone surrogates and unassigned characters become their Python escapes:
    different names stay different, and can be told what they are. Everything else stays as it is.

    Example:
        >>> print(printable("Pong\x1b[2J\u202e"))
        Pong\x1b[2J\u202e

    Args:
        text: Any text, for one line.
    """
    return "".join(c if _is_safe(c) else c.encode("unicode_escape").decode() for c in text)


def readable(error: BaseException) -> str:
    """Returns a message without what would control the terminal, and in bounded length.

    Args:
        error: The error whose message it is, of one line or several.
    """
    text = str(error)
    lines = text[:_LONGEST_MESSAGE].split("\n")
    return "\n".join(map(printable, lines)) + " …" * (len(text) > _LONGEST_MESSAGE)


def _is_safe(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"  # Spaces of other widths.
    )


def html_table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str = "",
    *,
    bold: Collection[int] = (),
) -> str:
    """Returns a table as notebooks show it.

    Args:
        head: Names of the columns; without any, a row's first cell is its name.
        rows: The cells, row by row. Everything is text, and is escaped.
        caption: What the table shows.
        bold: Numbers of the rows that stand out.
    """

    def line(cells: Sequence[object], heads: int) -> str:
        tags = ["th" if number < heads else "td" for number in range(len(cells))]
        texts = [escape(printable(str(cell))) for cell in cells]
        return "".join(f"<{tag}>{text}</{tag}>" for tag, text in zip(tags, texts, strict=True))

    title = f"<caption>{escape(printable(caption))}</caption>" if caption else ""
    top = f"<thead><tr>{line(head, len(head))}</tr></thead>" if head else ""
    body = "".join(
        f"<tr>{line(row, len(row) if number in bold else int(not head))}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table>{title}{top}<tbody>{body}</tbody></table>"


def html_paragraphs(sentences: Iterable[str]) -> str:
    """Returns sentences as notebooks show them, one below the other; everything is escaped."""
    return "".join(f"<p>{escape(printable(sentence))}</p>" for sentence in sentences)


def short_path(location: str | Path) -> str:
    """Returns a path as seen from the working directory or the home folder; a URI as it is."""
    path = Path(location)
    for folder, prefix in ((Path.cwd(), ""), (Path.home(), f"~{os.sep}")):
        if path.is_absolute() and path.is_relative_to(folder) and path != folder:
            return prefix + str(path.relative_to(folder))
    return str(location)
