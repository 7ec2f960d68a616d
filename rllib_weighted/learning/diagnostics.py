"""Measures what `merging/diagnostics.py` estimates from: half-batch gradients of every worker."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest
from rllib_weighted.core.seeding import Stream, generator, torch_generator
from rllib_weighted.learning.gradients import GradientRows, WorkerGradients
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.signal_memory import Values, values_of
from rllib_weighted.learning.steps import Round
from rllib_weighted.merging import Diagnostics, GradientSums, diagnose, merge
from rllib_weighted.merging.strategies import BUILT_IN, PREDICTED

_BLOCK = 1 << 26  # Numbers of a matrix of gradients that are held at once.
_PARTS = ("total", "policy", "value")
_Halves: TypeAlias = tuple[int, np.ndarray, np.ndarray]  # A worker, and the rows of its halves.
_Measured: TypeAlias = tuple[list[int], GradientRows, GradientRows]


def measure_gradients(
    round: Round, request: UpdateRequest, signals: Mapping[str, Values]
) -> tuple[Diagnostics | None, dict[str, Values]]:
    """Returns what the workers' gradients say at the parameters as they are, before a first step.

    Collective: all learners call it.

    Args:
        round: The round, its advantages as they are trained on.
        request: How the round is merged.
        signals: Those known so far; what strategies would make of them is predicted.

    Returns:
        The diagnostics of the workers whose gradients could be measured, and their signals; None
        and nothing if there are none.
    """
    halves = [half_batches(round, request, worker) for worker in round.own]
    measured = [
        (worker, *pair) for worker, pair in zip(round.own, halves, strict=True) if pair is not None
    ]
    gradients = WorkerGradients(round)
    size = max(1, _BLOCK // max(1, gradients.num_parameters))
    blocks = _Blocks(
        gradients,
        [measured[i : i + size] for i in range(0, len(measured), size)],
        in_parts=request.predicts_gains,
    )
    rows, totals = _tables(round, blocks)
    workers = [worker for worker in round.workers if rows[worker, -1] > 0]
    if not workers:
        return None, {}
    rows = rows[workers]
    sums = {part: _sums(rows[:, 4 * i : 4 * i + 4], totals[i]) for i, part in enumerate(_PARTS)}
    plain = diagnose(sums["total"])
    measured_signals = gradient_signals(workers, plain)
    if not request.predicts_gains:
        return plain, measured_signals
    losses = {"loss": values_of(workers, rows[:, -3])}
    weights = predicted_weights(request, workers, {**signals, **losses, **measured_signals})
    found = {part: diagnose(sums[part], weights) for part in _PARTS}
    parts = {part: found[part] for part in _PARTS[1:]} if bool(rows[:, -2].all()) else {}
    total = dataclasses.replace(found["total"], parts=parts)
    return total, measured_signals


def half_batches(
    round: Round, request: UpdateRequest, worker: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns two random halves of a worker's rows; None if it has too few.

    Halves of one size, step by step; or, as the config has it, of whole episodes (and pieces of
    them), which are independent of each other. Then the noise is no lower bound any more, but a
    worker with a single episode in the round cannot be measured.
    """
    rows, chunks = round.batch.rows[worker], round.batch.chunks
    stream = generator(request.root_seed, Stream.HALVES, worker, request.round)
    if round.learner.config.merge_diagnostics_halves == "episodes" and chunks is not None:
        own = chunks[rows]
        drawn = stream.permutation(np.unique(own))
        if len(drawn) < 2:
            return None
        is_first = np.isin(own, drawn[: len(drawn) // 2])
        return rows[is_first], rows[~is_first]
    half = len(rows) // 2
    if not half:
        return None
    shuffled = stream.permutation(rows)
    return shuffled[:half], shuffled[half : 2 * half]


def gradient_signals(workers: list[int], found: Diagnostics) -> dict[str, Values]:
    """Returns the signals of gradients, of all workers that were measured."""
    columns = {
        "gradient_noise": found.noises,
        "gradient_spread": [found.spread] * len(workers),
        "gradient_agreement": found.agreements,
    }
    return {
        name: values_of(workers, torch.tensor(values, dtype=torch.float64))
        for name, values in columns.items()
    }


def predicted_weights(
    request: UpdateRequest, workers: list[int], signals: Mapping[str, Values]
) -> dict[str, Tensor]:
    """Returns the weights that each strategy would give these workers, by its name in `PREDICTED`.

    The run's own strategy has the run's options, where it is one of `BUILT_IN`.
    """
    found = {}
    for name, default in PREDICTED.items():
        is_own = type(request.strategy) is BUILT_IN.get(name)
        strategy = request.strategy if is_own else default
        given = {
            signal: [signals.get(signal, {}).get(worker, math.nan) for worker in workers]
            for signal in strategy.signals or ("return",)
        }
        min_weight = request.min_weight if is_own else None
        drawn = torch_generator(request.root_seed, Stream.HALVES, request.round)
        found[name] = merge(strategy, given, min_weight=min_weight, generator=drawn).weights
    return found


class _Blocks:
    """Half-batch gradients, some workers at a time; those of a single block are kept."""

    def __init__(
        self, gradients: WorkerGradients, blocks: list[list[_Halves]], *, in_parts: bool
    ) -> None:
        self._in_parts = in_parts
        self._gradients = gradients
        self._blocks = blocks
        self.num_parameters = gradients.num_parameters
        self._kept: list[_Measured] | None = None

    def __iter__(self) -> Iterator[_Measured]:
        if self._kept is not None:
            yield from self._kept
            return
        found = []
        for block in self._blocks:
            workers = [worker for worker, _, _ in block]
            first, second = (
                self._gradients.of(
                    Minibatch.of({worker: halves[i] for worker, *halves in block}),
                    in_parts=self._in_parts,
                )
                for i in (0, 1)
            )
            found = [(workers, first, second)]
            yield found[0]
        if len(self._blocks) == 1:
            self._kept = found


def _tables(round: Round, blocks: _Blocks) -> tuple[Tensor, Tensor]:
    """Sums up over all learners.

    Returns:
        [N, 15]: the four rows of `GradientSums` for each of `_PARTS`, the loss, whether its parts
        are known, whether the worker was measured at all. And [3], the parts' `total`.
    """
    size = blocks.num_parameters
    sums = torch.zeros(2, 2, size, dtype=torch.float64, device=round.learner.device)
    for _, *halves in blocks:
        is_sound = _is_sound(halves)
        for half, rows in zip(sums, halves, strict=True):
            kept = slice(None) if bool(is_sound.all()) else is_sound
            half += torch.stack([part[kept].sum(0) for part in _parts_of(rows)])
    sums = round.learner.collectives.sum(sums)
    workers: list[int] = []
    own = [sums.new_zeros(0, 15)]
    for block, first, second in blocks:
        workers += block
        is_sound = _is_sound([first, second]).unsqueeze(1)
        own.append(torch.where(is_sound, _rows(first, second, sums), 0.0))
    table = round.learner.collectives.of_workers(workers, torch.cat(own))
    overall = sums.mean(0)  # [policy and value, P]
    totals = torch.stack([overall.sum(0), *overall]).square().sum(1)
    return table.cpu(), totals.cpu()


def _sums(rows: Tensor, total: Tensor) -> GradientSums:
    noise, squares, dots, ahead = rows.unbind(1)
    return GradientSums(noise, squares, dots, ahead, total)


def _rows(first: GradientRows, second: GradientRows, sums: Tensor) -> Tensor:
    pairs = [(first.total, second.total), *zip(_parts_of(first), _parts_of(second), strict=True)]
    overall = [sums.sum(1), *sums.unbind(1)]  # Of each part: [halves, P].
    columns = []
    for (a, b), (all_a, all_b) in zip(pairs, overall, strict=True):
        rows = GradientSums.of_rows(a, b, all_a, all_b)
        columns += [rows.noise, rows.squares, rows.dots, rows.ahead]
    loss = (first.losses.total + second.losses.total).double() / 2
    known = torch.full_like(loss, float(first.value is not None))
    return torch.stack([*columns, loss, known, torch.ones_like(loss)], dim=1)


def _parts_of(rows: GradientRows) -> tuple[Tensor, Tensor]:
    value = torch.zeros_like(rows.policy) if rows.value is None else rows.value
    return rows.policy, value


def _is_sound(halves: list[GradientRows]) -> Tensor:
    """[n]: which workers' gradients are finite."""
    sums = [rows.total.sum(1) + rows.losses.total for rows in halves]
    return torch.isfinite(torch.stack(sums)).all(0)
