"""Learner connectors for users."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.postprocessing.zero_padding import (
    split_and_zero_pad_n_episodes,
    unpad_data_if_necessary,
)

from rllib_weighted.learning.advantages import chunk_advantages


class ScaleRewards(ConnectorV2):
    """Multiplies the rewards that the learner sees; metrics and signals keep the plain returns.

    Value targets of the size of 1 to 10 train best; BipedalWalker's returns of -100 to 300 do not
    fit. Pass it as `config.training(learner_connector=lambda obs, act: ScaleRewards(0.05))`.

    Args:
        scale: The factor, > 0.

    Raises:
        ValueError: If the factor is not a positive, finite number.
    """

    def __init__(
        self, scale: float, input_observation_space: Any = None, input_action_space: Any = None
    ) -> None:
        if isinstance(scale, bool) or not 0 < scale < math.inf:
            raise ValueError(f"`scale` should be a finite number > 0, found {scale!r}.")
        super().__init__(input_observation_space, input_action_space)
        self.scale = scale

    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> Any:
        """Adds the scaled rewards, before RLlib's own connectors would add the plain ones."""
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            self.add_n_batch_items(
                batch,
                Columns.REWARDS,
                episode.get_rewards(slice(0, len(episode))) * self.scale,
                len(episode),
                episode,
            )
        return batch


class EpisodeAdvantages(ConnectorV2):
    """Learner connector: adds advantages (not standardised) and value targets to the batch.

    Takes the place of RLlib's `GeneralAdvantageEstimation`, which standardises over all workers
    and counts the artificial row at the end of each episode chunk in its mean and deviation.
    Those rows get advantage 0 here and are masked out of everything by `loss_mask`.

    Args:
        gamma: Discount factor.
        lambda_: GAE's decay.
        compute_values: (module, its batch) -> value predictions; None: the module's own.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        gamma: float,
        lambda_: float,
        compute_values: Callable[[Any, dict[str, Any]], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma = gamma
        self.lambda_ = lambda_
        self._compute_values = compute_values

    def __call__(  # noqa: D102
        self, *, rl_module: Any, episodes: list[Any], batch: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        lengths = [len(episode) for episode in self.single_agent_episode_iterator(episodes)]
        for module_id, module_batch in batch.items():
            module = rl_module[module_id].unwrapped()
            if isinstance(module, ValueFunctionAPI):
                self._add_advantages(module, module_batch, lengths)
        return batch

    def _add_advantages(self, module: Any, batch: dict[str, Any], lengths: list[int]) -> None:
        with torch.no_grad():
            if self._compute_values is None:
                prediction = module.compute_values(batch)
            else:
                prediction = self._compute_values(module, batch)

        def column(data: Any) -> np.ndarray:
            return np.asarray(unpad_data_if_necessary(lengths, convert_to_numpy(data)))

        values, rewards = column(prediction), column(batch[Columns.REWARDS])
        terminateds = column(batch[Columns.TERMINATEDS])
        advantages = np.zeros(len(values), np.float32)
        ends = np.cumsum(lengths) - 1  # The artificial rows, which hold the bootstrap values.
        is_step = np.ones(len(values), np.bool_)
        is_step[ends] = False
        advantages[is_step] = chunk_advantages(
            rewards[is_step],
            values,
            np.array(lengths) - 1,
            terminated=terminateds[ends - 1].astype(np.bool_),
            gamma=self.gamma,
            lambda_=self.lambda_,
        )
        for key, data in (
            (Postprocessing.ADVANTAGES, advantages),
            (Postprocessing.VALUE_TARGETS, (advantages + values).astype(np.float32)),
        ):
            if module.is_stateful():
                rows = split_and_zero_pad_n_episodes(
                    data, episode_lens=lengths, max_seq_len=module.model_config["max_seq_len"]
                )
                data = np.stack(rows, axis=0)
            batch[key] = torch.from_numpy(data).to(prediction.device)
