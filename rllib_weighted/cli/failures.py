"""What is said of a training that failed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rllib_weighted.core.durable import is_full, where_full


def no_space(cause: str, folders: Iterable[str]) -> list[str]:
    """Returns a line that says which disks are full, if that is the cause.

    Args:
        cause: An error's text.
        folders: One of each disk that may be full.
    """
    if not is_full(OSError(cause)):
        return []
    places = ", ".join(where_full(folders)) or "the disk of a path above"
    return [f"  no space    {places}: make room, then resume from the last checkpoint"]


def root_cause(text: str, max_lines: int = 12) -> str:
    """Returns the last lines of the first error in a printed chain of errors, without colours.

    The errors that were raised from it, or while it was handled, come later and explain less.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    chained = r"(?m)^(?:During handling of the above|The above exception was the direct cause).*$"
    lines = [line for line in re.split(chained, plain)[0].splitlines() if line.strip()]
    return "\n".join(lines[-max_lines:])
