"""What messages say of what a user wrote: the value, and the name that was meant."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Iterable

_MOST_SHOWN = 300  # Characters of a value.


class _Short(reprlib.Repr):
    """Python's own repr of short values; of long, deep and cyclic ones a part."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = 120
        self.maxdict = self.maxlist = self.maxtuple = 10

    def repr_int(self, x: int, level: int) -> str:
        """Of a whole number that Python refuses to write out, its size (Python 3.11 raises)."""
        try:
            return super().repr_int(x, level)
        except ValueError:
            return f"a whole number of more than {sys.get_int_max_str_digits()} digits"


def shown(value: object) -> str:
    """Returns a value as messages show it: its `repr`, cut where it is long."""
    text = _Short().repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} …"


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
