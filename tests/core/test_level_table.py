from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rllib_weighted.core.level_table import (
    LevelRecords,
    LevelTable,
    compute_scores,
    learnability_scores,
    score_problem,
)
from rllib_weighted.core.levels import LevelOptions, LevelPlay, LevelPool

NAN = math.nan


def _table(size: int = 4, **options: Any) -> LevelTable:
    return LevelTable(LevelPool(size), LevelOptions(**options))


def _play(level: int, rewards: float = 1.0, **changes: Any) -> LevelPlay:
    values: dict[str, Any] = {
        "id_": f"{level}-{rewards}",
        "worker": 0,
        "slot": level,
        "episode": 0,
        "start": 0,
        "steps": 10,
        "is_done": True,
        "success": None,
        **changes,
    }
    return LevelPlay(level=level, rewards=rewards, **values)


def _scored(scores: list[float], **options: Any) -> LevelTable:
    """A table of as many levels, each played once and together; NaN: never."""
    table = _table(len(scores), score="return", **options)
    table.update([_play(i, s) for i, s in enumerate(scores) if not math.isnan(s)], {})
    return table


# Probabilities


def test_before_the_first_episode_all_levels_are_unseen_and_alike() -> None:
    draws = _table(4).draws()
    assert draws.unseen.tolist() == [0, 1, 2, 3]
    assert draws.probabilities.tolist() == [0.25] * 4


def test_scores_count_by_their_ranks() -> None:
    # Ranks 3, 1, 2, to the power -1 / 0.5: 1/9, 1, 1/4; their sum is 49/36.
    draws = _scored([-5.0, 100.0, 7.0], beta=0.5, staleness=0.0).draws()
    np.testing.assert_allclose(draws.probabilities, [4 / 49, 36 / 49, 9 / 49])
    assert draws.unseen.size == 0


def test_equal_scores_share_their_ranks() -> None:
    # Ranks 1.5, 1.5, 3: 2/3, 2/3, 1/3.
    draws = _scored([2.0, 2.0, 1.0], beta=1.0, staleness=0.0).draws()
    np.testing.assert_allclose(draws.probabilities, [0.4, 0.4, 0.2])
    draws = _scored([0.0] * 5, beta=1e-3, staleness=0.0).draws()  # No rank underflows to nothing.
    np.testing.assert_allclose(draws.probabilities, [0.2] * 5)


def test_levels_that_were_never_played_are_not_replayed() -> None:
    draws = _scored([2.0, NAN, 1.0], beta=1.0, staleness=0.5).draws()
    assert draws.probabilities[1] == 0
    assert draws.unseen.tolist() == [1]


def test_staleness_is_the_episodes_since_a_level_was_played() -> None:
    table = _scored([3.0, 2.0, 1.0], beta=1.0, staleness=0.4)
    # In the same round: nothing is stale, equal parts. Ranks: 6/11, 3/11, 2/11.
    np.testing.assert_allclose(
        table.draws().probabilities,
        [0.6 * x / 11 + 0.4 / 3 for x in (6, 3, 2)],
    )
    table.update([_play(0, 3.0), _play(1, 2.0, id_="x")], {})
    table.update([_play(0, 3.0)], {})
    # 6 episodes: level 0 was played at 6, level 1 at 5, level 2 at 3: ages 0, 1, 3.
    assert table.records().ages.tolist() == [0, 1, 3]
    np.testing.assert_allclose(
        table.draws().probabilities,
        [0.6 * x / 11 + 0.4 * age / 4 for x, age in ((6, 0), (3, 1), (2, 3))],
    )


def test_a_level_without_a_known_score_waits_for_its_age_to_grow() -> None:
    table = _table(3, beta=1.0, staleness=0.5)  # Value errors: of level 0 alone.
    plays = [_play(0, id_="a"), _play(1, id_="b")]
    table.update(plays, {"a": (5.0, 10)})
    np.testing.assert_allclose(table.draws().probabilities, [0.5 + 0.25, 0.25, 0])


# What is taken in


def test_value_errors_are_means_over_an_episodes_steps_in_all_rounds() -> None:
    table = _table(2)
    going_on = _play(1, 3.0, id_="a", steps=4, is_done=False)
    assert table.update([going_on], {"a": (2.0, 4)}) == []
    assert table.records().ages.tolist() == [-1, 0]  # Played, though it has not ended.
    (ended,) = table.update([_play(1, 5.0, id_="a", start=4, steps=2)], {"a": (4.0, 2)})
    assert ended == (0, 1, 8.0)
    records = table.records()
    assert records.value_errors[1, 0] == 1.0  # (2 + 4) / 6
    assert records.lengths[1, 0] == 6
    assert records.num_episodes.tolist() == [0, 1]
    np.testing.assert_array_equal(compute_scores(LevelOptions(), records), [NAN, 1.0])


def test_the_return_of_an_episode_without_its_beginning_is_not_known() -> None:
    table = _table(2)
    (ended,) = table.update([_play(0, 5.0, id_="late", start=7, steps=3)], {"late": (6.0, 3)})
    assert math.isnan(ended.episode_return)
    records = table.records()
    assert math.isnan(records.returns[0, 0])
    assert (records.value_errors[0, 0], records.lengths[0, 0]) == (2.0, 10)


def test_the_order_in_which_env_runners_answer_does_not_matter() -> None:
    plays = [_play(0, float(i), id_=str(i), slot=i % 3, episode=i // 3) for i in range(9)]
    errors = {str(i): (float(i), 10) for i in range(9)}
    one, other = _table(), _table()
    ended = one.update(plays, errors)
    assert ended == other.update(plays[::-1], errors)
    # By slot, then by episode; the newest is the last one of the last slot.
    assert [play.episode_return for play in ended] == [0.0, 3, 6, 1, 4, 7, 2, 5, 8]
    np.testing.assert_array_equal(one.records().returns, other.records().returns)
    assert one.records().returns[0, 0] == 8.0


def test_the_latest_episodes_are_kept_the_newest_first() -> None:
    table = _table(2, window=3)
    for i in range(5):
        table.update([_play(1, float(i))], {})
    assert table.records().returns[1].tolist() == [4, 3, 2]
    assert np.isnan(table.records().returns[0]).all()
    assert (table.records().lowest_return, table.records().highest_return) == (0, 4)


def test_numbers_that_are_not_finite_are_not_known() -> None:
    table = _table(2)
    table.update([_play(0, NAN, id_="a"), _play(1, math.inf, id_="b")], {"a": (NAN, 10)})
    records = table.records()
    for values in (records.returns, records.value_errors):
        assert np.isnan(values).all()
    assert records.lowest_return == math.inf
    assert records.num_episodes.tolist() == [1, 1]


# Scores


def test_learnability_of_successes() -> None:
    table = _table(3, score="learnability")
    plays = [_play(0, id_=str(i), episode=i, success=i < 3) for i in range(4)]
    table.update([*plays, _play(1, id_="x", slot=1)], {})
    # 3 of 4: q = 4/6; level 1 says nothing of success: q = 1/2; level 2 was never played.
    scores = learnability_scores(table.records())
    np.testing.assert_allclose(scores, [4 / 6 * 2 / 6, 0.25, NAN])


def test_a_return_may_be_the_success() -> None:
    table = _table(2, score="learnability", success_return=10.0)
    plays = [_play(0, r, id_=str(r), success=False) for r in (9.0, 10.0, 11.0)]
    table.update(plays, {})
    np.testing.assert_array_equal(np.sort(table.records().successes[0])[:3], [0, 1, 1])


def test_learnability_without_successes_is_the_relative_variance_of_returns() -> None:
    table = _table(3, score="learnability")
    table.update([_play(0, r, id_=str(r)) for r in (0.0, 2.0, 4.0, 10.0)], {})
    table.update([_play(1, r, id_=str(r)) for r in (10.0, 10.0)], {})
    # Mean 4, squares 16 + 4 + 0 + 36 over 4 = 14; the range of all returns is 10.
    np.testing.assert_allclose(learnability_scores(table.records()), [0.14, 0.0, NAN])


def test_learnability_of_equal_returns_is_zero() -> None:
    table = _table(2, score="learnability")
    table.update([_play(0, 5.0)], {})
    np.testing.assert_array_equal(learnability_scores(table.records()), [0.0, NAN])
    assert table.draws().probabilities.tolist() == [1.0, 0.0]


def test_a_score_of_the_users_own() -> None:
    def longest(levels: LevelRecords) -> Any:
        assert levels.returns.shape == (2, 10)
        return levels.lengths[:, 0]

    table = _table(2, score=longest, beta=1.0, staleness=0.0)
    table.update([_play(0, steps=3), _play(1, steps=30, id_="x")], {})
    np.testing.assert_allclose(table.draws().probabilities, [1 / 3, 2 / 3])
    assert score_problem(LevelOptions(score=longest), 2) is None


def test_a_score_that_raises_or_has_another_shape_is_named() -> None:
    def ages(levels: LevelRecords) -> Any:
        return levels.agess  # type: ignore[attr-defined]

    text = score_problem(LevelOptions(score=ages), 4)
    assert text is not None
    assert "(ages) should return a number for each of 4 levels, but raised: mend" in text
    assert "'LevelRecords' object has no attribute 'agess'" in text
    text = score_problem(LevelOptions(score=lambda levels: levels.returns), 4)
    assert text is not None
    assert "should return an array of (4,), a number for each level, found shape (4, 10)" in text


# Metrics and checkpoints


def test_metrics() -> None:
    table = _scored([2.0, NAN, 4.0, NAN], beta=1.0, staleness=0.0)
    # P = 1/3, 2/3: 1 / (1/9 + 4/9) = 1.8.
    assert table.summary() == {
        "seen": 2.0,
        "played": 2.0,
        "effective": pytest.approx(1.8),
        "score_mean": 3.0,
    }
    assert math.isnan(_table().summary()["score_mean"])


def test_a_table_goes_on_from_its_state() -> None:
    one, other = (_table(3, score="learnability") for _ in range(2))
    one.update([_play(0, 1.0), _play(2, 3.0, success=True)], {})
    other.set_state(one.get_state())
    for table in (one, other):
        table.update([_play(2, 9.0)], {})
    for name in LevelRecords.__dataclass_fields__:
        expected, found = getattr(one.records(), name), getattr(other.records(), name)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    np.testing.assert_array_equal(one.draws().probabilities, other.draws().probabilities)


def test_a_state_is_a_copy() -> None:
    table = _table()
    state = table.get_state()
    table.update([_play(0)], {})
    assert state["num_episodes"].sum() == 0


@pytest.mark.parametrize("state", [None, _table(5).get_state()])
def test_a_state_of_other_levels_is_said_to_be_useless(state: Any, caplog: Any) -> None:
    table = _table(4)
    table.update([_play(0)], {})
    table.set_state(state)
    assert "all levels count as unseen" in caplog.text
    assert table.draws().unseen.size == 4


def test_another_window_keeps_what_fits() -> None:
    table, other = _table(2, window=4), _table(2, window=2)
    for i in range(4):
        table.update([_play(0, float(i))], {})
    other.set_state(table.get_state())
    assert other.records().returns[0].tolist() == [3.0, 2.0]
    table.set_state(other.get_state())
    np.testing.assert_array_equal(table.records().returns[0], [3.0, 2.0, NAN, NAN])
