"""Env runners that were lost with their node or process: taking them back, or waiting for one."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger(__name__)

_TAG = "take back"
_PAUSE_S = 0.5  # Between two looks, where there is nothing to do but wait.


def take_back(env_runner_group: Any, config: Any) -> list[int]:
    """Takes back the env runners that Ray has restarted since they were lost.

    It does not wait for those that are still away, however long their node is: the question to
    each stays open, and is looked at again in the next round. (RLlib's own
    `probe_unhealthy_env_runners` asks anew and waits, in every round.) Only if no env runner is
    left, it waits for one.

    `_worker_manager` is private to RLlib's group (tested with Ray 2.60); the manager is not.

    Args:
        env_runner_group: RLlib's group.
        config: The algorithm's config.

    Returns:
        The indices of those that are back.

    Raises:
        RuntimeError: No env runner is left, and none may be restarted or has come back within
            `env_runner_restore_timeout_s`.
    """
    manager = env_runner_group._worker_manager
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


def _take_ready(manager: Any) -> list[int]:
    lost = sorted(set(manager.actor_ids()) - set(manager.healthy_actor_ids()))
    if not lost:
        return []
    # The manager bounds the open questions to each; one that fails is asked again in the next call.
    manager.foreach_actor_async(
        lambda env_runner: env_runner.ping(), tag=_TAG, healthy_only=False, remote_actor_ids=lost
    )
    answers = manager.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=0.0, mark_healthy=True)
    taken = sorted({answer.actor_id for answer in answers if answer.ok})
    if taken:
        logger.warning("Env runner(s) %s are back.", taken)
    return taken
