from __future__ import annotations

import pytest
import torch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_weighted.learning.advantages import moments
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.metrics import log_explained_variance, log_losses, log_steps


def peek(metrics):
    return metrics.peek(("module",))


def test_losses_are_means_over_the_workers():
    metrics = MetricsLogger(root=False)
    log_losses(
        metrics,
        "module",
        WorkerLosses(
            total=torch.tensor([1.0, 3.0], requires_grad=True),
            policy=torch.tensor([0.0, 1.0]),
            kl=torch.tensor([0.25, 0.75]),
        ),
    )
    found = peek(metrics)
    assert found == {"total_loss": 2.0, "policy_loss": 0.5, "mean_kl_loss": 0.5}
    log_losses(metrics, "module", WorkerLosses(total=torch.tensor([5.0])))
    assert peek(metrics)["total_loss"] == 5.0  # the last step's, no average with the one before


# Worker 0: targets 0, 4, errors -1, 1. Worker 1: target 2, error 0. All: variances 8/3 and 2/3.
def test_explained_variance_is_over_all_workers_whoever_holds_them():
    parts = torch.stack(
        [
            torch.cat(
                [moments(torch.tensor([0.0, 4.0]))[0], moments(torch.tensor([-1.0, 1.0]))[0]]
            ),
            torch.zeros(6, dtype=torch.float64),  # Sent nothing.
            torch.cat([moments(torch.tensor([2.0]))[0], moments(torch.tensor([0.0]))[0]]),
        ]
    )
    metrics = MetricsLogger(root=False)
    log_explained_variance(metrics, "module", parts)
    assert peek(metrics)["vf_explained_var"] == pytest.approx(0.75)


def test_steps_of_the_round_and_of_the_lifetime():
    metrics = MetricsLogger(root=True)
    for _ in range(2):
        log_steps(metrics, "module", weights_version=3, num_steps=60, minibatch_steps=15.0)
    found = peek(metrics)
    assert found["module_train_batch_size_mean"] == 15
    assert found["num_module_steps_trained"] == 120
    assert metrics.peek(("__all_modules__", "num_env_steps_trained_lifetime")) == 120
    log_steps(metrics, "module", weights_version=4, num_steps=0, minibatch_steps=0.0)
    assert peek(metrics)["module_train_batch_size_mean"] == 0
