"""What is saved when a learner dies: whole or not at all, and until Tune knows of a newer one."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pyarrow.fs import LocalFileSystem

from rllib_weighted import fault_tolerance
from rllib_weighted.fault_tolerance import (
    RESCUE_DIR,
    Rescue,
    discard_rescue,
    rescued_iteration,
)
from rllib_weighted.learning.learner_group import LearnerFailedError

pytestmark = pytest.mark.usefixtures("ray_session")

DEATH = LearnerFailedError("Learner 1 of 2 died")


class FakeAlgorithm(SimpleNamespace):
    """What a rescue uses of an algorithm; `problem` is raised half way through a checkpoint."""

    problem: Exception | None = None

    def save_to_path(self, path: str, filesystem: Any) -> None:
        Path(path).mkdir()
        Path(path, "state.pkl").write_bytes(b"half")
        if self.problem is not None:
            raise self.problem
        Path(path, "rest.pkl").write_bytes(b"whole")

    def restore_from_path(self, path: str, filesystem: Any) -> None:
        assert Path(path, "rest.pkl").exists()
        self.rounds_done = 7


def algorithm() -> FakeAlgorithm:
    config = SimpleNamespace(learners=lambda **_: None)
    config.copy = lambda copy_frozen: config
    group = SimpleNamespace(
        is_local=False, request_state=lambda: ray.put({"w": 1}), set_state=lambda state: None
    )
    return FakeAlgorithm(
        config=config,
        learner_group=group,
        training_iteration=7,
        rounds_done=7,
        get_state=lambda not_components: {"progress": 7},
        set_state=lambda state: None,
        replace_learners=lambda config: None,
    )


def rescue_of(one: FakeAlgorithm, folder: Path) -> Rescue:
    rescue = Rescue(one, LocalFileSystem(), str(folder))
    rescue.keep()
    return rescue


def test_it_says_after_which_iteration_it_was(tmp_path: Path) -> None:
    error = rescue_of(algorithm(), tmp_path).save(DEATH)
    assert f"after round 7 is saved in {tmp_path}/{RESCUE_DIR}" in str(error)
    assert rescued_iteration(LocalFileSystem(), str(tmp_path)) == 7
    discard_rescue(LocalFileSystem(), str(tmp_path))
    assert rescued_iteration(LocalFileSystem(), str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    discard_rescue(LocalFileSystem(), str(tmp_path))  # Nothing to remove.


def test_without_room_it_names_the_cause_beside_the_death_and_leaves_no_half(
    tmp_path: Path,
) -> None:
    one = algorithm()
    one.problem = OSError(errno.ENOSPC, "No space left on device", "/full")
    error = rescue_of(one, tmp_path).save(DEATH)
    assert str(error).startswith("Learner 1 of 2 died")
    assert "No space left on device: '/full'): go on from the last checkpoint" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_half_a_rescue_is_not_restored(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    one = algorithm()
    one.problem = Killed()  # type: ignore[assignment]
    with pytest.raises(Killed):
        rescue_of(one, tmp_path).save(DEATH)
    assert (tmp_path / RESCUE_DIR / "state.pkl").exists()
    one.rounds_done = 0
    Rescue(one, LocalFileSystem(), str(tmp_path)).restore()
    assert one.rounds_done == 0
    one.problem = None
    rescue_of(one, tmp_path).save(DEATH)  # It takes the place of the half.
    Rescue(one, LocalFileSystem(), str(tmp_path)).restore()
    assert one.rounds_done == 7


def test_it_stays_until_tune_surely_knows_of_a_newer_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(fault_tolerance.time, "monotonic", lambda: now[0])
    one = algorithm()
    rescue = rescue_of(one, tmp_path)
    rescue.save(DEATH)
    rescue.restore()
    there = []
    for seconds in (0, 5, 50, 61):
        now[0] = 100.0 + seconds
        rescue.supersede()
        there.append((tmp_path / RESCUE_DIR).exists())
    assert there == [True, True, True, False]


def test_after_a_newer_checkpoint_it_is_not_gone_back_to(tmp_path: Path) -> None:
    one = algorithm()
    rescue = rescue_of(one, tmp_path)
    rescue.save(DEATH)
    rescue.restore()
    one.rounds_done = 5
    rescue.restore_if_newer()
    assert one.rounds_done == 7
    rescue.supersede()
    one.rounds_done = 5  # Of another trial's checkpoint, say.
    rescue.restore_if_newer()
    assert one.rounds_done == 5
