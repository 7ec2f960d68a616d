"""Discrete actions as the environment counts them: from the start of their space, in its type.

A policy counts its actions from 0, and so do its rollouts. RLlib (2.60) hands them to the
environment like that, whatever the space says.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import tree
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space

_DISCRETE = (gym.spaces.Discrete, gym.spaces.MultiDiscrete)


def counted_in(space: gym.Space[Any], actions: Any) -> Any:
    """Returns actions of the policy as their space counts them.

    Args:
        space: The space of a single action.
        actions: One action, or a batch of them. Those that are not discrete come back as they are.
    """
    if not isinstance(space, _DISCRETE):
        return actions
    return (np.asarray(actions) + space.start).astype(space.dtype)


def is_counted_elsewhere(space: gym.Space[Any]) -> bool:
    """Whether some action of a space, which may be nested, is another number than the policy's.

    Or a number of another type than those that RLlib hands on.
    """
    return any(
        isinstance(leaf, _DISCRETE)
        and bool(np.any(leaf.start) or leaf.dtype not in (np.int32, np.int64))
        for leaf in tree.flatten(get_base_struct_from_space(space))
    )


class CountActions(ConnectorV2):
    """Module-to-env connector: `counted_in` for the environments; rollouts keep the policy's."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds the actions for the environments, or changes those of RLlib's connectors."""
        spaces = get_base_struct_from_space(self.input_action_space)
        given = batch.get(Columns.ACTIONS_FOR_ENV, batch[Columns.ACTIONS])
        batch[Columns.ACTIONS_FOR_ENV] = {
            episode: [tree.map_structure_up_to(spaces, counted_in, spaces, item) for item in items]
            for episode, items in given.items()
        }
        return batch
