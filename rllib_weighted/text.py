"""Text that users or files brought along, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Returns text without what would control a terminal: escapes such as `\x1b` in its place.

    Control characters (C0 and C1, line breaks among them), bidirectional controls and lone
    surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
