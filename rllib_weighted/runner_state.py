"""What the driver sends to env runners: weights, connector states, the lifetime step counter."""

from __future__ import annotations

from typing import Any

from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_LEARNER,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
)
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO


def pipelines(algorithm: Any) -> tuple[Any, Any]:
    """Returns the driver's connector pipelines: the local env runner's, if there is one."""
    return (
        getattr(algorithm.env_runner, "_env_to_module", algorithm.env_to_module_connector),
        getattr(algorithm.env_runner, "_module_to_env", algorithm.module_to_env_connector),
    )


def connector_states(algorithm: Any) -> dict[str, Any]:
    """Returns the states of the driver's connector pipelines, as env runners take them."""
    env_to_module, module_to_env = pipelines(algorithm)
    return {
        COMPONENT_ENV_TO_MODULE_CONNECTOR: env_to_module.get_state(),
        COMPONENT_MODULE_TO_ENV_CONNECTOR: module_to_env.get_state(),
    }


def collect_runner_state(algorithm: Any, *, env_steps: int) -> dict[str, Any]:
    """Returns the state that env runners need for the next round.

    Args:
        algorithm: The algorithm.
        env_steps: Environment steps sampled so far.
    """
    component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
    learner = algorithm.learner_group.get_state(components=component, inference_only=True)
    kept = {COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO}
    state = {key: value for key, value in learner[COMPONENT_LEARNER].items() if key in kept}
    state[NUM_ENV_STEPS_SAMPLED_LIFETIME] = env_steps
    if algorithm.config.broadcast_env_runner_states and algorithm.config.merge_env_runner_states:
        state |= connector_states(algorithm)
    return state
