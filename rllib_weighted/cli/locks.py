"""A lock on an experiment's folder: one process at a time trains there.

On a local disk the kernel keeps the lock (`flock`), and lets go of it when the process ends, in
whatever way. A store of objects has no such thing: there the owner writes a claim and renews it,
and a claim that has not been renewed for `LEASE_S` seconds counts for nothing any more. Its age is
measured by the store's own clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyarrow import fs

from rllib_weighted.cli import InputError, storage
from rllib_weighted.cli.options import TrainOptions
from rllib_weighted.core.redaction import redact

LOCK_FILE = ".rllib_train.lock"
CLAIM_PREFIX = ".rllib_train.claim-"
LEASE_S = 45.0
"""Seconds without renewal after which a claim on a remote store has lapsed."""

_RENEW_S = LEASE_S / 4
_POLL_S = 2.0
_ROUNDS = 3  # Of drawing lots, where two have claimed at the same moment.

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who trains in a folder.

    Args:
        user: Name of the user.
        host: Name of the machine.
        pid: The process.
        since: When it began, in local time.
        boot: Identity of the machine's present run; "" where it is not known.
        started: When the process started, in the kernel's ticks; tells it from a later one.
    """

    user: str
    host: str
    pid: int
    since: str
    boot: str = ""
    started: str = ""

    @classmethod
    def of_this_process(cls) -> Owner:
        """Returns what others are told of this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # A container's user without a name.
            user = f"user {os.getuid()}"
        return cls(
            user=user,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            boot=_boot(),
            started=_started(os.getpid()),
        )

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Returns what `text` says of an owner; None if it says nothing yet."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.since}"

    @property
    def is_gone(self) -> bool:
        """Whether it ran on this machine and is known to have ended."""
        return bool(self.boot) and self.boot == _boot() and _started(self.pid) != self.started


def _boot() -> str:
    """Identity of this machine's present run, and of its processes' numbering."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str:
    """When a process started; "" if there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def stop_at_once() -> None:
    """Ends `Tuner.fit`, which runs in the main thread, from another one."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # The second one ends it; see `Interrupt`.
        os.kill(os.getpid(), signum)


@contextlib.contextmanager
def locked_experiment(
    stem: str, options: TrainOptions, root: str, *, say: Callable[[str], None], lost: list[str]
) -> Iterator[str]:
    """Yields the name of the experiment to start or to resume, whose lock is held meanwhile.

    Args:
        stem: What names begin with that are drawn for it.
        options: What the command's options say.
        root: The storage.
        say: Shows that a lock is waited for.
        lost: Gets the reason if the lock is lost; the training is then stopped at once.

    Raises:
        InputError: There is none, there is one already, or somebody else trains it.
    """

    def stop(reason: str) -> None:
        lost.append(reason)
        stop_at_once()

    def lock(name: str) -> contextlib.AbstractContextManager[None]:
        location = storage.child(root, name)
        return locked(*storage.open_storage(location), location, on_lost=stop, say=say)

    if options.resume:
        storage.check_store(root)
        name = storage.experiment_to_resume(root, stem, options.name)
        with lock(name):
            yield name
        return
    storage.make_storage(root)
    with contextlib.ExitStack() as stack:
        for last_try in (False, False, True):
            name = options.name or storage.new_name(stem)
            try:
                stack.enter_context(lock(name))
                storage.refuse_existing(root, name)
                break
            except InputError:
                stack.close()
                if options.name or last_try:
                    raise
                time.sleep(1)  # A name is drawn by the second; somebody else has drawn it too.
        yield name


def refuse_existing(root: str, name: str, *, say: Callable[[str], None]) -> None:
    """Raises InputError if the storage holds an experiment of that name; it says who trains it.

    Args:
        root: The storage.
        name: The experiment's name.
        say: Shows that a lock is waited for.
    """
    if name in storage.experiment_names(root):
        location = storage.child(root, name)
        opened = storage.open_storage(location)
        with locked(*opened, location, on_lost=lambda reason: None, say=say):
            storage.refuse_existing(root, name)


@contextlib.contextmanager
def locked(
    filesystem: fs.FileSystem,
    folder: str,
    location: str,
    *,
    on_lost: Callable[[str], None],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Holds the lock on an experiment's folder inside the block; makes the folder if it is new.

    Args:
        filesystem: Where the folder lies.
        folder: The folder there.
        location: What it is called in messages.
        on_lost: Called, in another thread, with a message when the lock of a remote folder is no
            longer held: somebody else took it while the store was out of reach.
        say: Shows that somebody's claim is waited for.

    Raises:
        InputError: Somebody else holds it: who, since when, how to take over.
    """
    path = Path(folder, LOCK_FILE)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    descriptor = _flocked(path, location) if is_local else None
    lock = (
        _Lease(filesystem, folder, redact(location), on_lost, say).held()
        if descriptor is None
        else _flock_held(descriptor, path)
    )
    with lock:
        yield


@contextlib.contextmanager
def _flock_held(descriptor: int, path: Path) -> Iterator[None]:
    try:
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # A full disk: others are not told who it is.
            os.write(descriptor, json.dumps(asdict(Owner.of_this_process())).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()  # Where nothing was begun.
        os.close(descriptor)


def _flocked(path: Path, location: str) -> int | None:
    """Returns a descriptor that holds the kernel's lock on a file; None where it has no such lock.

    Raises:
        InputError: Somebody else holds it, or the file cannot be written.
    """
    while True:
        try:
            os.makedirs(path.parent, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # Its owner has just removed the empty folder.
            continue
        except OSError as error:
            raise InputError(f"cannot write to {location}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = Owner.parse(os.pread(descriptor, 4096, 0).decode(errors="replace"))
            os.close(descriptor)
            raise InputError(_refusal(location, owner, "")) from None
        except OSError:  # Some network file systems.
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # Its owner has just removed this file: there is a new one.


def _refusal(location: str, owner: Owner | None, remedy: str) -> str:
    stop = "stop that process" if owner is None else f"stop it (kill {owner.pid} on {owner.host})"
    return (
        f"{location} is being trained by {owner or 'another process'}. To take over, {stop}, which "
        f"saves a checkpoint, and --resume{remedy}; to train beside it, choose another --name"
    )


class _Lease:
    """A claim on a folder of a remote store; see `locked`."""

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        location: str,
        on_lost: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._filesystem, self._location = filesystem, location
        self._folder = folder
        self._name = f"{CLAIM_PREFIX}{secrets.token_hex(8)}"
        self._text = json.dumps(asdict(Owner.of_this_process())).encode()
        self._on_lost, self._say = on_lost, say
        self._over = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        try:
            self._acquire()
        except OSError as error:
            raise InputError(f"cannot lock {self._location}: {error}") from None
        thread = threading.Thread(target=self._keep, name="experiment lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(timeout=_RENEW_S)
            with contextlib.suppress(OSError):
                self._delete(self._name)

    def _acquire(self) -> None:
        """Claims the folder; whoever claims later sees the earlier claim, and gives way."""
        self._filesystem.create_dir(self._folder, recursive=True)
        self._wait_for_others()
        for _ in range(_ROUNDS):
            self._renew()
            others = self._others()
            if not others:
                return
            self._delete(self._name)
            time.sleep(random.uniform(0.2, 2.0))  # Two that see each other both give way.
        raise InputError(self._refuse(others[0]))

    def _wait_for_others(self) -> None:
        """Waits for the claims of processes that may be dead; refuses if one is renewed.

        Raises:
            InputError: The lock is held.
        """
        first: dict[str, int] = {}
        announced = False
        while others := self._others():
            for claim in others:
                if first.setdefault(*claim) != claim[1]:
                    raise InputError(self._refuse(claim))
            if not announced:
                owner = self._owner(others[0][0]) or "somebody"
                self._say(
                    f"  waiting     up to {LEASE_S:.0f} s: {owner} has claimed this experiment, "
                    "and may still run"
                )
                announced = True
            time.sleep(_POLL_S)

    def _others(self) -> list[tuple[str, int]]:
        """Returns the other claims that count, each with when it was renewed; removes dead ones."""
        probe = f"{self._name}-now"
        self._write(probe)
        selector = fs.FileSelector(self._folder, allow_not_found=True)
        claims = {
            info.base_name: info.mtime_ns or 0
            for info in self._filesystem.get_file_info(selector)
            if info.base_name.startswith(CLAIM_PREFIX) and info.is_file
        }
        self._delete(probe)
        now = claims.pop(probe, time.time_ns())  # By the store's own clock.
        claims.pop(self._name, None)
        living = []
        for name, renewed in sorted(claims.items(), key=lambda claim: claim[1]):
            is_probe = name.endswith("-now")
            owner = None if is_probe else self._owner(name)
            if now - renewed > LEASE_S * 1e9 or (owner is not None and owner.is_gone):
                self._delete(name)
            elif not is_probe:
                living.append((name, renewed))
        return living

    def _owner(self, name: str) -> Owner | None:
        path = f"{self._folder}/{name}"
        with contextlib.suppress(OSError), self._filesystem.open_input_stream(path) as stream:
            return Owner.parse(stream.read().decode(errors="replace"))
        return None

    def _refuse(self, claim: tuple[str, int]) -> str:
        remedy = f". A claim of a dead process lapses after {LEASE_S:.0f} s"
        return _refusal(self._location, self._owner(claim[0]), remedy)

    def _keep(self) -> None:
        """Renews the claim until the end, in a thread of its own."""
        renewed = time.monotonic()
        while not self._over.wait(_RENEW_S):
            late = time.monotonic() - renewed > LEASE_S / 2
            try:
                # A claim that came too late may have been taken for dead.
                if late and (taken := self._others()):
                    self._on_lost(
                        f"{self._location} has been taken over by {self._owner(taken[0][0])} while "
                        f"the store was out of reach for more than {LEASE_S:.0f} s"
                    )
                    return
                self._renew()
                renewed = time.monotonic()
            except OSError as error:
                logger.warning("Could not renew the lock of %s: %s", self._location, error)

    def _renew(self) -> None:
        self._write(self._name)

    def _write(self, name: str) -> None:
        with self._filesystem.open_output_stream(f"{self._folder}/{name}") as stream:
            stream.write(self._text)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._folder}/{name}")
