"""Does faults to a sweep one after the other, and checks what becomes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.chaos import checks
from tests.chaos.faults import Fault, Store, inflict, mend
from tests.chaos.sweep import Sweep, wait_until
from tests.proxy import proxying
from tests.s3 import serving

START_S = 300.0  # From the command's start to its next round: a dozen processes import PyTorch.
HANG_S = 60.0
PERSON_S = 15.0  # After which a person would stop what seems to hang, and then at once.
ENOUGH_ROUNDS = 3  # After a fault, to say that it goes on: the first may have been under way.
MAX_IDLE = 3
DISK = "size=256m"


@dataclass
class Outcome:
    """What became of a sweep.

    Args:
        patience: Factor on how long everything may take.
        lines: What happened, fault by fault.
        problems: What should not have.
        num_faults: How many faults hit something.
        num_compared: Checkpoints that were compared with those of undisturbed runs.
    """

    patience: float = 1.0
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_faults: int = 0
    num_compared: int = 0

    def say(self, text: str) -> None:
        self.lines.append(text)
        print(text, flush=True)


@contextlib.contextmanager
def store_of(kind: str, folder: Path) -> Iterator[Store]:
    """Makes a storage that can fail: a small disk (as root only), or an object store."""
    if kind == "object store":
        with serving() as server, proxying(server.endpoint) as proxy:
            bucket = server.new_bucket()
            variables = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
            yield Store(f"{bucket}/results", proxy, None, variables)
        return
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(disk)], check=True)
    try:
        yield Store(str(disk / "results"), None, disk, {})
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@contextlib.contextmanager
def sweeping(kind: str, patience: float = 1.0) -> Iterator[tuple[Sweep, Store]]:
    """Starts a cluster and the command on it; ends everything in the end."""
    with (
        mock.patch.dict(os.environ),
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as ray_folder,
        store_of(kind, Path(folder)) as store,
    ):
        sweep = Sweep(Path(folder), ray_folder, store.uri, store.environment, patience)
        try:
            sweep.start_cluster()
            sweep.start()
            yield sweep, store
        finally:
            sweep.close()


def undisturbed(patience: float = 1.0) -> dict[str, dict[int, checks.Parameters]]:
    """Returns strategy -> round -> parameters, of a sweep that nobody disturbs.

    Args:
        patience: Factor on how long it may take, for a machine that has other things to do.
    """
    with sweeping("object store", patience) as (sweep, _):
        ended = wait_until(lambda: sweep.exit_code is not None, 2 * patience * START_S)
        assert ended, f"the sweep did not end:\n{sweep.output}"
        assert sweep.exit_code == 0, sweep.output
        trials = checks.trial_folders(sweep.storage)
        dropped = [rows for trial in trials for rows in checks.drops_of(trial)]
        assert not dropped, f"env runners were too slow, be more patient: {dropped}"
        return checks.all_parameters(trials)


def disturb(
    faults: list[Fault],
    kind: str,
    expected: dict[str, dict[int, checks.Parameters]],
    patience: float = 1.0,
) -> Outcome:
    """Runs a sweep to its end, through faults.

    Args:
        faults: In the order in which they strike.
        kind: Of storage: "disk" or "object store".
        expected: What `undisturbed` returned.
        patience: As there.
    """
    outcome = Outcome(patience)
    with sweeping(kind, patience) as (sweep, store):
        for fault in faults:
            _survive(sweep, store, fault, outcome)
        _finish(sweep, outcome)
        if sweep.exit_code == 0:
            found, outcome.num_compared = checks.sweep_problems(sweep, expected, sweep.folder)
            outcome.problems += found
            if found:
                print(sweep.outputs, flush=True)
    return outcome


def _survive(sweep: Sweep, store: Store, fault: Fault, outcome: Outcome) -> None:
    """Waits for a fault's moment, does it, and sees to it that the sweep goes on."""
    if not _comes_to(sweep, sweep.num_rounds + fault.after, outcome):
        outcome.say(f"  {fault}: too late")
        return
    trials = {process.pid for process in sweep.of_role("trial")}
    hit = inflict(sweep, store, fault)
    outcome.num_faults += hit
    began = time.monotonic()
    hang_s = HANG_S * outcome.patience
    how = _awaited(sweep, fault, trials, hang_s)
    seconds = time.monotonic() - began
    outcome.say(f"  {fault}: {how if hit else 'there was nobody to hit'}, {seconds:.0f} s")
    if how == "hangs":
        outcome.problems.append(
            f"{fault}: hangs for {hang_s:.0f} s:\n{sweep.output[-3000:]}\n{sweep.stacks()}"
        )
        assert sweep.command is not None
        sweep.command.kill()
        sweep.command.wait()
    if sweep.exit_code is not None:
        struck = fault.target == "driver" or how == "hangs"
        outcome.problems += [f"{fault}: {p}" for p in checks.exit_problems(sweep, struck)]
        # What is stopped with its machine, nobody can end, nor what Ray alone can, which hangs.
        if fault.target != "node" and (fault.target, fault.deed) != ("control process", "stop"):
            left = checks.left_behind(sweep, outcome.patience)
            outcome.problems += [f"{fault}: {problem}" for problem in left]
    mend(sweep, fault)
    _resume_if_ended(sweep)


def _comes_to(sweep: Sweep, num_rounds: int, outcome: Outcome) -> bool:
    """Waits for so many rounds; returns whether there were, or the sweep was over before.

    A trial that has failed ends the command only when the others are done: then it is resumed.
    """
    limit_s = START_S * outcome.patience
    idle = 0  # Starts in a row that came to no round.
    while sweep.exit_code != 0:
        seen = sweep.num_rounds
        if seen >= num_rounds:
            return True
        if not wait_until(lambda seen=seen: _has_moved(sweep, seen), limit_s) or idle == MAX_IDLE:
            outcome.problems.append(f"no round after {idle} starts:\n{sweep.output[-3000:]}")
            return False
        idle = 0 if sweep.num_rounds > seen else idle + 1
        if sweep.exit_code:
            outcome.say(f"  the command ended with {sweep.exit_code}, resumed")
            outcome.problems += checks.exit_problems(sweep, struck_driver=False)
            sweep.start()
    return False


def _has_moved(sweep: Sweep, seen: int) -> bool:
    return sweep.num_rounds > seen or sweep.exit_code is not None


def _awaited(sweep: Sweep, fault: Fault, trials: set[int], hang_s: float) -> str:
    """Waits until a sweep goes on, or ends, or has done neither for so long; returns which.

    It goes on with other rounds, or, where the trial has failed of it, with the next trial. Where a
    person would have to stop what can do nothing any more, this does it: a stopped driver is
    killed, and a command whose trial is stopped gets SIGTERM, twice.

    Args:
        sweep: The sweep.
        fault: What was done to it.
        trials: The processes of trials before.
        hang_s: How long to wait.
    """
    assert sweep.command is not None
    before = sweep.num_rounds
    # Trials do some rounds more without it: that is not what is waited for.
    must_end = fault.target == "control process" and fault.deed != "pause"
    if fault.target == "driver" and fault.deed == "stop":
        sweep.command.kill()
    asked = []
    if fault.target == "trial" and fault.deed == "stop":
        asked = [PERSON_S, 2 * PERSON_S]
    began = time.monotonic()
    while time.monotonic() - began < hang_s:
        if sweep.exit_code is not None:
            return f"ended with {sweep.exit_code}, resumed" if sweep.exit_code else "ended"
        if not must_end and sweep.num_rounds >= before + ENOUGH_ROUNDS:
            return "went on"
        if not must_end and trials.isdisjoint(p.pid for p in sweep.of_role("trial")):
            return "the trial ended"
        if asked and time.monotonic() - began > asked[0]:
            asked.pop(0)
            sweep.command.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    return "hangs"


def _resume_if_ended(sweep: Sweep) -> None:
    if sweep.exit_code:
        sweep.start()


def _finish(sweep: Sweep, outcome: Outcome) -> None:
    """Lets the sweep come to its end."""
    _comes_to(sweep, sys.maxsize, outcome)
    if sweep.exit_code != 0:
        outcome.problems.append(f"the sweep does not end ({sweep.exit_code}):\n{sweep.output}")
    outcome.problems += checks.left_behind(sweep, outcome.patience)
