"""What is quoted of the errors of others."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from rich.console import Console

from rllib_weighted.cli import TrainingError
from rllib_weighted.cli.display import Display
from rllib_weighted.cli.failures import no_space, root_cause
from rllib_weighted.cli.inputs import TrainFile, TrainOptions
from rllib_weighted.cli.session import TrainSession
from rllib_weighted.cli.train import _Run


def test_root_cause_is_the_first_of_a_chain() -> None:
    chain = (
        "Traceback (most recent call last):\n  \x1b[36mFile\x1b[39m 'a'\nValueError: the cause\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "RuntimeError\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "AttributeError: a consequence\n"
    )
    assert root_cause(chain, 2) == "  File 'a'\nValueError: the cause"


def test_of_a_full_disk_its_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cause = "Traceback …\nOSError: [Errno 28] No space left on device"
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        (line,) = no_space(cause, [str(tmp_path), "/elsewhere"])
        assert f"no space    {tmp_path}, /elsewhere: make room" in line
    assert "the disk of a path above" in no_space(cause, [str(tmp_path), "bucket/on/s3"])[0]
    assert no_space("OSError: [Errno 5] Input/output error", [str(tmp_path)]) == []


@pytest.mark.parametrize("rescued", [True, False])
def test_a_failure_says_where_the_state_lies_that_was_rescued(
    tmp_path: Path, rescued: bool
) -> None:
    (tmp_path / "run" / "trial" / ("rescue" if rescued else "other")).mkdir(parents=True)
    trial = SimpleNamespace(error="a learner died", path=str(tmp_path / "run" / "trial"))
    display = Display(Console(file=io.StringIO()), title="PPO", live=False)
    run = _Run(TrainFile(PPOConfig()), TrainOptions(), display, str(tmp_path), "run")
    with pytest.raises(TrainingError) as caught:
        run._raise_failures([trial], TrainSession(display, None), 0)  # type: ignore[list-item]
    message = str(caught.value)
    line = f"  rescued     {tmp_path}/run/trial/rescue: it goes on there"
    assert (line in message.splitlines()) is rescued
    assert "try again   rllib train --resume --name run" in message
