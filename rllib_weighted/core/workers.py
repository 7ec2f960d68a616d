"""Who is a worker: the numbering that env runners, learner and records share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MergeUnit = Literal["env_runner", "env"]
EnvSeeding = Literal["stream", "fixed"]

WORKER_KEY = "rllib_weighted/worker"
"""Key of `episode.custom_data` under which an episode carries its worker's index."""
ENV_INDEX_KEY = "rllib_weighted/env_index"
"""Key of `episode.custom_data`: index of the sub-environment inside its env runner."""


@dataclass(frozen=True)
class WorkerLayout:
    """Numbering of workers and sub-environments.

    A *worker* is an env runner (`unit="env_runner"`) or a single sub-environment of one
    (`unit="env"`). A *slot* is always a single sub-environment.

    Args:
        num_env_runners: Number of remote env runners; 0 means the local one samples.
        num_envs_per_env_runner: Number of sub-environments in each.
        unit: What counts as a worker.
    """

    num_env_runners: int
    num_envs_per_env_runner: int
    unit: MergeUnit

    @property
    def num_runners(self) -> int:
        """Number of env runners that sample: at least the local one."""
        return max(1, self.num_env_runners)

    @property
    def num_slots(self) -> int:
        """Number of sub-environments over all env runners."""
        return self.num_runners * self.num_envs_per_env_runner

    @property
    def num_workers(self) -> int:
        """Number of workers, N."""
        return self.num_slots if self.unit == "env" else self.num_runners

    def __str__(self) -> str:
        return (
            f"{self.num_workers} worker{'s' * (self.num_workers > 1)} (`num_env_runners`="
            f"{self.num_env_runners}, `num_envs_per_env_runner`={self.num_envs_per_env_runner}, "
            f'`merge_unit`="{self.unit}")'
        )

    def has_workers_of(self, other: WorkerLayout) -> bool:
        """Whether a worker's number means the same slots in both layouts."""
        return (self.unit, self.num_workers, self.num_slots) == (
            other.unit,
            other.num_workers,
            other.num_slots,
        )

    def slot(self, env_runner: int, env_index: int) -> int:
        """Returns the slot of a sub-environment.

        Args:
            env_runner: RLlib's index of the env runner: 1 … R, or 0 for the local one.
            env_index: Index of the sub-environment inside its env runner.
        """
        return max(0, env_runner - 1) * self.num_envs_per_env_runner + env_index

    def worker(self, env_runner: int, env_index: int) -> int:
        """Returns the worker, 0 … N - 1, that a sub-environment belongs to."""
        return self.slot(env_runner, env_index) if self.unit == "env" else max(0, env_runner - 1)

    def env_runner(self, worker: int) -> int:
        """Returns RLlib's index of the env runner that a worker lives in."""
        runner = worker // self.num_envs_per_env_runner if self.unit == "env" else worker
        return runner + 1 if self.num_env_runners else 0

    def env_index(self, worker: int) -> int | None:
        """Returns the sub-environment's index inside its env runner; None for a whole runner."""
        return worker % self.num_envs_per_env_runner if self.unit == "env" else None

    def first_slot(self, worker: int) -> int:
        """Returns the (first) slot of a worker."""
        return worker if self.unit == "env" else worker * self.num_envs_per_env_runner
