from __future__ import annotations

import numpy as np
import pytest
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.core.rollouts import (
    CHUNK,
    CarriedReturns,
    EpisodeStats,
    Quotas,
    RolloutColumns,
    concatenated,
    episode_stats,
)


def _columns(
    length: int,
    *,
    id_: str = "e",
    start: int = 0,
    env_index: int = 0,
    done: bool = True,
    infos: bool = True,
) -> RolloutColumns:
    """One chunk: observations, actions and rewards are the number of their step."""
    t = np.arange(start, start + length + 1)
    chunk = np.zeros(1, CHUNK)
    chunk["id"], chunk["env_index"], chunk["worker"] = id_, env_index, env_index + 4
    chunk["length"], chunk["t_started"], chunk["terminated"] = length, start, done
    chunk["success"] = -1
    steps = {Columns.ACTIONS: t[1:], Columns.REWARDS: t[1:] + 0.5, Columns.ACTION_LOGP: -t[1:]}
    dicts = np.array([{"t": step} for step in t.tolist()], object) if infos else None
    return RolloutColumns(np.stack([t, t], axis=1), steps, chunk, dicts)


def _chunks(*lengths: int, id_: str = "e", infos: bool = True) -> list[RolloutColumns]:
    """An episode in pieces: each chunk begins with the last one's observation."""
    starts = np.cumsum([0, *lengths]).tolist()
    return [
        _columns(length, id_=id_, start=start, done=start + length == starts[-1], infos=infos)
        for start, length in zip(starts, lengths, strict=False)
    ]


def test_nonfinite_rewards_are_taken_out_and_summed_by_episode() -> None:
    columns = concatenated([*_chunks(2, 3, id_="a"), _columns(2, id_="b"), _columns(2, id_="c")])
    rewards = columns.steps[Columns.REWARDS]  # a: 0, 1 | 2, 3, 4; b: 5, 6; c: 7, 8
    rewards[[1, 4]] = np.inf
    rewards[[5, 6]] = np.inf, np.nan
    kept = rewards.copy()
    found = columns.take_nonfinite_rewards()
    assert found.keys() == {"a", "b"}
    assert found["a"] == np.inf
    assert np.isnan(found["b"])
    np.testing.assert_array_equal(rewards, np.where(np.isfinite(kept), kept, 0))
    assert columns.take_nonfinite_rewards() == {}


def _assert_equal(ours: SingleAgentEpisode, theirs: SingleAgentEpisode) -> None:
    for part in ("observations", "actions", "rewards"):
        a, b = getattr(ours, f"get_{part}")(), getattr(theirs, f"get_{part}")()
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        ours.get_extra_model_outputs("action_logp"), theirs.get_extra_model_outputs("action_logp")
    )
    assert list(ours.get_infos()) == list(theirs.get_infos())
    for name in ("id_", "t_started", "is_terminated", "is_truncated", "custom_data"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert len(ours) == len(theirs)


# Joining


@pytest.mark.parametrize("infos", [True, False])
@pytest.mark.parametrize("lengths", [(6,), (1, 5), (2, 3, 1), (1,) * 6])
def test_joined_chunks_are_the_whole_episode(lengths: tuple[int, ...], infos: bool) -> None:
    joined = concatenated(_chunks(*lengths, infos=infos)).joined({"e"})
    (episode,) = joined.to_episodes()
    _assert_equal(episode, _columns(6, infos=infos).to_episodes()[0])


def test_episodes_are_joined_by_id_and_come_in_the_order_of_their_ends() -> None:
    (a1, a2), (b1, b2) = _chunks(2, 2, id_="a"), _chunks(1, 2, id_="b")
    joined = concatenated([a1, b1, b2, a2]).joined({"a", "b"})
    assert joined.ids == ["b", "a"]
    b, a = joined.to_episodes()
    _assert_equal(a, _columns(4, id_="a").to_episodes()[0])
    _assert_equal(b, _columns(3, id_="b").to_episodes()[0])


def test_only_the_wanted_episodes_are_joined() -> None:
    (a1, a2), b = _chunks(2, 2, id_="a"), _columns(3, id_="b")
    assert concatenated([a1, b, a2]).joined({"a"}).ids == ["a"]


def test_chunks_are_not_changed_by_joining() -> None:
    together = concatenated(_chunks(2, 2))
    before = together.obs.copy(), together.chunks.copy()
    together.joined({"e"})
    np.testing.assert_array_equal(together.obs, before[0])
    np.testing.assert_array_equal(together.chunks, before[1])


# Stats


def test_columns_and_their_episodes_have_the_same_stats() -> None:
    columns = concatenated([*_chunks(2, 3, id_="a"), _columns(4, id_="b", env_index=1)])
    stats = episode_stats(columns)
    assert stats == episode_stats(columns.to_episodes())
    assert stats == [
        EpisodeStats("a", 0, 4, 2, 4.0, False),  # 1.5 + 2.5
        EpisodeStats("a", 0, 4, 3, 13.5, True),  # 3.5 + 4.5 + 5.5
        EpisodeStats("b", 1, 5, 4, 12.0, True),  # 1.5 + 2.5 + 3.5 + 4.5
    ]


def _stats(length: int, id_: str, *, env_index: int = 0, done: bool = True) -> EpisodeStats:
    return EpisodeStats(id_, env_index, env_index, length, float(length), done)


def test_a_quota_keeps_whole_episodes_until_they_hold_enough() -> None:
    quotas = Quotas(2, 5)
    quotas.add([_stats(3, "a"), _stats(3, "b"), _stats(3, "c")])
    assert quotas.kept == {"a", "b"}  # 3 < 5, 3 + 3 >= 5: c is too much.
    assert not quotas.met  # Sub-environment 1 has nothing.
    quotas.add([_stats(9, "d", env_index=1)])
    assert quotas.met
    assert quotas.kept == {"a", "b", "d"}


def test_a_quota_counts_an_episode_when_it_ends_with_all_its_chunks() -> None:
    quotas = Quotas(1, 4)
    quotas.add([_stats(3, "e", done=False)])
    assert (quotas.met, quotas.kept) == (False, set())
    quotas.add([_stats(1, "e")])
    assert (quotas.met, quotas.kept) == (True, {"e"})


def test_returns_are_carried_from_round_to_round_and_unknown_ones_never_count() -> None:
    returns = CarriedReturns()
    first = [_stats(2, "a", done=False), _stats(3, "b", env_index=1, done=False)]
    assert returns.finished(first, {1: "reward nan"}) == {}
    second = [_stats(4, "a"), _stats(5, "b", env_index=1), _stats(6, "c", env_index=1)]
    assert returns.finished(second, {}) == {0: [6.0], 1: [6.0]}
