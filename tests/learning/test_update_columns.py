"""Learning from columns is learning from the same episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2

from rllib_weighted.core.rollouts import CHUNK, RolloutColumns
from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.connectors import ScaleRewards
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import ColumnTrainingData
from tests.learning.helpers import (
    DISCRETE,
    EitherPrecision,
    build_group,
    flat_parameters,
    learner_of,
    make_episodes,
    make_request,
    run_update,
    small_config,
)

BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
LENGTHS = [[4, 1, 9], [6, 12], [1, 3, 5]]


def columns_of(episodes: list[Any]) -> RolloutColumns:
    """The episodes' arrays, one after the other."""
    chunks = np.zeros(len(episodes), CHUNK)
    for chunk, episode in zip(chunks, episodes, strict=True):
        chunk["worker"], chunk["length"] = episode.custom_data[WORKER_KEY], len(episode)
        chunk["terminated"], chunk["truncated"] = episode.is_terminated, episode.is_truncated
    keys = ["action_logp", "action_dist_inputs"]
    return RolloutColumns(
        np.concatenate([episode.get_observations() for episode in episodes]),
        {
            "actions": np.concatenate([episode.get_actions() for episode in episodes]),
            # In the dtype that gymnasium's vector environments have.
            "rewards": np.concatenate([e.get_rewards() for e in episodes]).astype(np.float64),
            **{
                key: np.concatenate([e.get_extra_model_outputs(key) for e in episodes])
                for key in keys
            },
        },
        chunks,
    )


class OwnLoss(EitherPrecision):
    """Reads the flags that the stock loss does not."""

    def compute_loss_for_module(self, *, batch: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss_for_module(batch=batch, **kwargs)
        return loss * (1 + 2 * batch["terminateds"].float() + batch["truncateds"].float()).mean()


_CASES: dict[str, dict[str, Any]] = {
    "discrete": {},
    "continuous": {"action_space": BOX},
    "batch advantages": {"training": {"advantage_normalization": "batch"}},
    "own parameters": {"training": {"merge_strategy": "actor_average"}},
    "own loss": {"learner_class": OwnLoss},
    "scaled": {"scale": 0.1},
}


def _group(
    dtype: torch.dtype,
    *,
    training: dict[str, Any] | None = None,
    scale: float | None = None,
    learner_class: type = EitherPrecision,
    action_space: gym.Space = DISCRETE,
) -> Any:
    config = small_config(3).training(minibatch_size=12, num_epochs=2, **(training or {}))
    config.learners(learner_class=learner_class)
    if scale is not None:
        config.learners(learner_connector=lambda obs, act: ScaleRewards(scale))
    group = build_group(config, action_space=action_space)
    learner_of(group).use(dtype)
    return group


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", _CASES)
def test_both_give_the_same_parameters(name: str, dtype: torch.dtype) -> None:
    case = _CASES[name]
    of_columns, of_episodes = _group(dtype, **case), _group(dtype, **case)
    start = flat_parameters(of_columns)
    assert torch.equal(start, flat_parameters(of_episodes))
    assert of_columns.why_not_columns() is None
    kwargs = {"action_space": case.get("action_space", DISCRETE)}
    settings = {"num_epochs": 2, "minibatch_size": 12, "shuffle_batch_per_epoch": True}
    for round_ in (1, 2, 3):
        episodes = make_episodes(LENGTHS, seed=round_, **kwargs)[::-1]
        request = make_request(3, case.get("training", {}).get("merge_strategy", "average"))
        half = len(episodes) // 2  # As if from two env runners.
        parts = [columns_of(episodes[:half]), columns_of(episodes[half:])]
        of_columns.update(columns=parts, merge=request, **settings)
        run_update(of_episodes, episodes, request, **settings)
    ours, theirs = flat_parameters(of_columns), flat_parameters(of_episodes)
    assert (ours - start).abs().max() > 0.01
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_worker_with_bad_numbers_spoils_no_other() -> None:
    of_columns, of_episodes = _group(torch.float32), _group(torch.float32)
    episodes = make_episodes(LENGTHS)
    columns = columns_of(episodes)
    owner = np.repeat(columns.chunks["worker"], columns.chunks["length"])
    columns.steps["rewards"][owner == 1] = np.nan
    of_columns.update(columns=[columns], merge=make_request(3), num_epochs=1)
    report = of_columns.take_update_result()
    assert [reason is not None for reason in report.drops] == [False, True, False]
    others = [episode for episode in episodes if episode.custom_data[WORKER_KEY] != 1]
    run_update(of_episodes, others, make_request(3), num_epochs=1, minibatch_size=None)
    torch.testing.assert_close(
        flat_parameters(of_columns), flat_parameters(of_episodes), rtol=1e-5, atol=1e-5
    )


def test_a_chunk_of_no_worker_is_refused() -> None:
    columns = columns_of(make_episodes(LENGTHS))
    with pytest.raises(ValueError, match=r"workers 0 … 1, found \[2\]"):
        ColumnTrainingData.from_rollouts([columns], num_workers=2)


# Who needs episodes


class _Piece(ConnectorV2):
    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return batch


class _OwnUpdate(WeightedPPOLearner):
    def update(self, **kwargs: Any) -> Any:
        return super().update(**kwargs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.env_runners(fast_sampling=False), "`fast_sampling`=False"),
        (lambda c: c.learners(learner_class=_OwnUpdate), "_OwnUpdate overrides `update`"),
        (
            lambda c: c.learners(learner_connector=lambda obs, act: [_Piece(), ScaleRewards(2.0)]),
            "custom learner connectors",
        ),
        (
            lambda c: c.rl_module(model_config={"use_lstm": True, "lstm_cell_size": 4}),
            "the module is a recurrent one, or has no value function",
        ),
    ],
)
def test_what_needs_episodes(change: Any, reason: str) -> None:
    config = small_config(2)
    change(config)
    assert build_group(config).why_not_columns() == reason
