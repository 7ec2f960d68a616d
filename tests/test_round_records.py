"""Who is dropped from a round, and why."""

from __future__ import annotations

import pytest

from rllib_weighted.core.workers import WorkerLayout
from rllib_weighted.round_records import log_drops, worker_drops, worker_records
from rllib_weighted.sampling.collect import Rollouts

LAYOUT = WorkerLayout(3, 2, "env")
LOST = "env runner 2 is lost"


def test_drops_say_what_became_of_an_env_runner() -> None:
    rollouts = Rollouts(absent={2: LOST})
    drops = worker_drops(rollouts, None, LAYOUT)
    assert drops == {w: LOST if w in (2, 3) else "it sent nothing" for w in range(6)}
    records = worker_records(rollouts, None, drops, layout=LAYOUT, root_seed=1)
    assert [record.dropped for record in records] == [True] * 6


def test_the_log_names_a_drop_once_for_as_long_as_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = [{2: LOST, 3: LOST}, {2: LOST, 3: LOST, 5: "reward nan"}, {3: "reward nan"}, {}]
    before: dict[int, str] = {}
    for round, drops in enumerate(rounds, start=7):
        log_drops(round, drops, before)
        before = drops
    assert [record.getMessage() for record in caplog.records] == [
        "Round 7: dropped worker(s) [2, 3]: env runner 2 is lost",
        "Round 8: dropped worker(s) [5]: reward nan",
        "Round 9: dropped worker(s) [3]: reward nan",
        "Round 9: worker(s) [2, 5] take part again",
        "Round 10: worker(s) [3] take part again",
    ]
