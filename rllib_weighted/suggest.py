"""Suggestions for misspelt names, in the one form that all messages use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str:
    """Returns the end of a sentence that suggests the known name closest to `name`.

    Args:
        name: What the user wrote; anything but a text has no close name.
        known: The names that would have been right. Case does not matter.

    Returns:
        `"; did you mean 'x'?"`, or `""` if no name is close.
    """
    if not isinstance(name, str):
        return ""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
