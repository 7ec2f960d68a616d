"""What a report cannot go on from, and the words for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 20


class ReportError(ValueError):
    """Bad input: there is nothing to report on, or a name that the results do not know."""


def listed(names: Iterable[str]) -> str:
    """Returns names as a list to be read, cut after `MOST_LISTED`."""
    every = list(dict.fromkeys(names))
    shown = ", ".join(every[:MOST_LISTED])
    more = len(every) - MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun: "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unknown(what: str, name: str, known: Iterable[str]) -> ReportError:
    """Returns the error for a name that is none of `known`, with the closest one first."""
    every = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, every, n=3, cutoff=0.6)
    ordered = [*close, *(other for other in every if other not in close)]
    return ReportError(f"unknown {what} {name!r}: these results have {listed(ordered) or 'none'}")
