"""What is quoted of the errors of others."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from rich.console import Console

from rllib_weighted.cli.inputs import TrainFile, TrainOptions
from rllib_weighted.cli.progress import Display
from rllib_weighted.cli.session import TrainSession
from rllib_weighted.cli.train import _Run, root_cause


def test_root_cause_is_the_first_of_a_chain() -> None:
    chain = (
        "Traceback (most recent call last):\n  \x1b[36mFile\x1b[39m 'a'\nValueError: the cause\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "RuntimeError\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "AttributeError: a consequence\n"
    )
    assert root_cause(chain, 2) == "  File 'a'\nValueError: the cause"


@pytest.mark.parametrize("rescued", [True, False])
def test_a_failure_says_where_the_state_lies_that_was_rescued(
    tmp_path: Path, rescued: bool
) -> None:
    (tmp_path / "run" / "trial" / ("rescue" if rescued else "other")).mkdir(parents=True)
    trial = SimpleNamespace(error="a learner died", path=str(tmp_path / "run" / "trial"))
    display = Display(Console(file=io.StringIO()), title="PPO", live=False)
    run = _Run(TrainFile(PPOConfig()), TrainOptions(), display, str(tmp_path), "run")
    message = run._failure([trial], TrainSession(display, None))  # type: ignore[list-item]
    line = f"  rescued     {tmp_path}/run/trial/rescue: it goes on there"
    assert (line in message.splitlines()) is rescued
    assert "try again   rllib train --resume --name run" in message
