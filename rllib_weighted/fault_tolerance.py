"""What happens when a learner, an env runner or a node dies.

- A *learner* takes optimizer state along, and the others have begun a round that cannot be
  finished. `Rescue` keeps the state before each round outside of the learners (in Ray's object
  store) and writes it as a checkpoint when the round fails. Tune does not know of that checkpoint:
  a trial that it starts again finds it in its own folder.
- An *env runner* that raises, hangs or is lost is left out of the round by
  `sampling.collect.collect_rollouts`. Ray restarts a lost one, on another node if its own is gone;
  `take_back` lets it sample again. `replace_overdue` has one restarted that hangs for several
  rounds, and `kill_unresponsive` ends those that hang when a run stops.
- A run whose *workers* are all dropped, round after round, learns nothing: `Idleness` ends it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import ray
from pyarrow import fs
from ray.air.constants import TRAINING_ITERATION
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP

from rllib_weighted import _private
from rllib_weighted.learning.learner_group import LearnerFailedError, WeightedLearnerGroup

if TYPE_CHECKING:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    from rllib_weighted.config import WeightedPPOConfig
    from rllib_weighted.sampling.collect import OpenCalls

logger = logging.getLogger(__name__)

RESCUE_DIR = "rescue"
"""Name of the folder, inside a trial's folder, that holds the rescued checkpoint."""

_WHOLE = "rescue.json"  # Written into it last: without it, the folder may hold half of one.
_RECORDED_S = 60.0  # After that, Tune surely knows of a checkpoint, also after a kill.


def rescued_iteration(filesystem: fs.FileSystem, folder: str) -> int | None:
    """Returns after which training iteration a trial has a rescued checkpoint; None without one.

    Args:
        filesystem: Where the trial's folder lies.
        folder: The trial's folder there.
    """
    try:
        with filesystem.open_input_stream(f"{folder}/{RESCUE_DIR}/{_WHOLE}") as stream:
            return int(json.loads(stream.read())[TRAINING_ITERATION])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def discard_rescue(filesystem: fs.FileSystem, folder: str) -> None:
    """Removes a trial's rescued checkpoint, whole or not, if it has one."""
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(f"{folder}/{RESCUE_DIR}/{_WHOLE}")
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(f"{folder}/{RESCUE_DIR}")


class Rescuable(Protocol):
    """What a rescue uses of an algorithm: RLlib's own, but for the last two.

    Attributes:
        config: The algorithm's config.
        learner_group: Its learners.
        training_iteration: RLlib's count of rounds.
        get_state: Method of `Checkpointable`, as the next three.
        set_state: Restores what `get_state` returned.
        save_to_path: Writes a checkpoint.
        restore_from_path: Restores it.
    """

    config: WeightedPPOConfig
    learner_group: WeightedLearnerGroup
    training_iteration: int
    get_state: Callable[..., dict[str, Any]]
    set_state: Callable[[dict[str, Any]], None]
    save_to_path: Callable[..., Any]
    restore_from_path: Callable[..., None]

    @property
    def rounds_done(self) -> int:
        """Rounds that are done; in `training_step`, with the one that is going on."""

    def replace_learners(self, config: WeightedPPOConfig) -> None:
        """Puts new learners, as `config` describes them, in the place of those there are."""


class Rescue:
    """Keeps the state before each round of an algorithm whose learners are other processes.

    Args:
        algorithm: The algorithm.
        filesystem: Where its trial's folder lies.
        folder: The trial's folder there.

    Attributes:
        restored_round: After which round the rescued checkpoint is that this goes on from, until
            there is a newer one; else 0.
    """

    def __init__(self, algorithm: Rescuable, filesystem: fs.FileSystem, folder: str) -> None:
        self._algorithm = algorithm
        self._filesystem = filesystem
        self._folder = folder.rstrip("/")
        self._path = f"{self._folder}/{RESCUE_DIR}"
        self._kept: list[tuple[dict[str, Any], ray.ObjectRef[Any]]] = []
        self.restored_round = 0
        self._superseded_at: float | None = None

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
            try:
                self._write({**state, TRAINING_ITERATION: iteration - age}, learner_state)
            except OSError as problem:
                with contextlib.suppress(OSError):
                    self.forget()  # Half of it.
                return LearnerFailedError(
                    f"{error}\nThe state after round {self._algorithm.rounds_done} could not be "
                    f"saved in {self._path} ({problem}): go on from the last checkpoint."
                )
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
        config = algorithm.config.copy(copy_frozen=False)
        config.learners(num_learners=0, num_gpus_per_learner=0)  # Here, there may be no GPU.
        algorithm.replace_learners(config)
        algorithm.learner_group.set_state({COMPONENT_LEARNER: learner_state})
        algorithm.set_state(state)
        self.forget()
        algorithm.save_to_path(self._path, filesystem=self._filesystem)
        with self._filesystem.open_output_stream(f"{self._path}/{_WHOLE}") as stream:
            stream.write(json.dumps({TRAINING_ITERATION: state[TRAINING_ITERATION]}).encode())

    def restore(self) -> None:
        """Goes on from a rescued checkpoint, if the trial's folder holds one."""
        if self._is_there():
            self._algorithm.restore_from_path(self._path, filesystem=self._filesystem)
            self.restored_round = self._algorithm.rounds_done
            logger.info("Going on after round %d, rescued from a failure.", self.restored_round)

    def restore_if_newer(self) -> None:
        """Goes on from the rescued checkpoint if the one just restored is older."""
        if self.restored_round > self._algorithm.rounds_done:
            self.restore()

    def supersede(self) -> None:
        """Notes that there is a newer checkpoint; removes the rescued one later.

        Tune saves seconds later that it knows of the newer one. If it is killed in between, the
        trial goes on from the rescued one.
        """
        self.restored_round = 0
        now = time.monotonic()
        if self._superseded_at is None:
            self._superseded_at = now
        elif now - self._superseded_at > _RECORDED_S:
            self.forget()

    def forget(self) -> None:
        """Removes the rescued checkpoint."""
        self.restored_round, self._superseded_at = 0, None
        if self._filesystem.get_file_info(self._path).type == fs.FileType.Directory:
            discard_rescue(self._filesystem, self._folder)

    def _is_there(self) -> bool:
        return rescued_iteration(self._filesystem, self._folder) is not None


_TAG = "take back"
_PAUSE_S = 0.5  # Between two checks, where there is nothing to do but wait.


def take_back(env_runner_group: EnvRunnerGroup, config: WeightedPPOConfig) -> list[int]:
    """Takes back the env runners that Ray has restarted since they were lost.

    Does not wait for those that are still away: the ping to each stays open, and the next round
    checks for its answer. (RLlib's own `probe_unhealthy_env_runners` sends a new one and waits, in
    every round.) Waits for one env runner only if none is left.

    Args:
        env_runner_group: RLlib's group.
        config: The algorithm's config.

    Returns:
        The indices of those that are back.

    Raises:
        RuntimeError: No env runner is left, and none may be restarted or has come back within
            `env_runner_restore_timeout_s`.
    """
    manager = _private.actor_manager(env_runner_group)
    taken = _take_ready(manager)
    if manager.num_actors() == 0 or manager.num_healthy_actors() > 0:
        return taken
    num_lost = manager.num_actors()
    if not config.restart_failed_env_runners:
        raise RuntimeError(
            f"all {num_lost} env runners are lost, and `restart_failed_env_runners`=False: restore "
            "the last checkpoint, or let env runners be restarted"
        )
    timeout = config.env_runner_restore_timeout_s
    logger.warning("All %d env runners are lost: waiting up to %g s for one.", num_lost, timeout)
    deadline = time.monotonic() + timeout
    while not taken:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"all {num_lost} env runners are lost, and none has come back within "
                f"`env_runner_restore_timeout_s`={timeout:g} s: give the cluster a node with free "
                "CPUs, and restore the last checkpoint"
            )
        time.sleep(_PAUSE_S)
        taken = _take_ready(manager)
    return taken


def _take_ready(manager: FaultTolerantActorManager) -> list[int]:
    lost = sorted(set(manager.actor_ids()) - set(manager.healthy_actor_ids()))
    if not lost:
        return []
    # The manager bounds the open pings to each; one that fails is sent again in the next call.
    manager.foreach_actor_async(
        lambda env_runner: env_runner.ping(), tag=_TAG, healthy_only=False, remote_actor_ids=lost
    )
    answers = manager.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=0.0, mark_healthy=True)
    taken = sorted({answer.actor_id for answer in answers if answer.ok})
    if taken:
        logger.warning("Env runner(s) %s are back.", taken)
    return taken


def replace_overdue(
    env_runner_group: EnvRunnerGroup, calls: OpenCalls, config: WeightedPPOConfig
) -> list[int]:
    """Kills the env runners that missed `max_missed_rounds` rounds in a row, to be restarted.

    Ray starts each anew, and `take_back` lets it sample again. Where
    `restart_failed_env_runners`=False, nobody would: then they are left alone.

    Args:
        env_runner_group: RLlib's group.
        calls: The round's calls.
        config: The algorithm's config.

    Returns:
        The indices of those that were killed.
    """
    limit = config.max_missed_rounds
    if limit is None or not config.restart_failed_env_runners:
        return []
    manager = _private.actor_manager(env_runner_group)
    overdue = sorted(index for index, missed in calls.missed.items() if missed >= limit)
    for index in overdue:
        logger.warning(
            "Env runner %d has missed %d rounds in a row (`max_missed_rounds`=%d): replacing it.",
            *(index, calls.missed[index], limit),
        )
        calls.forget(index)
        ray.kill(manager.actors()[index], no_restart=False)
        manager.set_actor_state(index, healthy=False)
    return overdue


class Idleness:
    """Counts the rounds in a row in which every worker was dropped and no step was taken."""

    def __init__(self) -> None:
        self._num_rounds = 0
        self._cause = ""

    def note(
        self, round: int, drops: dict[int, str], *, is_updated: bool, limit: int | None
    ) -> None:
        """Takes note of a round.

        Args:
            round: Number of the round.
            drops: Worker -> why it was dropped.
            is_updated: Whether an optimizer step was taken.
            limit: `max_rounds_without_update`.

        Raises:
            RuntimeError: It is the `limit`-th in a row without a step.
        """
        if is_updated:
            self._num_rounds = 0
            return
        self._num_rounds += 1
        if self._num_rounds == 1:
            worker, why = next(iter(drops.items()), (None, "nothing was sampled"))
            self._cause = f"round {round}, worker {worker}: {why}"
            logger.warning(
                "Round %d: all workers were dropped, and nothing was learned. The first: %s",
                *(round, self._cause),
            )
        if limit is not None and self._num_rounds >= limit:
            raise RuntimeError(
                f"all workers were dropped in {self._num_rounds} rounds in a row, in which nothing "
                f"was learned; the first cause: {self._cause}. Mend the environment or what the "
                "cause names, or allow more such rounds with `.fault_tolerance("
                "max_rounds_without_update=…)` (None: any number)"
            )


def kill_unresponsive(env_runner_group: EnvRunnerGroup, *, timeout_s: float = 5.0) -> list[int]:
    """Kills the env runners that do not answer in time.

    RLlib waits for every env runner when it stops a group, and would wait forever for one whose
    environment hangs. Tested with Ray 2.60; can go when stopping a group has a timeout.

    Args:
        env_runner_group: RLlib's group, which is going to be stopped.
        timeout_s: How long to wait for their answers.

    Returns:
        The indices of those that were killed.
    """
    answers = env_runner_group.foreach_env_runner(
        lambda env_runner: env_runner.worker_index,
        local_env_runner=False,
        timeout_seconds=timeout_s,
    )
    actors = _private.actor_manager(env_runner_group).actors()
    silent = {index: actor for index, actor in actors.items() if index not in answers}
    for index, actor in silent.items():
        logger.warning("Env runner %d does not answer; killing it.", index)
        ray.kill(actor)
    return list(silent)


def call_all(steps: Iterable[Callable[[], Any]]) -> None:
    """Calls all functions, whatever one of them raises.

    Raises:
        Exception: The first error, once all have been called; the log has the others.
    """
    first: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            if first is not None:
                logger.exception("Something else failed, too.")
            first = first or error
    if first is not None:
        raise first
