"""The learner group: hands whole workers to the learners, and never waits for a dead one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.annotations import override

from rllib_weighted.columns import RolloutColumns
from rllib_weighted.learning.orders import MergeReport
from rllib_weighted.learning.worker_data import (
    ColumnTrainingData,
    WorkerTrainingData,
    group_by_worker,
)

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
            kwargs: As in RLlib, and `merge`: the round's `MergeOrder`. Without it, the config's
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

    def _results(self, calls: list[ray.ObjectRef], doing: str) -> list[Any]:
        """Waits for all learners, or for the first that fails.

        RLlib waits for all of them: where one raises inside a step, the others wait for its part
        of a sum, and that for half an hour.
        """
        waiting = list(calls)
        while waiting:
            (call,), waiting = ray.wait(waiting)
            if _error_of(call) is not None:
                ended = waiting
                if waiting:
                    ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S)
                found = {calls.index(c): _error_of(c) for c in [call, *ended]}
                self._end_all()
                raise _failure({i: e for i, e in found.items() if e}, len(calls), doing)
        return list(ray.get(calls))

    def _end_all(self) -> None:
        for learner in self._workers:
            ray.kill(learner)

    @override(LearnerGroup)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the state of one learner; all have the same.

        Raises:
            LearnerFailedError: If it has died.
        """
        try:
            state: dict[str, Any] = super().get_state(*args, **kwargs)
        except RayActorError as error:
            self._end_all()
            raise _failure({0: error}, len(self), "giving its state") from error
        return state

    def actor_parameters(self) -> Any:
        """Returns the workers' own parameters, name -> [N, …]; None if they share one set."""
        if self.is_local:
            return self._learner.actor_parameters()
        return self._results([self._workers[0].actor_parameters.remote()], "giving parameters")[0]

    @property
    def num_parameters(self) -> int | None:
        """Parameters of the modules, if they are in this process."""
        if not self.is_local:
            return None
        modules = self._learner.module.values()
        return sum(p.numel() for module in modules for p in module.parameters())

    @property
    def module_spec(self) -> Any:
        """The modules that the learners were built with."""
        return self._module_spec

    def why_not_columns(self) -> str | None:
        """Returns what in the learners needs episodes; None if columns will do."""
        if self.is_local:
            reason: str | None = self._learner.why_not_columns()
            return reason
        call = self._workers[0].why_not_columns.remote()
        reason = self._results([call], "starting")[0]
        return reason

    def request_state(self) -> ray.ObjectRef:
        """Asks a remote learner for its whole state, without waiting for it."""
        reference: ray.ObjectRef = self._workers[0].get_state.remote()
        return reference

    def take_merge_report(self) -> MergeReport | None:
        """Returns what the merges of the last update did.

        It is the same on every learner, but why a worker was dropped is known where it lives.
        """
        if self.is_local:
            reports = [self._learner.take_merge_report()]
        else:
            calls = [learner.take_merge_report.remote() for learner in self._workers]
            reports = self._results(calls, "reporting")
        first: MergeReport | None = reports[0]
        if first is None:
            return None
        drops = [
            next(filter(None, told), None) for told in zip(*(r.drops for r in reports), strict=True)
        ]
        return dataclasses.replace(first, drops=drops)


def _error_of(call: ray.ObjectRef) -> Exception | None:
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
        error = error.as_instanceof_cause()
    what = "died" if dead else "raised"
    return LearnerFailedError(
        f"Learner {index + 1} of {num_learners} {what} while {doing}: {error}"
    )
