"""A remote learner that is stopped answers nothing, and nobody waits for it for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rllib_weighted import WeightedPPO
from rllib_weighted.fault_tolerance import RESCUE_DIR
from rllib_weighted.learning.learner_group import LearnerFailedError
from tests.integration.test_learner_failures import make_config

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


@pytest.fixture
def algorithm() -> Iterator[WeightedPPO]:
    """Has done a round, with three seconds for whatever its two learners are asked."""
    built = make_config().fault_tolerance(learner_timeout_s=3).build_algo()
    built.config.freeze()
    built.train()
    yield built
    built.stop()


def stop_learner(algorithm: WeightedPPO, index: int) -> None:
    pids = [r.get() for r in algorithm.learner_group.foreach_learner(lambda _: os.getpid())]
    os.kill(pids[index], signal.SIGSTOP)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_round_ends_and_says_which_setting_allows_more(
    algorithm: WeightedPPO, victim: int
) -> None:
    stop_learner(algorithm, victim)
    started = time.monotonic()
    with pytest.raises(
        LearnerFailedError, match=r"within `learner_timeout_s`=3 s[\s\S]*after round [01] is saved"
    ):
        algorithm.train()
    assert time.monotonic() - started < 40
    assert (Path(algorithm.logdir) / RESCUE_DIR / "rescue.json").exists()


def test_a_checkpoint_is_not_waited_for(algorithm: WeightedPPO, tmp_path: Path) -> None:
    stop_learner(algorithm, 0)
    with pytest.raises(LearnerFailedError, match="not done with giving its state within"):
        algorithm.save_to_path(str(tmp_path))
