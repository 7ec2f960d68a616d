from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from rllib_weighted.core.levels import (
    LevelDraws,
    LevelPool,
    level_problems,
    resolve_level_options,
)
from rllib_weighted.core.seeding import MAX_ENVIRONMENT_SEED, environment_seed


def _problems(num_workers: int = 4, **options: Any) -> list[str]:
    settings = {"num_workers": num_workers, "env": "CartPole-v1", "backend": "gymnasium"}
    return list(level_problems(options, **settings))


def _draw(draws: LevelDraws, slot: int, episode: int, count: int = 0, seed: int = 3) -> int:
    return draws.level(seed, slot=slot, num_slots=4, episode=episode, count=count)


# The pool


def test_without_a_pool_there_are_eight_levels_per_worker() -> None:
    assert LevelPool.of(None, 4) == LevelPool(32)
    assert LevelPool.of(np.int64(5), 4) == LevelPool(5)


def test_seeds_follow_from_the_runs_and_are_none_of_evaluations() -> None:
    pool = LevelPool(200)
    seeds = [pool.seed(7, level) for level in range(200)]
    assert len(set(seeds)) == 200
    assert all(seed is not None and seed % 2 == 0 for seed in seeds)
    of_evaluation = {
        environment_seed(7, slot=slot, num_slots=4, evaluation=True, counters=(1, k))
        for slot in range(4)
        for k in range(200)
    }
    assert not of_evaluation & set(seeds)
    assert seeds != [pool.seed(8, level) for level in range(200)]


def test_given_seeds_are_taken_and_contexts_have_none() -> None:
    assert [LevelPool.of([5, 9], 2).seed(7, level) for level in range(2)] == [5, 9]
    pool = LevelPool.of([{"gravity": -1.0}, {}], 2)
    assert pool.contexts == ({"gravity": -1.0}, {})
    assert pool.seed(7, 0) is None


# Draws


def test_unseen_levels_are_dealt_out_one_by_one_first() -> None:
    draws = LevelDraws(np.array([1.0, 0, 0, 0, 0, 0, 0]), np.array([1, 2, 3, 4, 5, 6]))
    first = [_draw(draws, slot, 9, count=0) for slot in range(4)]
    second = [_draw(draws, slot, 10, count=1) for slot in range(4)]
    assert first == [1, 2, 3, 4]
    assert second == [5, 6, 0, 0]  # None is left: replays.


def test_a_draw_is_a_function_of_seed_slot_and_episode() -> None:
    draws = LevelDraws(np.full(1000, 1e-3), np.empty(0, np.int64))
    names = [(slot, episode, seed) for slot in range(3) for episode in range(3) for seed in (1, 2)]
    found = [_draw(draws, slot, episode, seed=seed) for slot, episode, seed in names]
    assert len(set(found)) > 15
    assert found == [_draw(draws, slot, episode, 5, seed=seed) for slot, episode, seed in names]


def test_replays_have_the_given_probabilities() -> None:
    probabilities = np.array([0.0, 0.7, 0.0, 0.3, 0.0])
    draws = LevelDraws(probabilities, np.empty(0, np.int64))
    counts = Counter(_draw(draws, 0, episode) for episode in range(2000))
    assert counts.keys() == {1, 3}
    assert counts[1] / 2000 == pytest.approx(0.7, abs=0.04)  # Four standard errors.


# Options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": 4},
        {"pool": [3, 1, 2, 0]},
        {"pool": [{}] * 4},
        {"pool": None, "score": "learnability", "beta": 1, "staleness": 0, "success_return": 10},
        {"score": len, "window": 3, "success_return": None},
    ],
)
def test_good_options(options: dict[str, Any]) -> None:
    assert _problems(**options) == []
    assert resolve_level_options(options).beta == options.get("beta", 0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"score": "learnabilty"},
            "should be one of 'value_error', 'learnability', 'return', or a function, found "
            "'learnabilty': use one of them; did you mean 'learnability'?",
        ),
        ({"score": 3}, "`score` of `level_options` should be 'value_error'"),
        ({"betta": 1}, "found unknown option 'betta': rename or remove it; did you mean 'beta'?"),
        ({"beta": 0}, "`beta` of `level_options` should be greater than 0, found 0"),
        ({"staleness": 1.5}, "should be less than or equal to 1, found 1.5"),
        ({"staleness": True}, "`staleness` of `level_options` should be"),
        ({"window": 0}, "should be greater than 0, found 0: change it, or leave it out"),
        ({"pool": 3}, "should hold 4 levels or more, one for each worker, found 3: enlarge it"),
        ({"pool": [{}] * 3}, "should hold 4 levels or more, one for each worker, found 3"),
        ({"pool": []}, "should be a number of levels, a list of seeds or a list of context dicts"),
        ({"pool": "64"}, "found '64': leave it out for 8 levels per worker"),
        ({"pool": True}, "should be a number of levels"),
        ({"pool": [1, 2, 3, -1]}, f"whole numbers from 0 to {MAX_ENVIRONMENT_SEED}, or context"),
        ({"pool": [1, 2, 3, 2]}, "should hold each seed once, found 2 twice"),
        ({"pool": [{}, {}, {}, 4]}, "should hold dicts with texts as keys, found 4 for level 3"),
        ({"pool": [{}, {}, {}, {"length": 1}]}, "found 'length' for level 3"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    (found,) = _problems(**options)
    assert text in found


def test_options_are_a_dict() -> None:
    (found,) = level_problems([1], num_workers=2, env="CartPole-v1", backend="gymnasium")
    assert "`level_options` should be a dict of option names and values, found [1]" in found
