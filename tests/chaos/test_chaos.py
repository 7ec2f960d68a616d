"""A few faults at random, from a seed that is always the same; `make chaos` draws others."""

from __future__ import annotations

import pytest

from tests.chaos.faults import DEEDS, STORES, TARGETS, Fault, draw, inflict
from tests.chaos.running import HANG_S, START_S, disturb, sweeping, undisturbed
from tests.chaos.soak import growth
from tests.chaos.sweep import NAME, ROUNDS, STRATEGIES, wait_until

SEED = "ci"
NUM_FAULTS = 5


def test_the_same_seed_draws_the_same_faults() -> None:
    assert draw("7-1", 6, "disk") == draw("7-1", 6, "disk") != draw("8-1", 6, "disk")


@pytest.mark.parametrize("storage", STORES)
def test_faults_are_of_all_kinds(storage: str) -> None:
    faults = draw("all", 200, storage)
    assert len(faults) == 200
    kinds = {(fault.target, fault.deed) for fault in faults}
    of_processes = {(target, deed) for target in TARGETS for deed in DEEDS}
    assert kinds == of_processes | {("storage", mode) for mode in STORES[storage]} | {
        ("env runner", "NaN")
    }


def test_faults_come_before_the_sweep_is_over() -> None:
    faults = draw("six", 6, "disk")
    assert all(fault.after >= 2 for fault in faults)
    assert sum(fault.after for fault in faults) < ROUNDS * len(STRATEGIES)


def test_a_kind_can_be_chosen() -> None:
    faults = draw("one", 4, "disk", only="kill node")
    assert {(fault.target, fault.deed) for fault in faults} == {("node", "kill")}


def test_a_fault_says_what_it_does() -> None:
    paused = Fault(7, "learner", "pause", index=1, seconds=2.34)
    assert str(paused) == "7 rounds later: pause learner 2 for 2.3 s"
    assert str(Fault(2, "node", "kill")) == "2 rounds later: kill node"


def test_growth_is_told_from_noise() -> None:
    first = [{"a, own memory, MB": value, "a, descriptors": 50.0} for value in (99.0, 100.0, 500.0)]
    same = [{"a, own memory, MB": 100.9, "a, descriptors": 52.0}]
    more = [{"a, own memory, MB": 101.1, "a, descriptors": 53.0}]
    assert [grows for *_, grows in growth(first, same).values()] == [False, False]
    assert [grows for *_, grows in growth(first, more).values()] == [True, True]


@pytest.mark.slow
def test_a_sweep_comes_through_its_faults_and_nothing_is_lost() -> None:
    expected = undisturbed()
    assert {name: max(rounds) for name, rounds in expected.items()} == dict.fromkeys(
        STRATEGIES, ROUNDS
    )
    outcome = disturb(draw(SEED, NUM_FAULTS, "object store"), "object store", expected)
    assert not outcome.problems, "\n".join([*outcome.lines, *outcome.problems])
    assert outcome.num_faults >= NUM_FAULTS - 1  # One may come when its trial is over.
    assert outcome.num_compared > 0


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["kill", "stop"])
def test_the_end_of_a_joined_cluster_is_told_with_how_to_resume(deed: str) -> None:
    """Ray would wait for it for ever; where it dies, Ray ends the command without a word."""
    with sweeping("object store") as (sweep, store):
        wait_until(lambda: sweep.num_rounds >= 2 or sweep.exit_code is not None, START_S)
        inflict(sweep, store, Fault(2, "control process", deed))
        assert wait_until(lambda: sweep.exit_code is not None, HANG_S), sweep.output
        assert sweep.exit_code == 1, sweep.output
        end = sweep.output[sweep.output.index("Error: ") :]
    assert end.startswith("Error: Ray has ended: its process gcs_server (no answer for 40 s)")
    assert f"--resume --name {NAME}" in end
    assert "Traceback" not in end
