"""Learner connectors for users."""

from __future__ import annotations

import math
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns

# What the learner's pipeline holds by itself (tested with Ray 2.60; `EpisodeAdvantages` is ours).
_DEFAULTS = [
    "AddOneTsToEpisodesAndTruncate",
    "AddObservationsFromEpisodesToBatch",
    "AddColumnsFromEpisodesToTrainBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "NumpyToTensor",
    "EpisodeAdvantages",
]


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


def reward_scale(learner: Any) -> float | None:
    """Returns what a learner multiplies rewards by, if its connectors do nothing else of their own.

    Its connectors are RLlib's and, in front of them, those of a user. With `ScaleRewards` alone
    (or nothing) the batch can be made from columns.

    Args:
        learner: The learner, built.

    Returns:
        The factor, 1 without any `ScaleRewards`; None if something else may be done to the batch.
    """
    pieces = list(learner._learner_connector.connectors)
    scales = [piece.scale for piece in pieces if type(piece) is ScaleRewards]
    others = [type(piece).__name__ for piece in pieces if type(piece) is not ScaleRewards]
    return math.prod(scales) if others == _DEFAULTS else None
