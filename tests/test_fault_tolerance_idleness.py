"""Rounds in which nothing is learned: a warning, and in the end an error."""

from __future__ import annotations

import pytest

from rllib_weighted.fault_tolerance import Idleness

DROPS = {0: "sub-environment 0: reward nan", 1: "reward inf"}


def test_the_first_of_several_is_named_and_the_last_one_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    idleness = Idleness()
    idleness.note(7, DROPS, is_updated=False, limit=3)
    idleness.note(8, {}, is_updated=False, limit=3)
    (record,) = caplog.records
    cause = "round 7, worker 0: sub-environment 0: reward nan"
    assert record.getMessage().endswith(f"nothing was learned. The first: {cause}")
    with pytest.raises(RuntimeError, match=rf"in 3 rounds in a row.*first cause: {cause}\. .*=…"):
        idleness.note(9, DROPS, is_updated=False, limit=3)


def test_a_round_with_an_update_begins_the_count_anew(caplog: pytest.LogCaptureFixture) -> None:
    idleness = Idleness()
    for round in (1, 3, 5):
        idleness.note(round, DROPS, is_updated=False, limit=2)
        idleness.note(round + 1, {0: "reward nan"}, is_updated=True, limit=2)
    assert len(caplog.records) == 3


def test_without_a_limit_it_goes_on() -> None:
    idleness = Idleness()
    for round in range(1, 30):
        idleness.note(round, {}, is_updated=False, limit=None)
