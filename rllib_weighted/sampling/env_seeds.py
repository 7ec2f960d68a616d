"""One env runner's sub-environments: building them, their seeds, counters and faults."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext

from rllib_weighted.sampling.seeded_env import env_maker
from rllib_weighted.seeding import environment_seed
from rllib_weighted.workers import WorkerLayout

logger = logging.getLogger(__name__)


class EnvSeeds:
    """What decides the seed of every reset in one env runner.

    The counters of a running vector environment live in its `SeededEnv`s: those reset themselves
    when an episode ends. A vector environment that builds its parts itself (`vector_entry_point`)
    has none: there only whole resets are seeded and counted, and here.

    Args:
        config: The env runner's config.
        env_runner: RLlib's index of the env runner (0 = local).
        root_seed: The root seed until an order brings the run's.
    """

    def __init__(self, config: Any, env_runner: int, root_seed: int) -> None:
        self._layout = WorkerLayout(
            config.num_env_runners, config.num_envs_per_env_runner, config.merge_unit
        )
        self._env_runner = env_runner
        self.root_seed = root_seed
        self._evaluates = bool(config.in_evaluation)
        self._version = 0
        self._resets = dict.fromkeys(self._slots, 0)
        self._num_evaluation_resets = 0
        self._vector_env: Any = None

    @property
    def _slots(self) -> list[int]:
        envs = range(self._layout.num_envs_per_env_runner)
        return [self._layout.slot(self._env_runner, index) for index in envs]

    def worker(self, env_index: int) -> int:
        """Returns the worker that a sub-environment belongs to."""
        return self._layout.worker(self._env_runner, env_index)

    # Building

    def build(self, config: Any, context: EnvContext) -> gym.vector.VectorEnv:
        """Builds the vector environment, each sub-environment inside a `SeededEnv`.

        `EnvContext.vector_index` is each sub-environment's own index. (RLlib's is always 0.)
        """
        makers = [
            env_maker(
                config.env,
                context.copy_with_overrides(vector_index=index),
                seed=self.root_seed,
                slot=slot,
                num_slots=self._layout.num_slots,
                evaluation=self._evaluates,
                seeding=config.env_seeding,
            )
            for index, slot in enumerate(self._slots)
        ]
        is_async = gym.VectorizeMode(config.gym_env_vectorize_mode) == gym.VectorizeMode.ASYNC
        vector_class = gym.vector.AsyncVectorEnv if is_async else gym.vector.SyncVectorEnv
        self._vector_env = vector_class(makers)
        self._write_counters()
        return self._vector_env

    def release(self) -> None:
        """Keeps the counters of a vector environment that is going to be closed."""
        if self._vector_env is None:
            return
        try:
            self._resets = self.num_resets
        except Exception:  # One of its processes is gone. Not the same episode again.
            self._resets = {slot: count + 1 for slot, count in self._resets.items()}
        self._vector_env = None

    # Counters

    @property
    def num_resets(self) -> dict[int, int]:
        """Slot -> training resets used so far."""
        if self._vector_env is None:
            return dict(self._resets)
        counts = self._vector_env.get_attr("num_resets")
        return dict(zip(self._slots, counts, strict=True))

    def set_counters(self, root_seed: int, num_resets: dict[int, int]) -> None:
        """Sets what the seeds of the next training resets are drawn from.

        Args:
            root_seed: The run's root seed.
            num_resets: Slot -> resets used so far; also those of other env runners.
        """
        self.root_seed = root_seed
        self._resets = {slot: num_resets.get(slot, 0) for slot in self._slots}
        self._write_counters()

    def _write_counters(self) -> None:
        if self._vector_env is not None:
            self._vector_env.set_attr("num_resets", list(self._resets.values()))
            self._vector_env.set_attr("root_seed", self.root_seed)

    def start_evaluation(self, version: int) -> None:
        """Has resets draw from evaluation's seeds, anew for each version of the weights."""
        self._evaluates = True
        if version != self._version:
            self._version = version
            self._num_evaluation_resets = 0
            self._set_all(weights_version=version, num_evaluation_resets=0)
        self._set_all(evaluation=True)

    def end_evaluation(self) -> None:
        """Has resets draw from training's seeds again."""
        self._evaluates = False
        self._set_all(evaluation=False)

    def _set_all(self, **attributes: Any) -> None:
        if self._vector_env is not None:
            for name, value in attributes.items():
                self._vector_env.set_attr(name, value)

    def next_whole_reset(self) -> int | None:
        """Returns the seed of the next reset of a vector environment that builds its own parts.

        None if there are `SeededEnv`s: they decide.
        """
        if self._vector_env is not None:
            return None
        first, count = self._slots[0], self._resets[self._slots[0]]
        counters: tuple[int, ...] = (count,)
        if self._evaluates:
            counters = (self._version, self._num_evaluation_resets)
            self._num_evaluation_resets += 1
        else:
            self._resets = {slot: n + 1 for slot, n in self._resets.items()}
        return environment_seed(
            self.root_seed,
            slot=first,
            num_slots=self._layout.num_slots,
            evaluation=self._evaluates,
            counters=counters,
        )

    # Faults

    def take_faults(self) -> dict[int, str]:
        """Returns worker -> what was wrong with its numbers since the last call."""
        if self._vector_env is None:
            return {}
        faults: dict[int, list[str]] = {}
        for index, fault in enumerate(self._vector_env.get_attr("fault")):
            if fault is not None:
                text = f"sub-environment {index}: {fault}"
                faults.setdefault(self.worker(index), []).append(text)
        self._set_all(fault=None)
        return {worker: "; ".join(texts) for worker, texts in faults.items()}
