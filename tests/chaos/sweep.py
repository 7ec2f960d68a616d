"""The sweep that is disturbed: two simulated nodes, and `rllib train file` on them.

Every process that is started here, and what it starts, carries `MARK` in its environment: by it
they are found, on whatever node and however they were left.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray  # noqa: F401  # Makes psutil importable.
from ray.cluster_utils import Cluster

import psutil  # isort: skip

from tests.chaos.environment import noted_rounds

ROOT = Path(__file__).parents[2]
MARK = "RLLIB_WEIGHTED_CHAOS"
STRATEGIES = ("reward_weighted", "loss_weighted")
ROUNDS = 30  # Of each of the two trials.
CHECKPOINT_FREQ = 4
NAME = "run"
NODE_CPUS = 3  # A trial needs five: one for itself, two env runners, two learners.
# How soon Ray takes a node for dead, in milliseconds, that does not answer: some 15 s.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 2000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
ROLES = {
    "env runner": re.compile(r"ray::WeightedEnvRunner"),
    "learner": re.compile(r"ray::_WrappedExecutable"),  # RLlib's wrapper of a learner.
    "trial": re.compile(r"ray::WeightedPPO"),
}
FILE = """
import functools

from ray import tune

from rllib_weighted import WeightedPPOConfig
from tests.chaos.environment import PacedCartPole, note_round

config = (
    WeightedPPOConfig()
    .environment(PacedCartPole, env_config={{"folder": {folder!r}}})
    .env_runners(
        num_env_runners=2,
        num_envs_per_env_runner=2,
        batch_mode="complete_episodes",
        sample_timeout_s={sample_timeout_s},
    )
    .learners(num_learners=2)
    .training(
        merge_strategy=tune.grid_search({strategies!r}),
        merge_unit="env",
        train_batch_size=80,
        minibatch_size=40,
        num_epochs=1,
        lr=1e-3,
    )
    .fault_tolerance(max_missed_rounds=2, learner_timeout_s={learner_timeout_s})
    .rl_module(model_config={{"fcnet_hiddens": [8]}})
    .callbacks(on_train_result=functools.partial(note_round, folder={folder!r}))
    .debugging(seed=5)
)
tune_config = tune.TuneConfig(max_concurrent_trials=1)
stop = {{"training_iteration": {rounds}}}
"""


def wait_until(condition: Callable[[], Any], seconds: float) -> bool:
    """Waits for a condition; returns whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def children(process: psutil.Process) -> list[psutil.Process]:
    """Returns what a process has started, and what that has; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


class Sweep:
    """One sweep, from its cluster's start to the end of all its processes.

    Args:
        folder: An empty folder for all of its files but Ray's.
        ray_folder: Where Ray writes: the names of its sockets are limited to some hundred letters.
        storage: Where results go.
        environment: More environment variables of all processes.
        patience: Factor on how long a round may take, on a machine that has other things to do.
    """

    def __init__(
        self,
        folder: Path,
        ray_folder: str,
        storage: str,
        environment: dict[str, str],
        patience: float = 1.0,
    ) -> None:
        self.folder, self.storage = folder, storage
        self.file = folder / "train_me.py"
        text = FILE.format(
            folder=str(folder),
            strategies=list(STRATEGIES),
            rounds=ROUNDS,
            sample_timeout_s=8 * patience,
            learner_timeout_s=15 * patience,
        )
        self.file.write_text(text)
        self.mark = uuid.uuid4().hex
        self.variables = {
            **environment,
            MARK: self.mark,
            "RAY_TMPDIR": ray_folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            # A Ray that was started in this process before asks all later ones for its token.
            "RAY_AUTH_MODE": "disabled",
        }
        self.cluster: Any = None
        self.command: subprocess.Popen[bytes] | None = None
        self.num_starts = 0

    # The cluster

    def start_cluster(self) -> None:
        """Starts the two nodes."""
        os.environ |= self.variables  # Ray's processes get this process's own.
        self.cluster = Cluster()
        self.cluster.add_node(
            num_cpus=NODE_CPUS, include_dashboard=False, _system_config=dict(HEALTH)
        )
        self.add_node()

    def add_node(self) -> None:
        """Starts a second node."""
        self.cluster.add_node(num_cpus=NODE_CPUS)

    @property
    def nodes(self) -> list[Any]:
        """The nodes, the head first."""
        return [self.cluster.head_node, *self.cluster.worker_nodes]

    def node_processes(self, node: Any) -> list[psutil.Process]:
        """Returns all processes of a node that run.

        Each carries the mark: the number of one that has ended may be somebody else's by now.
        """
        own = {p.process.pid for processes in node.all_processes.values() for p in processes}
        alive = self.processes()
        found = [process for process in alive if process.pid in own]
        of_workers = {child.pid for process in found for child in children(process)}
        return [process for process in alive if process.pid in own | of_workers]

    def replace_second_node(self) -> None:
        """Ends what is left of the second node, and starts another one."""
        for node in list(self.cluster.worker_nodes):
            for process in self.node_processes(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()

    def replace_cluster(self) -> None:
        """Ends what is left of the cluster, and starts another one."""
        self.stop_cluster()
        self.start_cluster()

    def stop_cluster(self) -> None:
        """Ends both nodes."""
        if self.cluster is None:
            return
        for process in self.processes():
            if self.command is None or process.pid != self.command.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        with contextlib.suppress(Exception):  # Ray's own bookkeeping of processes that are gone.
            self.cluster.shutdown()
        self.cluster = None

    # The command

    def start(self) -> None:
        """Starts the command, or resumes what it has started before."""
        options = ["--storage-path", self.storage, "--name", NAME]
        options += ["--checkpoint-freq", str(CHECKPOINT_FREQ), "--ray-address"]
        options += [self.cluster.address] + ["--resume"] * bool(self.num_starts)
        self.num_starts += 1
        with self.output_file.open("wb") as stream:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "rllib_weighted", "train", "file", str(self.file), *options],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **self.variables},
                start_new_session=True,  # A signal to its group is not one to these tests.
            )

    @property
    def output_file(self) -> Path:
        """What the last start has said."""
        return self.folder / f"output-{self.num_starts}.txt"

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    @property
    def outputs(self) -> str:
        """The last lines of each start."""
        files = sorted(self.folder.glob("output-*.txt"), key=lambda file: file.stat().st_mtime)
        texts = [(file.stem, file.read_text(errors="replace").splitlines()) for file in files]
        return "\n".join(f"{name}:\n" + "\n".join(lines[-40:]) for name, lines in texts)

    @property
    def exit_code(self) -> int | None:
        """How the command ended; None while it runs."""
        assert self.command is not None
        return self.command.poll()

    @property
    def num_rounds(self) -> int:
        """How many rounds all trials have ended, those that were done again included."""
        return len(noted_rounds(self.folder))

    # Processes

    def processes(self) -> list[psutil.Process]:
        """Returns what runs of all that was started for this sweep, but this process itself."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_own = process.environ().get(MARK) == self.mark and process.pid != os.getpid()
                if is_own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def of_role(self, role: str) -> list[psutil.Process]:
        """Returns the env runners, the learners, or the trial, the oldest first."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if ROLES[role].match(" ".join(process.cmdline())):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def stacks(self) -> str:
        """Returns the stacks of the command and its processes, by the py-spy that Ray brings."""
        assert self.command is not None
        pids = [self.command.pid, *(p.pid for role in ROLES for p in self.of_role(role))]
        dump = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid"]
        found = [
            subprocess.run([*dump, str(pid)], capture_output=True, text=True, timeout=30)
            for pid in pids
        ]
        return "\n".join(one.stdout + one.stderr for one in found)

    def close(self) -> None:
        """Ends everything."""
        if self.command is not None and self.exit_code is None:
            self.command.kill()
            self.command.wait()
        self.stop_cluster()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
