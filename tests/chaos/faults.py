"""The faults: what they are, how they are drawn, and how each is done to a sweep.

A fault strikes a number of rounds after the one before it, whichever trial does them, so that the
same seed gives the same faults; where in a round it strikes is up to the machine.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray  # noqa: F401  # Makes psutil importable.

import psutil  # isort: skip

from tests.chaos.sweep import ROUNDS, STRATEGIES, Sweep
from tests.proxy import Proxy

TARGETS = ("env runner", "learner", "trial", "driver", "control process", "node")
DEEDS = ("kill", "pause", "stop")
"""`kill -9`; SIGSTOP, and SIGCONT some seconds later; SIGSTOP for good."""

PAUSES_S = (2.0, 6.0)
STORE_S = (2.0, 12.0)  # For which a store is away, or a disk full.
STORES = {"disk": ("disk full",), "object store": ("away", "failing", "frozen")}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        after: Rounds of any trial, since the sweep got over the fault before.
        target: What it strikes.
        deed: What happens to it: of `DEEDS`, or a mode of the storage, or "NaN".
        index: Which env runner or learner: of two.
        seconds: For how long, where it ends by itself.
        delay: Seconds after the round's end, so that it strikes anywhere in a round.
    """

    after: int
    target: str
    deed: str
    index: int = 0
    seconds: float = 0.0
    delay: float = 0.0

    def __str__(self) -> str:
        number = f" {self.index + 1}" if self.target in ("env runner", "learner") else ""
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.after} rounds later: {self.deed} {self.target}{number}{lasts}"


def draw(seed: str, num_faults: int, storage: str, only: str = "") -> list[Fault]:
    """Draws the faults of one sweep, in the order in which they strike.

    Args:
        seed: Text that they follow from.
        num_faults: How many.
        storage: Key of `STORES`.
        only: Draws only those whose target and deed hold this text.
    """
    rng = random.Random(seed)
    kinds = [(target, deed) for target in TARGETS for deed in DEEDS]
    kinds += [("storage", deed) for deed in STORES[storage]] * 2
    kinds += [("env runner", "NaN")]
    kinds = [kind for kind in kinds if only in f"{kind[1]} {kind[0]}"]
    # Each kind once before one comes again: few faults are to be of many kinds.
    order = [kind for _ in range(1 + num_faults // len(kinds)) for kind in shuffled(kinds, rng)]
    most = max(2, ROUNDS * len(STRATEGIES) // (num_faults + 2))  # Before the sweep is over.
    faults = []
    for target, deed in order[:num_faults]:
        low, high = STORE_S if target == "storage" else PAUSES_S
        lasts = deed not in ("kill", "stop")
        faults.append(
            Fault(
                after=rng.randint(2, most),
                target=target,
                deed=deed,
                index=rng.randrange(2),
                seconds=rng.uniform(low, high) if lasts else 0.0,
                delay=rng.uniform(0.0, 0.3),
            )
        )
    return faults


def shuffled(kinds: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    return rng.sample(kinds, len(kinds))


@dataclass
class Store:
    """Where results go, and how it can fail.

    Args:
        uri: The storage.
        proxy: In front of an object store; None for a disk.
        disk: A small disk's folder; None for an object store.
        environment: What a process needs to use it.
    """

    uri: str
    proxy: Proxy | None
    disk: Path | None
    environment: dict[str, str]

    @contextlib.contextmanager
    def failing(self, mode: str) -> Iterator[None]:
        """Inside the block the object store is away, or the disk full."""
        if self.proxy is not None:
            self.proxy.be(mode)
            try:
                yield
            finally:
                self.proxy.be("there")
            return
        assert self.disk is not None
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(2**16))
        try:
            yield
        finally:
            ballast.unlink()


def victims(sweep: Sweep, fault: Fault) -> list[psutil.Process]:
    """Returns the processes that a fault strikes; none if they are not there."""
    if fault.target == "driver":
        assert sweep.command is not None
        return [psutil.Process(sweep.command.pid)]
    if fault.target == "control process":
        (server,) = sweep.cluster.head_node.all_processes["gcs_server"]
        return [process for process in sweep.processes() if process.pid == server.process.pid]
    if fault.target == "node":
        return sweep.node_processes(sweep.nodes[-1])
    found = sweep.of_role(fault.target)
    return found[fault.index % len(found) :][:1] if found else []


def inflict(sweep: Sweep, store: Store, fault: Fault) -> bool:
    """Does a fault to a sweep, and waits for its end; returns whether there was anybody to hit."""
    time.sleep(fault.delay)
    if fault.target == "storage":
        with store.failing("away" if fault.deed == "disk full" else fault.deed):
            _wait_for_exit(sweep, fault.seconds)
        return True
    if fault.deed == "NaN":
        order = sweep.folder / f"nan-{fault.index + 1}"
        order.touch()
        _wait_for_exit(sweep, fault.seconds)
        order.unlink()
        return True
    struck = victims(sweep, fault)
    deed = psutil.Process.kill if fault.deed == "kill" else psutil.Process.suspend
    _to_all(struck, deed)
    if fault.deed == "pause":
        _wait_for_exit(sweep, fault.seconds)
        _to_all(struck, psutil.Process.resume)
    return bool(struck)


def _to_all(processes: list[psutil.Process], deed: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            deed(process)


def _wait_for_exit(sweep: Sweep, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while sweep.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.05)


def mend(sweep: Sweep, fault: Fault) -> None:
    """Does what the people who run a machine would do after a fault, if it needs it."""
    if fault.target == "node" and fault.deed != "pause":
        sweep.replace_second_node()
    gone = sweep.cluster.head_node.dead_processes()
    if fault.target == "control process" and (fault.deed == "stop" or gone):
        sweep.replace_cluster()
    if fault.target == "node" and fault.deed == "pause" and not is_node_alive(sweep):
        sweep.replace_second_node()  # Ray had given it up; then its raylet ends by itself.


def is_node_alive(sweep: Sweep) -> bool:
    """Whether the processes of the second node all run."""
    return not sweep.nodes[-1].dead_processes()
