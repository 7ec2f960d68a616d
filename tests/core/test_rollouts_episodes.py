from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted.core.rollouts import ENV_INDEX_KEY, Quotas, join_chunks

_SPACES = {
    "box": gym.spaces.Box(-1e9, 1e9, (2,), np.float32),
    "dict": gym.spaces.Dict({"a": gym.spaces.Box(-1e9, 1e9, (2,), np.float32)}),
}


def _episode(
    length: int, *, id_: str = "e", env_index: int = 0, done: bool = True, space: str = "box"
) -> SingleAgentEpisode:
    episode = SingleAgentEpisode(
        id_=id_, observation_space=_SPACES[space], action_space=gym.spaces.Discrete(50)
    )
    episode.custom_data[ENV_INDEX_KEY] = env_index

    def obs(t: int) -> Any:
        array = np.full(2, t, np.float32)
        return {"a": array} if space == "dict" else array

    episode.add_env_reset(obs(0), infos={"t": 0})
    for t in range(1, length + 1):
        episode.add_env_step(
            obs(t),
            t,
            float(t),
            infos={"t": t},
            terminated=done and t == length,
            extra_model_outputs={"action_logp": -float(t)},
        )
    return episode


def _chunks(episode: SingleAgentEpisode, *lengths: int) -> list[SingleAgentEpisode]:
    """Cuts an episode as RLlib does: each chunk begins with the last one's observation."""
    chunks, start = [], 0
    for length in lengths:
        chunk = episode[start : start + length]
        chunk.id_, chunk.t_started = episode.id_, start
        chunk.t = start + length
        chunk.custom_data.update(episode.custom_data)
        chunks.append(chunk.to_numpy())
        start += length
    return chunks


def _assert_equal(joined: SingleAgentEpisode, whole: SingleAgentEpisode) -> None:
    whole = whole.to_numpy()
    for part in ("get_observations", "get_actions", "get_rewards"):
        ours, theirs = getattr(joined, part)(), getattr(whole, part)()
        if isinstance(ours, dict):
            ours, theirs = ours["a"], theirs["a"]
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(
        joined.get_extra_model_outputs("action_logp"),
        whole.get_extra_model_outputs("action_logp"),
    )
    assert list(joined.get_infos()) == list(whole.get_infos())
    assert (joined.id_, len(joined), joined.t_started) == (whole.id_, len(whole), whole.t_started)
    assert (joined.is_terminated, joined.is_truncated) == (
        whole.is_terminated,
        whole.is_truncated,
    )
    assert joined.custom_data == whole.custom_data


@pytest.mark.parametrize("space", ["box", "dict"])
@pytest.mark.parametrize("lengths", [(6,), (1, 5), (2, 3, 1), (1,) * 6])
def test_joined_chunks_are_the_whole_episode(lengths: tuple[int, ...], space: str) -> None:
    episode = _episode(6, env_index=3, space=space)
    (joined,) = join_chunks(_chunks(episode, *lengths))
    _assert_equal(joined, _episode(6, env_index=3, space=space))


def test_episodes_are_joined_by_id_and_come_in_the_order_of_their_ends() -> None:
    first, second = _episode(4, id_="a"), _episode(3, id_="b")
    (a1, a2), (b1, b2) = _chunks(first, 2, 2), _chunks(second, 1, 2)
    joined = join_chunks([a1, b1, b2, a2])
    assert [episode.id_ for episode in joined] == ["b", "a"]
    _assert_equal(joined[1], _episode(4, id_="a"))
    _assert_equal(joined[0], _episode(3, id_="b"))


def test_chunks_are_not_changed_by_joining() -> None:
    chunks = _chunks(_episode(4), 2, 2)
    before = [chunk.get_observations().copy() for chunk in chunks]
    join_chunks(chunks)
    for chunk, obs in zip(chunks, before, strict=True):
        np.testing.assert_array_equal(chunk.get_observations(), obs)


def test_a_quota_keeps_whole_episodes_until_they_hold_enough() -> None:
    quotas = Quotas(2, 5)
    quotas.add([_episode(3, id_="a"), _episode(3, id_="b"), _episode(3, id_="c")])
    assert quotas.kept == {"a", "b"}  # 3 < 5, 3 + 3 >= 5: c is too much.
    assert not quotas.met  # Sub-environment 1 has nothing.
    quotas.add([_episode(9, id_="d", env_index=1)])
    assert quotas.met
    assert quotas.kept == {"a", "b", "d"}


def test_a_quota_counts_an_episode_when_it_ends_with_all_its_chunks() -> None:
    quotas = Quotas(1, 4)
    first, second = _chunks(_episode(4), 3, 1)
    quotas.add([first])
    assert (quotas.met, quotas.kept) == (False, set())
    quotas.add([second])
    assert (quotas.met, quotas.kept) == (True, {"e"})
