"""What is saved when a learner dies: the state after the last whole round.

A dead learner takes optimizer state along, and the others have begun a round that cannot be
finished. So the state before each round is kept outside of the learners (in Ray's object store),
and written as a checkpoint when the round fails. Tune does not know of that checkpoint: a trial
that it starts again finds it in its own folder.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from pyarrow import fs
from ray.air.constants import TRAINING_ITERATION
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP

from rllib_weighted.learning.learner_group import LearnerFailedError

logger = logging.getLogger(__name__)

RESCUE_DIR = "rescue"
"""Name of the folder, inside a trial's folder, that holds the rescued checkpoint."""


class Rescue:
    """Keeps the state before each round of an algorithm whose learners are other processes.

    Args:
        algorithm: The algorithm.
        filesystem: Where its trial's folder lies.
        folder: The trial's folder there.
    """

    def __init__(self, algorithm: Any, filesystem: fs.FileSystem, folder: str) -> None:
        self._algorithm = algorithm
        self._filesystem = filesystem
        self._path = f"{folder.rstrip('/')}/{RESCUE_DIR}"
        self._kept: list[tuple[dict[str, Any], ray.ObjectRef]] = []
        self._restored_round: int | None = None

    def keep(self) -> None:
        """Keeps the state as it is now; the learner's part is fetched while the round samples."""
        if self._algorithm.learner_group.is_local:
            return
        state = self._algorithm.get_state(not_components=COMPONENT_LEARNER_GROUP)
        # The one before it stays: a learner that is dead already gives nothing any more.
        self._kept = [*self._kept[-1:], (state, self._algorithm.learner_group.request_state())]

    def save(self, error: LearnerFailedError) -> LearnerFailedError:
        """Writes the newest state that was kept; returns the error with where it lies."""
        iteration = self._algorithm.training_iteration
        for age, (state, reference) in enumerate(reversed(self._kept)):
            try:
                learner_state = ray.get(reference)
            except ray.exceptions.RayError:
                continue
            self._write({**state, TRAINING_ITERATION: iteration - age}, learner_state)
            return LearnerFailedError(
                f"{error}\nThe state after round {self._algorithm.rounds_done} is saved in "
                f"{self._path}. Restore it, or run the trial again (Tune does by itself with "
                "FailureConfig(max_failures=1), `rllib train` with --resume): it goes on there."
            )
        return LearnerFailedError(
            f"{error}\nThere is no state of it to save: go on from the last checkpoint."
        )

    def _write(self, state: dict[str, Any], learner_state: dict[str, Any]) -> None:
        """Puts a learner of this process in the place of the dead ones, and saves it."""
        algorithm = self._algorithm
        failed = algorithm.learner_group
        config = algorithm.config.copy(copy_frozen=False)
        config.learners(num_learners=0, num_gpus_per_learner=0)  # Here, there may be no GPU.
        algorithm.learner_group = config.build_learner_group(rl_module_spec=failed.module_spec)
        algorithm.learner_group.set_state({COMPONENT_LEARNER: learner_state})
        failed.shutdown()
        algorithm.set_state(state)
        self.forget()
        algorithm.save_to_path(self._path, filesystem=self._filesystem)

    def restore(self) -> bool:
        """Goes on from a rescued checkpoint, if the trial's folder holds one."""
        info = self._filesystem.get_file_info(self._path)
        if info.type != fs.FileType.Directory:
            return False
        self._algorithm.restore_from_path(self._path, filesystem=self._filesystem)
        self._restored_round = self._algorithm.rounds_done
        logger.info("Going on after round %d, rescued from a failure.", self._restored_round)
        return True

    def restore_if_newer(self) -> None:
        """Goes on from the rescued checkpoint if the one just restored is older."""
        if self._restored_round is not None and self._restored_round > self._algorithm.rounds_done:
            self.restore()

    def forget(self) -> None:
        """Removes the rescued checkpoint: there is a newer one."""
        self._restored_round = None
        if self._filesystem.get_file_info(self._path).type == fs.FileType.Directory:
            self._filesystem.delete_dir(self._path)
