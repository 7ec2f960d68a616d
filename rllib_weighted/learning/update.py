"""One round in one learner: agree with the others on its size, take its steps, log what it did."""

from __future__ import annotations

from typing import Any

import torch
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
from ray.rllib.utils.numpy import SMALL_NUMBER
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest, UpdateResult
from rllib_weighted.learning.advantages import pooled
from rllib_weighted.learning.batch import WORKER_COLUMN, RoundBatch, predict_values
from rllib_weighted.learning.closed_form.steps import ClosedFormPerWorkerSteps, ClosedFormSteps
from rllib_weighted.learning.interfaces import RoundLearner
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import minibatches, num_minibatches
from rllib_weighted.learning.parameters import FlatAdam, has_one_step_count
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.learning.steps import PerWorkerSteps, Round, SharedSteps, Steps

# The learner's metrics, under RLlib's own names, written once per round


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


def update_round(
    learner: RoundLearner,
    request: UpdateRequest,
    module_id: str,
    batch: RoundBatch,
    *,
    num_epochs: int,
    minibatch_size: int | None,
    shuffle: bool,
) -> UpdateResult:
    """Takes all optimizer steps of a round; returns what their merges did.

    Args:
        learner: The learner.
        request: How to merge.
        module_id: The module's id.
        batch: The rows of this learner's workers; there may be none.
        num_epochs: Passes over the data.
        minibatch_size: Environment steps per optimizer step, over all workers; None: all.
        shuffle: Whether each worker's rows are shuffled in every epoch.
    """
    merger = RoundWeights(request)
    batch.drop(request.invalid)
    for worker, reason in batch.drop_non_finite_workers().items():
        merger.drop(worker, reason)
    # All learners know the sizes of all workers' batches, and so how many steps there are: none
    # waits for a step that another does not take.
    sizes = _sizes_of_all(learner, batch, request.num_workers)
    round = Round(learner, module_id, batch, merger, list(sizes), request.num_workers)
    per_epoch = num_minibatches(
        [num_rows for num_rows, _ in sizes.values()],
        sum(num_steps for _, num_steps in sizes.values()),
        minibatch_size,
    )
    _standardize_advantages(round)
    steps = make_steps(round)
    if merger.needs_round_losses and round.workers:
        merger.set_round_losses(round.workers, steps.losses_of_round())
    losses = None
    for minibatch in minibatches(
        batch.rows,
        per_epoch=per_epoch,
        num_epochs=num_epochs,
        shuffle=shuffle,
        seed=request.root_seed,
        round=request.round,
    ):
        taken = steps.take(minibatch)
        losses = losses if taken is None else taken
    steps.finish()
    if losses is not None:
        _log_losses(round, losses)
    # Step counts add up over the learners; all else is the same on each.
    num_steps = sum(num_steps for _, num_steps in sizes.values())
    log_steps(
        learner.metrics,
        module_id,
        weights_version=learner.weights_version,
        num_steps=batch.num_steps * num_epochs,
        minibatch_steps=num_steps / per_epoch if num_epochs else 0.0,
    )
    return merger.report()


def make_steps(round: Round) -> Steps:
    """Returns the closed-form steps of a round where they are possible, else autograd's."""
    learner, parameters = round.learner, round.learner.per_worker
    reference = SharedSteps(round) if parameters is None else PerWorkerSteps(round, parameters)
    networks = learner.closed_form_networks
    if networks is None:
        return reference
    if parameters is not None:
        rows = parameters.rows_of(round.own)
        adam = FlatAdam(parameters.stacked, parameters.optimizer, rows)
        return ClosedFormPerWorkerSteps(round, reference, networks, adam)
    shared = dict(round.module.named_parameters())
    optimizer = learner.get_optimizer(module_id=round.module_id)
    if not has_one_step_count(shared.values(), optimizer):
        return reference
    return ClosedFormSteps(round, reference, networks, FlatAdam(shared, optimizer))


def _sizes_of_all(
    learner: RoundLearner, batch: RoundBatch, num_workers: int
) -> dict[int, tuple[int, int]]:
    """Returns rows and real steps of every worker of the round, whichever learner has it."""
    sizes = torch.tensor(list(batch.sizes.values()), dtype=torch.float64).view(-1, 2)
    table = learner.collectives.of_workers(list(batch.rows), sizes, num_workers=num_workers)
    return {w: (rows, steps) for w, (rows, steps) in enumerate(table.long().tolist()) if rows}


def _standardize_advantages(round: Round) -> None:
    mode, overall = round.learner.config.advantage_normalization, None
    if mode == "batch":
        own = torch.zeros(0, 3)
        if round.batch.rows:
            everything = round.batch.take(round.batch.all_rows)
            own = round.batch.moments(everything[Postprocessing.ADVANTAGES])
        overall = pooled(round.table(own))
    round.batch.standardize_advantages(mode, overall)


def _log_losses(round: Round, losses: WorkerLosses) -> None:
    metrics = round.learner.metrics
    log_losses(metrics, round.module_id, losses)
    if round.learner.has_stock_loss(round.module_id) and round.settings.use_critic:
        log_explained_variance(metrics, round.module_id, round.table(_value_moments(round)))


def _value_moments(round: Round) -> Tensor:
    """`moments` of each own worker's value targets, and of their prediction errors, [n, 6]."""
    batch = round.batch
    if not batch.rows:
        return torch.zeros(0, 6)
    columns = batch.take(batch.all_rows)
    targets = columns[Postprocessing.VALUE_TARGETS]
    columns[WORKER_COLUMN] = torch.tensor(list(batch.rows))[batch.owner]
    values = predict_values(round.learner, round.module_id, columns)
    return batch.moments(targets, targets - values)
