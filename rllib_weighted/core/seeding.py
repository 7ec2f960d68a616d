"""Counted random streams: every seed is a function of *what it is for*, never of history.

An episode's environment seed comes from (seed, worker, episode number), a round's action
sampling from (seed, env runner, round), a worker's minibatch shuffle from (seed, worker, round,
epoch), all through `numpy.random.SeedSequence`. A restarted env runner therefore does not
replay its past, and a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import enum
import random
from collections.abc import Iterator

import numpy as np
import torch

# 31 bits fit numpy's legacy seeding, C ints, and every gymnasium environment.
_NUM_CLASS_SEEDS = 1 << 30  # Of training; as many of evaluation.


class Stream(enum.IntEnum):
    """What a seed is for. The numbers are part of every seed: never reuse or reorder them."""

    ENVIRONMENT = 0
    ACTIONS = 1
    SHUFFLE = 2
    SHARES = 3
    EVALUATION_ACTIONS = 4
    HALVES = 5


def draw_root_seed() -> int:
    """Returns a fresh root seed for a run whose config has `seed=None`."""
    return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])


def stream(seed: int, kind: Stream, *counters: int) -> np.random.SeedSequence:
    """Returns the `SeedSequence` of one counted stream.

    Args:
        seed: The run's root seed (>= 0).
        kind: What the stream is for.
        counters: Non-negative counters that name the stream, e.g. worker, round, epoch.
    """
    return np.random.SeedSequence(entropy=seed, spawn_key=(int(kind), *counters))


def stream_seed(seed: int, kind: Stream, *counters: int) -> int:
    """Returns a 63-bit integer seed of one counted stream."""
    state = stream(seed, kind, *counters).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def generator(seed: int, kind: Stream, *counters: int) -> np.random.Generator:
    """Returns a numpy generator on one counted stream."""
    return np.random.Generator(np.random.PCG64(stream(seed, kind, *counters)))


def torch_generator(seed: int, kind: Stream, *counters: int) -> torch.Generator:
    """Returns a CPU torch generator on one counted stream."""
    return torch.Generator().manual_seed(stream_seed(seed, kind, *counters))


def environment_seed(
    seed: int, *, slot: int, num_slots: int, evaluation: bool, counters: tuple[int, ...]
) -> int:
    """Returns the seed of one reset of one sub-environment, in [0, 2**31).

    Seeds of different sub-environments are disjoint by construction, each owns a residue class;
    those of training are even, those of evaluation odd. Within its class, the last counter is
    permuted: no seed comes twice before all of the class (2**30 / num_slots, rounded down to a
    power of 2) have come. Which permutation, is drawn from the stream of the other counters.

    Args:
        seed: The run's root seed.
        slot: Index of the sub-environment over all env runners, 0 … num_slots - 1.
        num_slots: Number of sub-environments, of training or of evaluation.
        evaluation: Whether the sub-environment belongs to an evaluation env runner.
        counters: What counts the resets of this sub-environment: (episode number,) in training,
            (version of the weights, episode number) in evaluation.
    """
    num_bits = (_NUM_CLASS_SEEDS // num_slots).bit_length() - 1
    *others, count = counters
    keys = stream(seed, Stream.ENVIRONMENT, int(evaluation), slot, *others).generate_state(3)
    drawn = _permute(count, num_bits, keys.tolist())
    return 2 * (drawn * num_slots + slot) + int(evaluation)


def _permute(value: int, num_bits: int, keys: list[int]) -> int:
    """Maps 0 … 2**num_bits - 1 onto itself: adding, odd factors and shifts lose nothing."""
    mask = (1 << num_bits) - 1
    shift = num_bits // 2 + 1
    value = (value + keys[0]) & mask
    for key in keys[1:]:
        value = value * (key | 1) & mask
        value ^= value >> shift
    return value


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seeds the global generators of `random`, numpy and torch inside the block.

    On leaving, the generators are what they were before: a local env runner must not disturb
    the process that it shares with the learner.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
