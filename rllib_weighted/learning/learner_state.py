"""What a learner saves besides RLlib's own state, and taking it back."""

from __future__ import annotations

import logging
from typing import Any

from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE

logger = logging.getLogger(__name__)

_KEY, _ACTORS = "weighted_ppo", "actors"


def own_state(learner: Any, *, whole: bool) -> dict[str, Any]:
    """Returns the KL coefficients and the step counter.

    Args:
        learner: The learner.
        whole: Whether the workers' own parameters belong to it: they are as large as N modules.
    """
    kl_coeffs = learner.curr_kl_coeffs_per_module
    own: dict[str, Any] = {
        "kl_coeffs": {key: coeff.item() for key, coeff in kl_coeffs.items()},
        "env_steps": learner.env_steps,
    }
    if whole:
        own[_ACTORS] = learner.actors.get_state() if learner.actors else None
    return {_KEY: own}


def without_foreign_optimizer(learner: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Returns the state without the optimizer's if that one steps other parameters.

    It does where the strategy has changed between shared parameters and one set per worker, or
    the number of workers that have their own.
    """
    if COMPONENT_OPTIMIZER not in state or _fits(learner, state):
        return state
    logger.warning(
        "The saved optimizer is that of another kind of merge, or of another number of workers "
        "with parameters of their own: going on from the saved policy with a new optimizer."
    )
    return {key: value for key, value in state.items() if key != COMPONENT_OPTIMIZER}


def _fits(learner: Any, state: dict[str, Any]) -> bool:
    actors = state.get(_KEY, {}).get(_ACTORS)
    return bool(learner.actors.fits(actors)) if learner.actors else actors is None


def set_own_state(learner: Any, state: dict[str, Any]) -> None:
    """Takes what `own_state` returned; the module and the optimizer have theirs already."""
    own = state.get(_KEY)
    if learner.actors:
        if _fits(learner, state):
            learner.actors.set_state(state[_KEY][_ACTORS])
        elif COMPONENT_RL_MODULE in state or _ACTORS in (own or {}):
            learner.actors.start_from_module()
    if own is None:
        return
    learner.env_steps = own["env_steps"]
    for module_id, coeff in own["kl_coeffs"].items():
        learner.curr_kl_coeffs_per_module[module_id].data.fill_(coeff)
    for module_id in learner.module.keys():  # noqa: SIM118 (an RLModule, not a dict)
        schedule = learner.entropy_coeff_schedulers_per_module[module_id]
        schedule.update(timestep=learner.env_steps)
    if not learner._lr_schedulers:
        # The optimizer's state brought the old rate along; a mutated one holds at once.
        for optimizer, schedule in learner._optimizer_lr_schedules.items():
            learner._set_optimizer_lr(optimizer, lr=schedule.update(timestep=learner.env_steps))
