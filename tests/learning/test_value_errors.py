"""What the learner says of each episode's value errors, by an obvious loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from tests.learning.helpers import (
    build_group,
    make_episodes,
    make_request,
    module_of,
    run_update,
    small_config,
)
from tests.learning.test_update_columns import columns_of

LENGTHS = [[4, 1, 9], [6, 12], [1, 3, 5]]
GAMMA, LAMBDA = 0.9, 0.8  # As in `small_config`.


def _group(seeding: str = "prioritized", **model: Any) -> Any:
    config = small_config(3).env_runners(env_seeding=seeding)
    if model:
        config.rl_module(model_config=DefaultModelConfig(**model))
    return build_group(config)


def _by_hand(group: Any, episode: Any) -> float:
    """Sum of |A_t|, A_t = delta_t + gamma lambda A_{t+1}."""
    obs = torch.from_numpy(np.asarray(episode.get_observations()))
    with torch.no_grad():
        values = module_of(group).compute_values({"obs": obs}).double().tolist()
    if episode.is_terminated:
        values[-1] = 0.0
    total = advantage = 0.0
    for t, reward in reversed([*enumerate(map(float, episode.get_rewards()))]):
        delta = reward + GAMMA * values[t + 1] - values[t]
        advantage = delta + GAMMA * LAMBDA * advantage
        total += abs(advantage)
    return total


def _columns(episodes: list[Any]) -> Any:
    columns = columns_of(episodes)
    columns.chunks["id"] = [episode.id_.encode() for episode in episodes]
    return columns


@pytest.mark.parametrize("as_columns", [True, False])
def test_the_sum_over_an_episodes_steps_and_their_number(as_columns: bool) -> None:
    group = _group()
    episodes = make_episodes(LENGTHS)[::-1]
    for number, episode in enumerate(episodes):
        episode.id_ = f"episode-{number}"
    expected = {e.id_: (pytest.approx(_by_hand(group, e), rel=1e-5), len(e)) for e in episodes}
    if as_columns:
        group.update(columns=[_columns(episodes)], merge=make_request(3), num_epochs=1)
        result = group.take_update_result()
    else:
        result = run_update(group, episodes, make_request(3))
    assert result.value_errors == expected


def test_sequences_are_counted_without_their_padding() -> None:
    group = _group(use_lstm=True, lstm_cell_size=4, max_seq_len=5, fcnet_hiddens=[4])
    episodes = make_episodes(LENGTHS)
    for episode in episodes:
        states = {
            key: np.zeros((len(episode), *value.shape), np.float32)
            for key, value in module_of(group).get_initial_state().items()
        }
        episode.extra_model_outputs["state_out"] = InfiniteLookbackBuffer(states, lookback=0)
    lengths = {episode.id_: len(episode) for episode in episodes}
    result = run_update(group, episodes, make_request(3))
    assert {id_: count for id_, (_, count) in result.value_errors.items()} == lengths
    assert all(0 < total < 100 for total, _ in result.value_errors.values())


def test_an_episode_in_two_pieces_is_one() -> None:
    group = _group()
    episodes = make_episodes([[4], [3], [5, 6]])
    for episode in episodes[2:]:
        episode.id_ = "twice"
    result = run_update(group, episodes, make_request(3))
    assert result.value_errors["twice"][1] == 11


def test_bad_numbers_stay_where_they_are() -> None:
    group = _group()
    episodes = make_episodes(LENGTHS)
    columns = _columns(episodes)
    columns.steps["rewards"][2] = np.nan  # Of the first episode.
    group.update(columns=[columns], merge=make_request(3), num_epochs=1)
    errors = group.take_update_result().value_errors
    bad = {id_ for id_, (total, _) in errors.items() if not np.isfinite(total)}
    assert bad == {episodes[0].id_}


def test_nothing_is_measured_without_levels() -> None:
    assert run_update(_group("stream"), make_episodes(LENGTHS), make_request(3)).value_errors == {}
