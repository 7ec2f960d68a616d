"""Starts or joins Ray, quietly."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# What the command tells a user when something is wrong, as one readable message


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


def start_ray(
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    verbose: bool = False,
    import_folder: Path | None = None,
) -> None:
    """Starts a local Ray, or joins a running one; does nothing if this process has one already.

    Args:
        address: The cluster to join; None joins that of `RAY_ADDRESS` (set inside a Ray job), or
            starts a local one.
        num_cpus: CPUs that a local Ray counts with; None takes those of the machine.
        verbose: Whether Ray's logs are shown.
        import_folder: A folder from which the workers of a local Ray can import.

    Raises:
        InputError: There is no cluster at `address`.
    """
    import ray

    if ray.is_initialized():
        return
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            if num_cpus is not None:
                raise InputError("--ray-num-cpus is for a local Ray, not for a running cluster")
            ray.init(address=address, **options)
        else:
            with _python_path(import_folder):
                # "local": never join, unasked, a cluster that happens to run on this machine.
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)
    except (ConnectionError, RuntimeError) as error:
        raise InputError(f"cannot join the Ray cluster at {address!r}: {error}") from None


@contextlib.contextmanager
def quiet_ray(verbose: bool) -> Iterator[None]:
    """Keeps Ray's chatter in this process off the screen inside the block, unless `verbose`.

    Tune's own progress output is off in either case: the command has its own.
    """
    with environment_variable("RAY_AIR_NEW_OUTPUT", "0"), contextlib.ExitStack() as stack:
        if not verbose:
            stack.enter_context(_quiet_loggers())
        yield


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    # Failures of trials are reported by the command itself.
    levels = {"ray": logging.ERROR, "ray.rllib": logging.ERROR, "ray.tune": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable inside the block; processes started there inherit it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _python_path(folder: Path | None) -> contextlib.AbstractContextManager[None]:
    """Puts a folder on PYTHONPATH inside the block."""
    if folder is None:
        return contextlib.nullcontext()
    paths = [str(folder), os.environ.get("PYTHONPATH")]
    return environment_variable("PYTHONPATH", os.pathsep.join(filter(None, paths)))
