from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rllib_weighted.core.seeding import (
    Stream,
    _permute,
    draw_root_seed,
    environment_seed,
    generator,
    seeded_globals,
    stream_seed,
    torch_generator,
)

EnvSeed = Callable[[int, int], int]
"""(slot, episode) -> seed."""


def _episode_seed(
    slot: int, episode: int, *, num_slots: int = 8, seed: int = 7, version: int | None = None
) -> int:
    """The seed of a training episode, or of an evaluation of that version of the weights."""
    counters = (episode,) if version is None else (version, episode)
    return environment_seed(
        seed, slot=slot, num_slots=num_slots, evaluation=version is not None, counters=counters
    )


def _assert_disjoint(seed_of: EnvSeed, *, num_slots: int, num_episodes: int) -> None:
    owners: dict[int, int] = {}
    for slot in range(num_slots):
        for episode in range(num_episodes):
            seed = seed_of(slot, episode)
            assert owners.setdefault(seed, slot) == slot, f"slots {owners[seed]} and {slot}"


# Counted streams


@pytest.mark.parametrize("kind", list(Stream))
def test_a_stream_is_a_pure_function_of_its_counters(kind: Stream) -> None:
    first = stream_seed(3, kind, 1, 2)
    generator(3, kind, 1, 2).random(100)
    np.random.random(5)
    assert stream_seed(3, kind, 1, 2) == first
    assert generator(3, kind, 1, 2).random() == generator(3, kind, 1, 2).random()
    draws = [torch.rand(3, generator=torch_generator(3, kind, 1, 2)) for _ in range(2)]
    assert torch.equal(*draws)


def test_streams_differ_in_seed_kind_and_every_counter() -> None:
    names = [
        (seed, kind, *counters)
        for seed in (0, 1, 2**32, 2**63)
        for kind in Stream
        for counters in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0)]
    ]
    assert len({stream_seed(*name) for name in names}) == len(names)


def test_the_numbers_of_the_streams_stay() -> None:
    # They are part of every seed: another number would be another run.
    names = ["ENVIRONMENT", "ACTIONS", "SHUFFLE", "SHARES", "EVALUATION_ACTIONS", "HALVES"]
    assert [(stream.name, stream.value) for stream in Stream] == list(
        zip(names, range(6), strict=True)
    )


def test_a_stream_seed_fits_torch_and_is_not_negative() -> None:
    seeds = [stream_seed(0, Stream.ACTIONS, i) for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # All 63 bits are used.


def test_drawn_root_seeds_are_fresh_and_fit_numpys_legacy_seeding() -> None:
    seeds = [draw_root_seed() for _ in range(20)]
    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)


# Seeds of environments


def test_every_slot_owns_a_residue_class() -> None:
    # seed = 2 (drawn * num_slots + slot) + evaluation, so halving gives the slot modulo num_slots.
    for num_slots in (1, 3, 8):
        for slot in range(num_slots):
            for episode in range(20):
                training = _episode_seed(slot, episode, num_slots=num_slots)
                evaluation = _episode_seed(slot, episode, num_slots=num_slots, version=5)
                assert (training % 2, training // 2 % num_slots) == (0, slot)
                assert (evaluation % 2, evaluation // 2 % num_slots) == (1, slot)


def test_permutation_by_hand() -> None:
    # 4 bits: mask 15, shift 3.  5 + 3 = 8;  8 * (4|1) = 40 -> 8;  8 ^ (8 >> 3) = 9;
    # 9 * (6|1) = 63 -> 15;  15 ^ (15 >> 3) = 14.
    assert _permute(5, 4, [3, 4, 6]) == 14


@pytest.mark.parametrize("num_bits", [0, 1, 2, 3, 7, 12])
def test_the_permutation_loses_nothing(num_bits: int) -> None:
    keys = np.random.default_rng(num_bits).integers(2**32, size=3).tolist()
    values = [_permute(value, num_bits, keys) for value in range(2**num_bits)]
    assert sorted(values) == list(range(2**num_bits))


def test_seeds_of_slots_are_disjoint() -> None:
    _assert_disjoint(_episode_seed, num_slots=8, num_episodes=2_000)


def test_stock_seeds_are_not_disjoint() -> None:
    # Negative control: RLlib seeds runner k with seed + k and its sub-environment i with + i.
    def stock(slot: int, episode: int) -> int:
        return 7 + (slot // 4 + 1) + slot % 4

    with pytest.raises(AssertionError, match="slots 1 and 4"):
        _assert_disjoint(stock, num_slots=8, num_episodes=1)


def test_seeds_of_evaluation_are_disjoint_from_training() -> None:
    training = {_episode_seed(slot, k) for slot in range(8) for k in range(2_000)}
    for version in (0, 1, 2, 50):
        evaluation = {
            _episode_seed(slot, k, version=version) for slot in range(8) for k in range(200)
        }
        assert len(evaluation) == 8 * 200
        assert not evaluation & training


@pytest.mark.parametrize("num_slots", [1, 2, 3, 1000, 2**20])
def test_seeds_are_in_range(num_slots: int) -> None:
    for slot in (0, num_slots - 1):
        for version in (None, 3):
            seeds = [
                _episode_seed(slot, k, num_slots=num_slots, version=version) for k in range(500)
            ]
            assert all(0 <= seed < 2**31 for seed in seeds)
            assert len(set(seeds)) == 500


def test_no_episode_comes_twice() -> None:
    # Drawn independently, 20 000 of the 2**27 seeds of a class would collide with
    # probability 1 - exp(-20000^2 / 2^28) = 77 %.
    assert len({_episode_seed(0, k) for k in range(20_000)}) == 20_000


def test_seeds_depend_on_run_slot_version_and_episode() -> None:
    seeds = [
        _episode_seed(slot, k, seed=s) // 16 for slot in range(8) for k in (0, 1) for s in (1, 2)
    ]
    seeds += [_episode_seed(0, k, version=v) // 16 for k in (0, 1) for v in range(5)]
    assert len(set(seeds)) == len(seeds)  # // 16: also without what names slot and evaluation.


def test_seeds_of_successive_episodes_are_scattered() -> None:
    drawn = np.array([_episode_seed(0, k) for k in range(4_000)]) / 2**31
    counts, _ = np.histogram(drawn, bins=16, range=(0, 1))
    assert counts.min() > 175  # 250 each; 5 standard deviations of a uniform draw are 77.
    assert counts.max() < 325
    assert len(np.unique(np.diff(drawn))) > 3_000  # No constant stride.


# Global generators


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_seeded_globals_are_the_same_inside_and_untouched_outside() -> None:
    with seeded_globals(1):
        expected = _draw(), _draw()
    with seeded_globals(0):
        first = _draw()
        with seeded_globals(2**63 - 1):
            inside = _draw()
            torch.manual_seed(4)
        second = _draw()
        with seeded_globals(2**63 - 1):
            again = _draw()
    with seeded_globals(0):
        assert (first, second) == (_draw(), _draw())
    assert inside == again != first
    with seeded_globals(1):
        assert (_draw(), _draw()) == expected


def test_seeded_globals_are_restored_after_an_exception() -> None:
    with seeded_globals(5):
        expected = _draw()
    with seeded_globals(5):
        with pytest.raises(KeyError), seeded_globals(6):
            raise KeyError
        assert _draw() == expected
