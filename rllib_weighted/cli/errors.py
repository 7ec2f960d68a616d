"""Errors that the command shows as one readable message, and what is quoted in them."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

_MAX_QUOTED = 12  # Lines of a trial's error.


class InputError(ValueError):
    """Bad input of the user: a file, an option or a setting. The command exits with 2."""

    exit_code = 2


class TrainingError(RuntimeError):
    """A training that started and failed. The command exits with 1."""

    exit_code = 1


class Aborted(KeyboardInterrupt):
    """A training that a second Ctrl-C stopped at once. The command exits with 130 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def own_traceback(error: BaseException, path: Path) -> str:
    """Returns the traceback of an error that a user's file raised, as Python would print it.

    Args:
        error: What the file raised.
        path: The file. Frames before its first one (ours, which executed it) are left out.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != str(path):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame)).rstrip()


def root_cause(text: str, max_lines: int = _MAX_QUOTED) -> str:
    """Returns the last lines of the first error in a printed chain of errors, without colours.

    The errors that were raised from it, or while it was handled, come later and explain less.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    chained = r"(?m)^(?:During handling of the above|The above exception was the direct cause).*$"
    lines = [line for line in re.split(chained, plain)[0].splitlines() if line.strip()]
    return "\n".join(lines[-max_lines:])
