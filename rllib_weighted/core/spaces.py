"""Which observations and actions RLlib's default PPO module can take, and the remedy for others.

RLlib (2.60) fails on the others wherever it first trips over them: in a distribution, in an encoder
or, with an env runner of its own, in an actor that is started again and again.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.rl_module import RLModuleSpec

from rllib_weighted.core.catalogs import CautiousPPOCatalog
from rllib_weighted.core.observations import DEFAULT_MODULES
from rllib_weighted.suggest import shown

_OWN_MODULE = "or give a module of your own with `.rl_module(rl_module_spec=…)`"
_VECTOR, _IMAGE = 1, 3  # Dimensions of observations.


def check_spaces(spec: RLModuleSpec) -> None:
    """Refuses spaces for which RLlib's default module has no network or no distribution.

    Args:
        spec: A spec with its class and its spaces. One with a module or a catalog of the user's own
            is left alone.

    Raises:
        ValueError: What should be, what was found, the remedy; for both spaces at once.
    """
    if spec.module_class not in DEFAULT_MODULES or spec.catalog_class not in (
        None,
        PPOCatalog,
        CautiousPPOCatalog,
    ):
        return
    found = [observation_problem(spec.observation_space), action_problem(spec.action_space)]
    if problems := [problem for problem in found if problem]:
        raise ValueError(". ".join(problems))


def observation_problem(space: gym.Space[Any]) -> str | None:
    """Returns why RLlib's default networks cannot take an observation, or None if they can."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) in (_VECTOR, _IMAGE):
        return None
    return (
        "observations should be a Box of one dimension, or of three (images), for RLlib's default "
        f"networks, found {shown(space)}: flatten them in the environment with "
        "`gymnasium.wrappers.FlattenObservation`, or on their way to the module with RLlib's "
        f"`FlattenObservations` in `env_to_module_connector`, {_OWN_MODULE}"
    )


def action_problem(space: gym.Space[Any]) -> str | None:
    """Returns why RLlib's default module cannot draw an action, or None if it can."""
    unfit = [leaf for leaf in _leaves(space) if not _can_be_drawn(leaf)]
    if not unfit:
        return None
    part = "" if unfit[0] is space else f" in {shown(space)}"
    return (
        "actions should be Discrete, MultiDiscrete or a Box of floats, each of at most one "
        "dimension, or a Dict or Tuple of those, for RLlib's default module, found "
        f"{shown(unfit[0])}{part}: turn them into one of those in a wrapper of the environment, "
        f"{_OWN_MODULE} and an action distribution"
    )


def _leaves(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    if isinstance(space, gym.spaces.Dict):
        return [leaf for part in space.values() for leaf in _leaves(part)]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for part in space for leaf in _leaves(part)]
    return [space]


def _can_be_drawn(space: gym.Space[Any]) -> bool:
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.nvec.ndim == 1
    if isinstance(space, gym.spaces.Box):
        return len(space.shape) <= 1 and np.issubdtype(space.dtype, np.floating)
    return isinstance(space, gym.spaces.Discrete)
