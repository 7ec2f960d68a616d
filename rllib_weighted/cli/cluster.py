"""Starts Ray or joins a running cluster, and keeps Ray's messages off the screen."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from rllib_weighted._private import (
    control_process_answers,
    ended_ray_processes,
    kill_ray_processes,
    ray_in_sessions_of_its_own,
)
from rllib_weighted.cli import InputError, RayEnded
from rllib_weighted.cli.inputs import FILE_MODULE
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.text import readable

_WATCH_S = 1.0
_SILENCE_S = 40.0  # Of a control process, before it counts as ended; Ray itself gives it 60.
_GRACE_S = 8.0  # For what is to end then.

_silent: list[str] = []  # The control process of a joined cluster, if it is.


def start_ray(options: TrainOptions, import_folder: Path | None) -> None:
    """Starts a local Ray, or joins a running one; does nothing if this process has one already.

    Args:
        options: Say which cluster to join: that of `ray_address`, else that of `RAY_ADDRESS` (set
            inside a Ray job); without either, a local one of `ray_num_cpus` is started.
        import_folder: A folder from which the workers of a local Ray can import.

    Raises:
        InputError: There is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        return
    verbose, num_cpus = options.verbose or options.local_mode, options.ray_num_cpus
    level = logging.INFO if verbose else logging.ERROR
    logs: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    if address and num_cpus is not None:
        raise InputError("--ray-num-cpus is for a local Ray, not for a running cluster")
    # "local": do not join a cluster that happens to run on this machine.
    local: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    paths = [str(import_folder or ""), os.environ.get("PYTHONPATH", "")]
    try:
        with (
            environment_variable("PYTHONPATH", os.pathsep.join(filter(None, paths))),
            ray_in_sessions_of_its_own(),
        ):
            ray.init(address=address or "local", **local, **logs)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        if not address:
            raise InputError(f"cannot start Ray: {error}") from None
        raise InputError(
            f"cannot join the Ray cluster at {address!r}, which should be its HOST:PORT, as `ray "
            f"start --head` prints it: {error}"
        ) from None


@contextlib.contextmanager
def quiet_ray(verbose: bool) -> Iterator[None]:
    """Hides Ray's logs, and the warnings of packages, inside the block, unless `verbose`.

    What a training file itself warns of is shown. Tune's own progress output is off in either case:
    the command has its own. A training file is to be loaded inside the block, too: it is what
    imports Ray, RLlib and gymnasium first.
    """
    with environment_variable("RAY_AIR_NEW_OUTPUT", "0"), contextlib.ExitStack() as stack:
        if not verbose:
            import ray  # noqa: F401  # The first import sets the levels of these loggers itself.

            # Failures of trials are reported by the command itself. TensorBoard's writer warns of
            # every metric that is not known yet.
            quiet = {"ray": "ERROR", "ray.rllib": "ERROR", "ray.tune": "CRITICAL"}
            for name, level in {**quiet, "tensorboardX": "ERROR"}.items():
                logger = logging.getLogger(name)
                stack.callback(logger.setLevel, logger.level)
                logger.setLevel(level)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=re.escape(FILE_MODULE))
        yield


def ended_ray() -> str:
    """Returns which processes without which Ray is nothing have ended; "" if none."""
    ended = [name for name in ended_ray_processes() if name in ("gcs_server", "raylet")]
    return " and ".join([*ended, *_silent])


@contextlib.contextmanager
def watching_ray(on_end: Callable[[], None], on_stuck: Callable[[], None]) -> Iterator[None]:
    """Calls `on_end`, in a thread, if Ray ends inside the block; see `ended_ray`.

    And `on_stuck`, if the block goes on in spite of it: the main thread may be inside a call of Ray
    that nothing interrupts.

    Ray (2.60) itself looks for its control process for a minute, and then ends this process from
    C++, where nothing can be said or saved any more; for one that is there and does not answer, it
    looks for ever.
    """
    stopped = threading.Event()
    _silent.clear()
    heard = [time.monotonic()]

    def listen() -> None:
        # In a thread of its own: Ray may keep a question to a process that has died for a minute.
        while not stopped.wait(_WATCH_S):
            if control_process_answers(timeout_s=_WATCH_S):
                heard[0] = time.monotonic()

    def watch() -> None:
        while not stopped.wait(_WATCH_S):
            if time.monotonic() - heard[0] > _SILENCE_S:
                _silent.append(f"gcs_server (no answer for {_SILENCE_S:.0f} s)")
            if ended_ray():
                on_end()
                if not stopped.wait(_GRACE_S):
                    on_stuck()
                return

    threading.Thread(target=listen, daemon=True).start()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def leave(error: RayEnded) -> NoReturn:
    """Says that Ray has ended, and ends this process.

    Python's way out would wait for Ray, which waits a minute for what is gone.

    Args:
        error: What to say.
    """
    print(f"Error: {readable(error)}", file=sys.stderr, flush=True)
    kill_ray_processes()
    os._exit(error.exit_code)


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
