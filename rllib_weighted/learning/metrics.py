"""The learner's metrics, under RLlib's own names, written once per round."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_KL_KEY,
    LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY,
    LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY,
)
from ray.rllib.core.learner.learner import (
    DEFAULT_OPTIMIZER,
    ENTROPY_KEY,
    POLICY_LOSS_KEY,
    VF_LOSS_KEY,
    Learner,
)
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.numpy import SMALL_NUMBER
from torch import Tensor

from rllib_weighted.learning.advantages import pooled
from rllib_weighted.learning.losses import WorkerLosses


def log_losses(metrics: Any, module_id: str, losses: WorkerLosses) -> None:
    """Logs the losses of the round's last step, averaged over its workers.

    Parts that are unknown (a custom loss need not log them) are left alone.
    """
    parts = {
        Learner.TOTAL_LOSS_KEY: losses.total.detach(),
        POLICY_LOSS_KEY: losses.policy,
        VF_LOSS_KEY: losses.value,
        LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY: losses.value_unclipped,
        ENTROPY_KEY: losses.entropy,
        LEARNER_RESULTS_KL_KEY: losses.kl,
    }
    for key, part in parts.items():
        if part is not None:
            metrics.log_value((module_id, key), part.mean().item(), window=1)


def log_gradient_norm(metrics: Any, module_id: str, norm: float) -> None:
    """Logs the merged gradient's norm before clipping, at the round's last step, as RLlib does."""
    key = f"gradients_{DEFAULT_OPTIMIZER}_global_norm"
    metrics.log_value((module_id, key), norm, window=1)


def log_explained_variance(metrics: Any, module_id: str, parts: Tensor) -> None:
    """Logs how much of the value targets' variance the value function explains, as RLlib does.

    Args:
        metrics: The learner's metrics logger.
        module_id: The module's id.
        parts: [N, 6]: of each worker, the `moments` of its targets and of what is left of them.
    """
    (_, of_targets), (_, of_rest) = pooled(parts[:, :3]), pooled(parts[:, 3:])
    share = max(-1.0, 1.0 - float(of_rest / (of_targets + SMALL_NUMBER)))
    metrics.log_value((module_id, LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY), share, window=1)


def log_steps(
    metrics: Any, module_id: str, *, weights_version: int, num_steps: int, minibatch_steps: float
) -> None:
    """Logs the environment steps that the round trained on.

    Args:
        metrics: The learner's metrics logger.
        module_id: The module's id.
        weights_version: Version of the module's weights after the round.
        num_steps: Environment steps of this learner's workers, times the passes over them.
        minibatch_steps: Mean environment steps per optimizer step, over all learners.
    """
    metrics.log_value((module_id, WEIGHTS_SEQ_NO), weights_version, window=1)
    metrics.log_value((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), minibatch_steps, window=1)
    for owner, this_round, lifetime in (
        (module_id, NUM_MODULE_STEPS_TRAINED, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        (ALL_MODULES, NUM_MODULE_STEPS_TRAINED, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        (ALL_MODULES, NUM_ENV_STEPS_TRAINED, NUM_ENV_STEPS_TRAINED_LIFETIME),
    ):
        metrics.log_value((owner, this_round), num_steps, reduce="sum")
        metrics.log_value((owner, lifetime), num_steps, reduce="lifetime_sum", with_throughput=True)
