"""One round in one learner: agree with the others on its size, take its steps, log what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor
from torch.optim import Optimizer

from rllib_weighted.core.messages import UpdateRequest, UpdateResult
from rllib_weighted.core.modules import Networks
from rllib_weighted.learning.adam import FlatAdam, Rows, has_one_step_count
from rllib_weighted.learning.advantages import pooled
from rllib_weighted.learning.aggregated_steps import AggregatedSteps
from rllib_weighted.learning.batch import WORKER_COLUMN, RoundBatch, predict_values
from rllib_weighted.learning.closed_form.captured import CapturedSteps, captures
from rllib_weighted.learning.closed_form.steps import ClosedFormSteps
from rllib_weighted.learning.diagnostics import measure_gradients
from rllib_weighted.learning.interfaces import RoundLearner
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.metrics import log_explained_variance, log_losses, log_steps
from rllib_weighted.learning.minibatches import minibatches, num_minibatches
from rllib_weighted.learning.round_signals import BATCH_SIGNALS, RewardSums, batch_signals
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.learning.signal_memory import Values
from rllib_weighted.learning.steps import PerWorkerSteps, Round, SharedSteps, Steps
from rllib_weighted.merging import Diagnostics, TorchJD


def update_round(
    learner: RoundLearner,
    request: UpdateRequest,
    module_id: str,
    batch: RoundBatch,
    rewards: RewardSums,
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
        rewards: Worker -> steps and sum of rewards in the batch, before any scaling.
        num_epochs: Passes over the data.
        minibatch_size: Environment steps per optimizer step, over all workers; None: all.
        shuffle: Whether each worker's rows are shuffled in every epoch.
    """
    merger = RoundWeights(request, learner.signals)
    batch.drop(request.invalid)
    for worker, reason in batch.drop_non_finite_workers().items():
        merger.drop(worker, reason)
    # All learners know the sizes of all workers' batches, and so how many steps there are: none
    # waits for a step that another does not take.
    sizes = torch.tensor(list(batch.sizes.values()), dtype=torch.float64).view(-1, 2)
    num_rows, num_steps = learner.collectives.of_workers(list(batch.rows), sizes).long().T.tolist()
    workers = [worker for worker, rows in enumerate(num_rows) if rows]
    round = Round(learner, module_id, batch, merger, workers)
    per_epoch = num_minibatches(num_rows, sum(num_steps), minibatch_size)
    diagnostics, gradient_signals = _measure(round, request, rewards)
    steps = make_steps(round, request)
    if merger.needs_round_losses and round.workers:
        merger.set_round_losses(round.workers, steps.losses_of_round())
    losses = steps.take_all(
        minibatches(
            batch.rows,
            per_epoch=per_epoch,
            num_epochs=num_epochs,
            shuffle=shuffle,
            seed=request.root_seed,
            round=request.round,
        )
    )
    steps.finish()
    if losses is not None:
        _log_losses(round, losses)
    # Step counts add up over the learners; all else is the same on each.
    log_steps(
        learner.metrics,
        module_id,
        weights_version=learner.weights_version,
        num_steps=batch.num_steps * num_epochs,
        minibatch_steps=sum(num_steps) / per_epoch if num_epochs else 0.0,
    )
    return dataclasses.replace(
        merger.result(),
        diagnostics=diagnostics,
        gradient_signals={name: dict(values) for name, values in gradient_signals.items()},
    )


def _measure(
    round: Round, request: UpdateRequest, rewards: RewardSums
) -> tuple[Diagnostics | None, dict[str, Values]]:
    """Measures what the merges need before the first step; standardises the advantages.

    Returns:
        What was measured of gradients, None in a round that does not; and their signals as they
        were last measured.
    """
    merger, signals = round.merger, {"return": request.reward_signals, **request.episode_signals}
    if request.measures_gradients or merger.needs(BATCH_SIGNALS):
        measured = batch_signals(round, rewards)
        merger.take(measured)
        signals |= measured
    _standardize_advantages(round)
    if not request.measures_gradients:
        return None, round.learner.signals.gradients
    diagnostics, measured = measure_gradients(round, request, signals)
    round.learner.signals.keep(request.round, measured)
    merger.take(measured)
    return diagnostics, round.learner.signals.gradients


def make_steps(round: Round, request: UpdateRequest) -> Steps:
    """Returns the closed-form steps of a round where they are possible, else autograd's."""
    if isinstance(request.strategy, TorchJD):
        return AggregatedSteps(round, request.strategy, request)
    learner, parameters = round.learner, round.learner.per_worker
    reference = SharedSteps(round) if parameters is None else PerWorkerSteps(round, parameters)
    networks = learner.closed_form_networks
    if networks is None:
        return reference
    if parameters is not None:
        rows = parameters.rows_of(round.own)
        return _closed_form(
            round, reference, networks, parameters.stacked, parameters.optimizer, rows
        )
    shared = dict(round.module.named_parameters())
    optimizer = learner.get_optimizer(module_id=round.module_id)
    if not has_one_step_count(shared.values(), optimizer):
        return reference
    return _closed_form(round, reference, networks, shared, optimizer)


def _closed_form(
    round: Round,
    reference: Steps,
    networks: Networks,
    parameters: Mapping[str, Tensor],
    optimizer: Optimizer,
    rows: Rows = slice(None),
) -> Steps:
    learner = round.learner
    if not captures(learner):
        adam = FlatAdam(parameters, optimizer, rows)
        return ClosedFormSteps(round, reference, networks, adam)
    adam = learner.programs.adam(parameters, optimizer, rows)
    plain = ClosedFormSteps(round, reference, networks, adam)
    return CapturedSteps(round, networks, adam, plain)


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
