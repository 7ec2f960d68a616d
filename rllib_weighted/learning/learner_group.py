"""The learner group: hands whole workers to the learners, and never waits for a dead one.

Nor for one that hangs: what is asked of remote learners has `learner_timeout_s` to be done in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_weighted._private import keep_in_service
from rllib_weighted.core.messages import UpdateResult
from rllib_weighted.core.rollouts import RolloutColumns, concatenated
from rllib_weighted.core.workers import WORKER_KEY


@dataclass
class WorkerTrainingData(TrainingData):
    """Episodes grouped by worker.

    RLlib's own sharding sorts episodes by length and cuts them where a shard is full, which also
    loses their `custom_data`. Here a learner gets whole workers.

    Args:
        workers: Worker -> its episodes; `episodes` holds the same, worker after worker.
    """

    workers: dict[int, list[SingleAgentEpisode]] = field(default_factory=dict)

    @classmethod
    def from_workers(cls, workers: dict[int, list[SingleAgentEpisode]]) -> WorkerTrainingData:
        """Builds the training data of some workers, in the order of their indices."""
        ordered = {worker: workers[worker] for worker in sorted(workers)}
        return cls(episodes=[e for group in ordered.values() for e in group], workers=ordered)

    @property
    def is_empty(self) -> bool:
        """Whether there is no step."""
        return not self.episodes

    def finished_returns(self) -> dict[int, list[float]]:
        """Returns worker -> what the data show of the returns of its episodes that ended."""
        return {
            worker: [e.get_return() for e in episodes if e.is_done]
            for worker, episodes in self.workers.items()
        }

    def episode_ids(self) -> list[str]:
        """Returns the id of each episode, or piece of one, worker after worker."""
        return [episode.id_ for episode in self.episodes]

    def reward_sums(self) -> dict[int, tuple[int, float]]:
        """Returns worker -> its steps and the sum of their rewards."""
        return {
            worker: (sum(map(len, episodes)), float(sum(e.get_return() for e in episodes)))
            for worker, episodes in self.workers.items()
        }

    def shard(
        self, num_shards: int, len_lookback_buffer: int | None = None, **kwargs: Any
    ) -> list[tuple[TrainingData, dict[str, Any]]]:
        """Gives worker i to learner i modulo `num_shards`, whoever else has sent something.

        Counts differ by one at most; by more where workers have sent nothing. A worker's own
        parameters (actor strategies) so stay where they are for the whole run.
        """
        return [
            (self.from_workers({w: e for w, e in self.workers.items() if w % num_shards == i}), {})
            for i in range(num_shards)
        ]


@dataclass
class ColumnTrainingData(TrainingData):
    """The same as columns.

    Args:
        columns: The workers' steps, worker after worker.
    """

    columns: Any = None

    @classmethod
    def from_rollouts(
        cls, rollouts: Sequence[RolloutColumns], *, num_workers: int
    ) -> ColumnTrainingData:
        """Builds the training data of what some env runners sampled; there should be one or more.

        Raises:
            ValueError: If a chunk is of a worker that there is not.
        """
        columns = concatenated(rollouts).by_worker()
        if strangers := sorted(columns.workers - set(range(num_workers))):
            raise ValueError(
                f"Columns should be of the workers 0 … {num_workers - 1}, found {strangers}: "
                "sample with env runners of the same config."
            )
        return cls(columns=columns)

    @property
    def is_empty(self) -> bool:
        """Whether there is no step."""
        return self.columns is None or not len(self.columns.chunks)

    def finished_returns(self) -> dict[int, list[float]]:
        """See `WorkerTrainingData.finished_returns`."""
        found: dict[int, list[float]] = {}
        if self.columns is not None:
            is_done = self.columns.is_done
            workers, returns = self.columns.chunks["worker"][is_done], self.columns.returns()
            for worker, value in zip(workers.tolist(), returns[is_done].tolist(), strict=True):
                found.setdefault(worker, []).append(value)
        return found

    def episode_ids(self) -> list[str]:
        """See `WorkerTrainingData.episode_ids`."""
        return [] if self.columns is None else self.columns.ids

    def reward_sums(self) -> dict[int, tuple[int, float]]:
        """See `WorkerTrainingData.reward_sums`."""
        found: dict[int, tuple[int, float]] = {}
        if self.columns is not None:
            named = (self.columns.chunks[name].tolist() for name in ("worker", "length"))
            for worker, steps, value in zip(*named, self.columns.returns().tolist(), strict=True):
                before = found.get(worker, (0, 0.0))
                found[worker] = (before[0] + steps, before[1] + value)
        return found

    def validate(self) -> None:
        """Nothing to check: there is one kind of data."""

    def solve_refs(self) -> None:
        """There are no references."""

    def shard(
        self, num_shards: int, len_lookback_buffer: int | None = None, **kwargs: Any
    ) -> list[tuple[TrainingData, dict[str, Any]]]:
        """Gives worker i to learner i modulo `num_shards`; see `WorkerTrainingData.shard`."""
        return [
            (ColumnTrainingData(columns=self.columns.of_workers(num_shards, i)), {})
            for i in range(num_shards)
        ]


Data = WorkerTrainingData | ColumnTrainingData


def group_by_worker(
    episodes: Sequence[SingleAgentEpisode], *, num_workers: int
) -> dict[int, list[SingleAgentEpisode]]:
    """Groups episodes by the worker that they carry in `custom_data`.

    Args:
        episodes: Episodes and chunks of episodes.
        num_workers: N. With a single worker, episodes without identity are its own.

    Raises:
        ValueError: If an episode says of no worker, or of one that there is not.
    """
    workers: dict[int, list[SingleAgentEpisode]] = {}
    for episode in episodes:
        worker = episode.custom_data.get(WORKER_KEY, 0 if num_workers == 1 else None)
        is_index = isinstance(worker, Integral) and not isinstance(worker, bool)
        if not is_index or not 0 <= worker < num_workers:
            raise ValueError(
                f"Episode {episode.id_} should carry one of the workers 0 … {num_workers - 1} in "
                f'`custom_data["{WORKER_KEY}"]`, found {worker!r}. Sample with '
                "rllib_weighted's `WeightedEnvRunner` (the default `env_runner_cls`), or set it."
            )
        if len(episode):
            workers.setdefault(int(worker), []).append(episode)
    return workers


GRACE_S = 10.0  # How long the others may take to notice that one of them has failed.


class LearnerFailedError(RuntimeError):
    """A learner raised or died; the group cannot go on."""


class WeightedLearnerGroup(LearnerGroup):
    """RLlib's learner group, with training data grouped by worker."""

    @override(LearnerGroup)
    def update(
        self,
        *,
        episodes: Any = None,
        columns: Sequence[RolloutColumns] = (),
        training_data: Any = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Updates from episodes that carry their worker; see `LearnerGroup.update`.

        Args:
            episodes: Episodes of all workers, in any order.
            columns: The same as columns, one or more, instead of them; see `why_not_columns`.
            training_data: The same as `WorkerTrainingData` or `ColumnTrainingData`.
            kwargs: As in RLlib, and `merge`: the round's `UpdateRequest`. Without it, the config's
                strategy is used with the returns that these episodes show.

        Returns:
            The metrics of every learner.

        Raises:
            ValueError: If an episode's worker is unknown, or the episodes hold no step.
            LearnerFailedError: If a remote learner raised or died. The others have been ended.
        """
        if episodes is not None:
            workers = group_by_worker(episodes, num_workers=self.config.worker_layout.num_workers)
            if not workers:
                raise ValueError(
                    f"An update needs one environment step or more, found {len(episodes)} episodes "
                    "without any: sample before you update."
                )
            training_data = WorkerTrainingData.from_workers(workers)
        elif columns:
            num_workers = self.config.worker_layout.num_workers
            training_data = ColumnTrainingData.from_rollouts(columns, num_workers=num_workers)
        grouped = isinstance(training_data, (WorkerTrainingData, ColumnTrainingData))
        if self.is_local or not grouped:
            results: list[dict[str, Any]] = super().update(training_data=training_data, **kwargs)
            return results
        shards = training_data.shard(num_shards=len(self))
        calls = [
            learner.update.remote(training_data=shard, **extra, **kwargs)
            for learner, (shard, extra) in zip(self._workers, shards, strict=True)
        ]
        return self._results(calls, "updating")

    @contextlib.contextmanager
    def _in_time(self, doing: str) -> Iterator[None]:
        """Ends the remote learners if the block takes longer than `learner_timeout_s`.

        RLlib's waits for an actor have no end, and a learner that is stopped, or whose machine is,
        never answers. Killing it ends every wait for it, as its death would.

        Raises:
            LearnerFailedError: The block has failed, and took too long.
        """
        timeout_s = self.config.learner_timeout_s
        if self.is_local or timeout_s is None:
            yield
            return
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.end_all()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            if not late.is_set():
                raise
            raise LearnerFailedError(
                f"The {len(self)} learners were not done with {doing} within "
                f"`learner_timeout_s`={timeout_s:g} s, and were ended: one hangs, or its machine "
                "does. If they only need longer, allow it with `.fault_tolerance("
                "learner_timeout_s=…)` (None: any time)"
            ) from error
        finally:
            timer.cancel()

    def _results(self, calls: list[ray.ObjectRef[Any]], doing: str) -> list[Any]:
        """Waits for all learners, or for the first that fails, or that is not done in time.

        RLlib waits for all of them: where one raises inside a step, the others wait for its part
        of a sum, and that for half an hour.
        """
        with self._in_time(doing):
            return self._first_failure_or_all(calls, doing)

    def _first_failure_or_all(self, calls: list[ray.ObjectRef[Any]], doing: str) -> list[Any]:
        waiting = list(calls)
        while waiting:
            (call,), waiting = ray.wait(waiting)
            if _error_of(call) is not None:
                ended = waiting
                if waiting:
                    ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S)
                found = {calls.index(c): _error_of(c) for c in [call, *ended]}
                self.end_all()
                raise _failure({i: e for i, e in found.items() if e}, len(calls), doing)
        return list(ray.get(calls))

    def end_all(self) -> None:
        """Kills the remote learners."""
        for learner in self._workers:
            ray.kill(learner)

    @override(LearnerGroup)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the state of one learner; all have the same.

        Raises:
            LearnerFailedError: If it has died.
        """
        doing = "giving its state"
        with self._in_time(doing):
            try:
                state: dict[str, Any] = super().get_state(*args, **kwargs)
            except RayActorError as error:
                self.end_all()
                raise _failure({0: error}, len(self), doing) from error
        return state

    @override(LearnerGroup)
    def save_to_path(self, *args: Any, **kwargs: Any) -> Any:
        """Writes a checkpoint; see `Checkpointable.save_to_path`.

        Raises:
            LearnerFailedError: The learner that was to write has died, or hangs. RLlib (2.60)
                leaves its part out, and says nothing.
            OSError: It could not write; likewise.
        """
        doing = "writing a checkpoint"
        with self._in_time(doing):
            path = super().save_to_path(*args, **kwargs)
            problem = self._ask_first("save_problem", doing)
        if problem is not None:
            keep_in_service(self)
            raise problem
        return path

    @override(LearnerGroup)
    def restore_from_path(self, *args: Any, **kwargs: Any) -> None:
        """Reads a checkpoint, within `learner_timeout_s`; see `Checkpointable`."""
        with self._in_time("reading a checkpoint"):
            super().restore_from_path(*args, **kwargs)

    @override(LearnerGroup)
    def set_state(self, state: dict[str, Any]) -> None:
        """Takes a state, within `learner_timeout_s`; see `LearnerGroup.set_state`."""
        with self._in_time("taking a state"):
            super().set_state(state)

    def per_worker_parameters(self) -> Any:
        """Returns the workers' own parameters, name -> [N, …]; None if they share one set."""
        return self._ask_first("per_worker_parameters", "giving parameters")

    def _ask_first(self, method: str, doing: str) -> Any:
        """Returns what a method of one learner returns, where it is the same on all."""
        if self.is_local:
            return getattr(self._learner, method)()
        return self._results([getattr(self._workers[0], method).remote()], doing)[0]

    @property
    def num_parameters(self) -> int | None:
        """Parameters of the modules, if they are in this process."""
        if not self.is_local:
            return None
        modules = self._learner.module.values()
        return sum(int(p.numel()) for module in modules for p in module.parameters())

    @property
    def module_spec(self) -> Any:
        """The modules that the learners were built with."""
        return self._module_spec

    def why_not_columns(self) -> str | None:
        """Returns what in the learners needs episodes; None if columns are enough."""
        reason: str | None = self._ask_first("why_not_columns", "starting")
        return reason

    def request_state(self) -> ray.ObjectRef[Any]:
        """Asks a remote learner for its whole state, without waiting for it."""
        reference: ray.ObjectRef[Any] = self._workers[0].get_state.remote()
        return reference

    def take_update_result(self) -> UpdateResult | None:
        """Returns what the merges of the last update did.

        It is the same on every learner, but why a worker was dropped, and how well its episodes'
        values were predicted, is known where it lives.
        """
        if self.is_local:
            result: UpdateResult | None = self._learner.take_update_result()
            return result
        calls = [learner.take_update_result.remote() for learner in self._workers]
        results = self._results(calls, "reporting")
        first: UpdateResult | None = results[0]
        if first is None:
            return None
        told = zip(*(result.drops for result in results), strict=True)
        drops = [next(filter(None, reasons), None) for reasons in told]
        errors = {id_: e for result in results for id_, e in result.value_errors.items()}
        return dataclasses.replace(first, drops=drops, value_errors=errors)


def _error_of(call: ray.ObjectRef[Any]) -> Exception | None:
    try:
        ray.get(call)
    except RayError as error:
        return error
    return None


def _failure(errors: dict[int, Exception], num_learners: int, doing: str) -> LearnerFailedError:
    """Returns what to say: a death explains all other errors, else the first error does."""
    dead = [index for index, error in errors.items() if isinstance(error, RayActorError)]
    index = next(iter([*dead, *errors]))
    error = errors[index]
    if isinstance(error, RayTaskError):
        error = error.as_instanceof_cause()  # type: ignore[no-untyped-call]
    what = "died" if dead else "raised"
    return LearnerFailedError(
        f"Learner {index + 1} of {num_learners} {what} while {doing}: {error}"
    )
