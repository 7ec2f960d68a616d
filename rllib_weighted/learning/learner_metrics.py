"""The learner's metrics, under RLlib's own names, written once per round."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_KL_KEY,
    LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY,
    LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY,
)
from ray.rllib.core.learner.learner import (
    ENTROPY_KEY,
    POLICY_LOSS_KEY,
    VF_LOSS_KEY,
    Learner,
)
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.torch_utils import explained_variance

from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.round_batch import RoundBatch


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


def log_explained_variance(metrics: Any, module_id: str, module: Any, batch: RoundBatch) -> None:
    """Logs how much of the value targets' variance the updated value function explains."""
    columns = batch.take(batch.all_rows)
    with torch.no_grad():
        values = module.compute_values(columns)
        share = explained_variance(columns[Postprocessing.VALUE_TARGETS], values)
    metrics.log_value((module_id, LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY), float(share), window=1)


def log_steps(
    metrics: Any, module_id: str, *, weights_version: int, num_steps: int, num_minibatches: int
) -> None:
    """Logs the environment steps that the round trained on.

    Args:
        metrics: The learner's metrics logger.
        module_id: The module's id.
        weights_version: Version of the module's weights after the round.
        num_steps: Environment steps in all minibatches of the round, repeated ones counted.
        num_minibatches: Minibatches of the round.
    """
    metrics.log_value((module_id, WEIGHTS_SEQ_NO), weights_version, window=1)
    metrics.log_value(
        (module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), num_steps / max(1, num_minibatches), window=1
    )
    for owner, this_round, lifetime in (
        (module_id, NUM_MODULE_STEPS_TRAINED, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        (ALL_MODULES, NUM_MODULE_STEPS_TRAINED, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        (ALL_MODULES, NUM_ENV_STEPS_TRAINED, NUM_ENV_STEPS_TRAINED_LIFETIME),
    ):
        metrics.log_value((owner, this_round), num_steps, reduce="sum")
        metrics.log_value((owner, lifetime), num_steps, reduce="lifetime_sum", with_throughput=True)
