"""Text from configs, environments and files, made safe to be shown."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: parts of words in Persian or Hindi, and of emoji."""


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


def _is_safe(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"  # Spaces of other widths.
    )
