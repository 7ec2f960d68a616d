"""What the command tells a user when something is wrong, as one readable message."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

EXIT_FAILED = 1
EXIT_INPUT = 2


class InputError(ValueError):
    """Bad input of the user: a file, an option or a setting. The command exits with 2."""

    exit_code = EXIT_INPUT


class TrainingError(RuntimeError):
    """A training that started and failed. The command exits with 1."""

    exit_code = EXIT_FAILED


class Aborted(KeyboardInterrupt):
    """A training that a second Ctrl-C stopped at once."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name closest to `name`, or `""`."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def own_traceback(error: BaseException, path: Path) -> str:
    """Returns the traceback of an error that a user's file raised, as Python would print it.

    Args:
        error: What the file raised.
        path: The file. Frames before its first one (ours, which executed it) are left out.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != str(path):
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, frame)
    return "".join(lines).rstrip()


def root_cause(text: str, count: int) -> str:
    """Returns the last lines of the first error in a printed chain of them, without colours.

    What was raised from that one, or while it was handled, comes after it and explains less.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    chained = r"(?m)^(?:During handling of the above|The above exception was the direct cause).*$"
    return last_lines(re.split(chained, plain)[0], count)


def last_lines(text: str, count: int) -> str:
    """Returns the last `count` non-empty lines of `text`."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
