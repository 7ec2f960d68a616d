"""An env runner's rounds of levels, on all paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rllib_weighted.core.levels import LevelDraws, LevelPool
from tests.sampling.envs import NAN, ScriptedEnv
from tests.sampling.helpers import SEED, make_config, make_runner, sample

SIZE = 6
DRAWS = LevelDraws(np.full(SIZE, 1 / SIZE), np.array([4, 5]))


def _config(
    mode: str = "truncate", env_config: dict[str, Any] | None = None, **runners: Any
) -> Any:
    config = make_config(
        ScriptedEnv,
        batch_mode=f"{mode}_episodes",
        env_seeding="prioritized",
        level_options={"pool": SIZE},
        **runners,
    )
    return config.environment(env_config={"length": [3, 7], **(env_config or {})})


def _rounds(runner: Any, count: int = 3) -> list[Any]:
    resets: dict[int, int] = {}
    results = []
    for round_ in range(1, count + 1):
        results.append(sample(runner, round_, resets, levels=DRAWS, takes_columns=True))
        resets.update(results[-1].num_resets)
    return results


def _episodes(result: Any) -> list[Any]:
    return result.columns.to_episodes() if result.columns is not None else result.episodes


_PATHS: dict[str, dict[str, Any]] = {
    "arrays": {},
    "own loop": {"fast_sampling": False},
    "own loop, processes": {"gym_env_vectorize_mode": "async"},
}


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize("mode", ["truncate", "complete"])
def test_a_play_says_what_the_episode_says(mode: str, path: str) -> None:
    runner = make_runner(_config(mode, **_PATHS[path]))
    try:
        results = _rounds(runner)
    finally:
        runner.stop()
    pool, drawn_by = LevelPool(SIZE), {}
    for result in results:
        assert (result.columns is not None) == (path == "arrays")
        episodes = _episodes(result)
        assert len(episodes) == len(result.plays) > 2
        for episode, play in zip(episodes, result.plays, strict=True):
            assert play.id_ == episode.id_
            assert (play.start, play.steps) == (episode.t_started, len(episode))
            assert play.rewards == episode.get_return()
            assert play.is_done == episode.is_done
            assert play.worker == play.slot == episode.custom_data["rllib_weighted/env_index"]
            # What the environment drew with the seed of its reset says which level it was.
            seed = pool.seed(SEED, play.level)
            expected = int(np.random.Generator(np.random.PCG64(seed)).integers(100))
            assert episode.get_observations()[0][1] == expected
            drawn_by[play.slot, play.episode] = play.level
    for slot in range(2):
        numbers = sorted(number for own, number in drawn_by if own == slot)
        assert len(set(numbers)) == len(numbers) > 3
    assert len(set(drawn_by.values())) > 3


@pytest.mark.parametrize("mode", ["truncate", "complete"])
def test_all_paths_play_the_same_levels(mode: str) -> None:
    found = []
    for settings in _PATHS.values():
        runner = make_runner(_config(mode, **settings))
        try:
            found.append([[play[1:] for play in result.plays] for result in _rounds(runner)])
        finally:
            runner.stop()
    assert found[0] == found[1] == found[2]


def test_only_episodes_that_are_kept_are_counted() -> None:
    """Else the levels of one would depend on how long its neighbours take."""
    runner = make_runner(_config("complete", {"length": [3, 20]}))
    for result in _rounds(runner, 3):
        # 20 steps: 7 of the short ones, though it begins more until the long one has ended.
        counts = [sum(play.slot == slot for play in result.plays) for slot in range(2)]
        assert counts == [7, 1]
    assert result.num_resets == {0: 21, 1: 3}


def test_an_ongoing_episode_stays_what_it_is_whatever_comes_between() -> None:
    runner = make_runner(_config(env_config={"length": 15}))
    first, second = _rounds(runner, 2)
    # 20 steps in a round of each: 15 and 5, and then the other 10.
    before = {play.id_: play.level for play in first.plays if not play.is_done}
    after = {play.id_: play for play in second.plays if play.start}
    assert before.keys() == after.keys()
    assert {id_: play.level for id_, play in after.items()} == before
    assert all(play.is_done for play in after.values())


def test_evaluation_in_between_draws_no_levels() -> None:
    runner, other = (make_runner(_config("complete")) for _ in range(2))
    straight = _rounds(other, 2)
    resets: dict[int, int] = {}
    for round_, expected in enumerate(straight, start=1):
        result = sample(runner, round_, resets, levels=DRAWS, takes_columns=True)
        assert [play[1:] for play in result.plays] == [play[1:] for play in expected.plays]
        resets.update(result.num_resets)
        runner.sample(num_episodes=3, explore=False)


def test_rewards_of_an_invalid_worker_are_not_known() -> None:
    result = _rounds(make_runner(_config(env_config={"rewards": {2: NAN}, "only": [[0, 1]]})), 1)[0]
    known = {play.slot: np.isfinite(play.rewards) for play in result.plays}
    assert known == {0: True, 1: False}


def test_without_levels_there_are_no_plays() -> None:
    assert sample(make_runner(make_config(ScriptedEnv))).plays == []
