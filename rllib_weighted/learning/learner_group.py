"""The learner group: hands whole workers to the learners."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.annotations import override

from rllib_weighted.learning.orders import MergeReport
from rllib_weighted.learning.worker_data import WorkerTrainingData, group_by_worker


class WeightedLearnerGroup(LearnerGroup):
    """RLlib's learner group, with training data grouped by worker."""

    @override(LearnerGroup)
    def update(self, *, episodes: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Updates from episodes that carry their worker; see `LearnerGroup.update`.

        Args:
            episodes: Episodes of all workers, in any order.
            kwargs: As in RLlib, and `merge`: the round's `MergeOrder`. Without it, the config's
                strategy is used with the returns that these episodes show.

        Raises:
            ValueError: If an episode's worker is unknown, or the episodes hold no step.
        """
        if episodes is None:
            results: list[dict[str, Any]] = super().update(**kwargs)
            return results
        workers = group_by_worker(episodes, num_workers=self.config.worker_layout.num_workers)
        if not workers:
            raise ValueError(
                f"An update needs one environment step or more, found {len(episodes)} episodes "
                "without any: sample before you update."
            )
        data = WorkerTrainingData.from_workers(workers)
        results = super().update(training_data=data, **kwargs)
        return results

    def take_merge_report(self) -> MergeReport | None:
        """Returns what the merges of the last update did (the same on every learner)."""
        reports = self.foreach_learner(lambda learner: learner.take_merge_report())
        report: MergeReport | None = next(iter(reports)).get()
        return report
