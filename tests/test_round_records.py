"""Who is dropped from a round, and why."""

from __future__ import annotations

import pytest

from rllib_weighted.round_records import worker_records
from rllib_weighted.sampling.collect import Rollouts
from rllib_weighted.workers import WorkerLayout


def test_the_log_says_what_became_of_an_env_runner(caplog: pytest.LogCaptureFixture) -> None:
    layout = WorkerLayout(3, 2, "env")
    rollouts = Rollouts(absent={2: "env runner 2 is lost"})
    records = worker_records(rollouts, None, layout=layout, round=7, root_seed=1)
    assert [record.dropped for record in records] == [True] * 6
    assert "Round 7: dropped worker(s) [2, 3]: env runner 2 is lost" in caplog.text
    assert "Round 7: dropped worker(s) [0, 1, 4, 5]: it sent nothing" in caplog.text
