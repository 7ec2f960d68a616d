"""Learner connectors for users."""

from __future__ import annotations

import math
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns


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
