"""A round's steps on a GPU: each one is a CUDA graph that is replayed, and nobody waits for it.

A step of a small network is some hundred kernels of a few microseconds each; to launch them one by
one takes many times as long as to run them, and every look at a number waits for all of them. Here
a step reads and writes buffers that stay where they are, so that it is captured once per shape and
replayed. Whether its losses and gradients were finite is kept on the device and looked at once,
after the last step: from the first step that was not on, nothing has moved, and the rest of the
round is taken step by step.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from rllib_weighted.core.modules import Networks
from rllib_weighted.learning.adam import FlatAdam, Rows
from rllib_weighted.learning.closed_form.loss import RowColumns
from rllib_weighted.learning.closed_form.steps import (
    ClosedFormSteps,
    make_arithmetic,
    make_loss,
    segment_mean_matrix,
)
from rllib_weighted.learning.interfaces import RoundLearner, on_cpu
from rllib_weighted.learning.losses import PART_NAMES, WorkerLosses
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.round_weights import QuickLoss
from rllib_weighted.learning.steps import Round, Steps
from rllib_weighted.merging import Merge, quick_weights

logger = logging.getLogger(__name__)

_MOST_PROGRAMS = 8  # Shapes of minibatches that are kept captured; each has its own memory.
_ROUND_UP = 32  # Rows: minibatches of nearly the same size share a program.
_WARM_UPS = 3  # Passes before a capture: libraries allocate their workspaces in the first ones.


def captures(learner: RoundLearner) -> bool:
    """Whether a learner's closed-form steps are captured: on a GPU."""
    return not on_cpu(learner)


class CapturedSteps(Steps):
    """Steps whose weights are known before the round, or follow from each worker's loss alone.

    Args:
        round: The round of the only learner.
        networks: What is known of the module.
        adam: The parameters.
        plain: Takes the same steps one by one: what is not finite is left to it.
    """

    def __init__(
        self, round: Round, networks: Networks, adam: FlatAdam, plain: ClosedFormSteps
    ) -> None:
        super().__init__(round)
        self._networks, self._adam, self._plain = networks, adam, plain

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """See `Steps.take`."""
        return self.take_all([minibatch])

    def take_all(self, minibatches: Iterable[Minibatch]) -> WorkerLosses | None:
        """See `Steps.take_all`."""
        pending, rows = list(minibatches), self._plain.rows
        quick = self._merger.quick_loss
        if not pending or rows is None or not (quick or self._merger.is_fixed):
            return self._plain.take_all(pending)
        fixed = None if quick else self._merger.weigh_before(self._workers)
        program = self._learner.programs.of(self._round, self._networks, self._adam, pending)
        program.start(self._round, self._networks, fixed and fixed[1])
        taken = program.run(pending, rows)
        self._plain.last_norm = taken.norm
        losses = None
        for signals, merged, losses in taken.steps(fixed):
            self._merger.record(self._workers, signals, merged, losses)
        rest = self._plain.take_all(pending[len(taken) :])
        return losses if rest is None else rest

    def losses_of_round(self) -> WorkerLosses:
        """See `Steps.losses_of_round`."""
        return self._plain.losses_of_round()

    def finish(self) -> None:
        """See `Steps.finish`."""
        self._plain.finish()


class Programs:
    """What a learner has captured so far."""

    def __init__(self) -> None:
        self._adam: FlatAdam | None = None
        self._programs: OrderedDict[Hashable, StepProgram] = OrderedDict()

    def adam(
        self, parameters: Mapping[str, Tensor], optimizer: Optimizer, rows: Rows = slice(None)
    ) -> FlatAdam:
        """Returns the parameters' flat form, the same in every round; see `FlatAdam`."""
        if self._adam is None or not self._adam.is_of(parameters, optimizer, rows):
            self._programs.clear()
            self._adam = FlatAdam(parameters, optimizer, rows)
        return self._adam

    def of(
        self, round: Round, networks: Networks, adam: FlatAdam, minibatches: Sequence[Minibatch]
    ) -> StepProgram:
        """Returns the program for the steps of a round."""
        shape = _Shape.of(round, adam, minibatches)
        if shape not in self._programs:
            while len(self._programs) >= _MOST_PROGRAMS:
                self._programs.popitem(last=False)
            self._programs[shape] = StepProgram(round, networks, adam, shape)
        self._programs.move_to_end(shape)
        return self._programs[shape]


@dataclass(frozen=True)
class _Shape:
    """All that a program has for good; another one of these is another program.

    Args:
        num_workers: n.
        num_rows: Rows of a pass; steps with fewer are filled up.
        num_steps: Steps that it has room to note.
        quick: How weights follow from losses; None: they are given.
        has_value_weights: Whether the value function's part of the loss has its own.
        settings: What PPO's loss, clipping and Adam read.
    """

    num_workers: int
    num_rows: int
    num_steps: int
    quick: QuickLoss | None
    has_value_weights: bool
    settings: tuple[Any, ...]

    @classmethod
    def of(cls, round: Round, adam: FlatAdam, minibatches: Sequence[Minibatch]) -> _Shape:
        sizes = {minibatch.sizes for minibatch in minibatches}
        if adam.is_stacked:
            num_rows = len(round.workers) * _rounded(max(map(max, sizes)))
        else:
            num_rows = _rounded(max(map(sum, sizes)))
        settings, group = round.settings, _group(round)
        return cls(
            num_workers=len(round.workers),
            num_rows=num_rows,
            num_steps=_rounded(len(minibatches)),
            quick=round.merger.quick_loss,
            has_value_weights=round.merger.has_value_weights,
            settings=(
                *(settings.clip_param, settings.vf_clip_param, settings.vf_loss_coeff),
                *(settings.grad_clip, settings.grad_clip_by),
                *(group["betas"], group["eps"]),
                round.learner.entropy_coeff(round.module_id) != 0,
                settings.use_kl_loss and round.learner.kl_coeff(round.module_id) != 0,
            ),
        )


def _rounded(number: int) -> int:
    """Rows and steps of nearly the same number share a program."""
    return -(-number // _ROUND_UP) * _ROUND_UP


def _group(round: Round) -> Mapping[str, Any]:
    group: Mapping[str, Any] = round.learner.get_optimizer(round.module_id).param_groups[0]
    return group


class StepProgram:
    """One optimizer step as a function of buffers that stay where they are.

    Args:
        round: A round like those to come.
        networks: What is known of the module.
        adam: The parameters.
        shape: What stays as it is.
    """

    def __init__(self, round: Round, networks: Networks, adam: FlatAdam, shape: _Shape) -> None:
        like = adam.parameters
        self._adam, self._shape, self._group = adam, shape, dict(_group(round))
        loss = make_loss(round, networks, adam)
        self._mix = loss.mix.clone()
        loss.follow(self._mix)
        self._arithmetic = make_arithmetic(round, networks, adam, loss)

        def room(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=like.device)

        self._input: RowColumns | None = None
        self._means = like.new_zeros(shape.num_workers, shape.num_rows)
        self._weights = room(shape.num_workers)
        self._value_weights = room(shape.num_workers) if shape.has_value_weights else None
        self._lr, self._min_weight = room(), room()
        self._counts = room(len(adam.counts))
        self._go = torch.ones((), dtype=torch.bool, device=like.device)
        self._done = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._norm = like.new_zeros(like.shape[1] if adam.is_stacked else 1)
        self._table = room(shape.num_steps, 3 + len(PART_NAMES), shape.num_workers)
        self._layouts: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._replay = Replay(self._step, like.device)

    def start(self, round: Round, networks: Networks, fixed: Merge | None) -> None:
        """Takes what a round has of its own: coefficients, learning rate, weights.

        Args:
            round: The round.
            networks: What is known of the module.
            fixed: The weights; None: they follow from the losses.
        """
        self._mix.copy_(make_loss(round, networks, self._adam).mix)
        self._lr.fill_(float(_group(round)["lr"]))
        self._min_weight.fill_(round.merger.min_weight_of(self._shape.num_workers))
        self._counts.copy_(torch.tensor(self._adam.counts, dtype=torch.float64))
        if fixed is not None:
            self._weights.copy_(fixed.weights)
            if self._value_weights is not None and fixed.value_weights is not None:
                self._value_weights.copy_(fixed.value_weights)
        self._done.zero_()

    def run(self, minibatches: Sequence[Minibatch], rows: RowColumns) -> _Taken:
        """Takes steps up to the first that is not finite; waits for the device once.

        Args:
            minibatches: One per step.
            rows: All rows of the round.
        """
        if self._input is None:
            self._input = rows.room_for(self._shape.num_rows)
        self._go.fill_(False)  # What is tried before a capture moves nothing.
        self._replay.prepare()
        self._go.fill_(True)
        order = index = None
        for minibatch in minibatches:
            if index is None or order is not minibatch.order:
                order = minibatch.order
                index = torch.from_numpy(order).to(self._table.device)
            places, means = self._layout(minibatch.sizes)
            rows.take_into(self._input, index[minibatch.start : minibatch.stop][places])
            self._means.copy_(means)
            self._replay()
        done = int(self._done)
        self._adam.counts = [count + done for count in self._adam.counts]
        norm = self._norm.clone() if done == len(minibatches) else None
        return _Taken(self._table[:done].clone(), norm)

    def _step(self) -> None:
        """The step itself: no branch on a number, nothing read by the host."""
        assert self._input is not None
        total, parts = self._arithmetic.losses(self._input, self._means)
        signals, shares, weights, fine = self._weigh(total, parts)
        gradients, finite = self._arithmetic.gradients(self._means, weights, self._value_weights)
        are_finite = torch.isfinite(total).all() & torch.isfinite(finite).all()
        self._go.logical_and_(are_finite & fine)
        self._adam.step_if(self._go, gradients, self._group, self._lr, self._counts)
        self._norm.copy_(finite)
        row = torch.cat([torch.stack([signals, shares, weights]), total[None].double(), parts])
        self._table.index_copy_(0, self._done, row[None])
        self._done.add_(self._go)
        self._counts.add_(self._go)

    def _weigh(self, total: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns signals, shares and weights, [n] each, and whether they are plain, []."""
        quick = self._shape.quick
        if quick is None:
            return self._weights, self._weights, self._weights, self._go
        index = PART_NAMES.index(quick.part)
        signals = (parts[index - 1] if index else total).double()
        return (signals, *quick_weights(signals, quick.from_lowest, self._min_weight))

    def _layout(self, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Returns which rows of a minibatch fill the buffer, [rows], and each worker's mean."""
        if sizes not in self._layouts:
            num_rows, num_workers = self._shape.num_rows, len(sizes)
            width = num_rows // num_workers if self._adam.is_stacked else num_rows
            starts = np.concatenate([[0], np.cumsum(sizes)])
            places = np.zeros(num_rows, np.int64)
            real = np.arange(starts[-1])
            if self._adam.is_stacked:
                owner = np.repeat(np.arange(num_workers), sizes)
                real = owner * width + real - starts[owner]
            places[real] = np.arange(starts[-1])
            means = self._means.new_zeros(num_workers, num_rows)
            dense = segment_mean_matrix(sizes, like=means)
            means[:, torch.from_numpy(real).to(means.device)] = dense
            self._layouts[sizes] = torch.from_numpy(places).to(means.device), means
        return self._layouts[sizes]


@dataclass(frozen=True)
class _Taken:
    """What a program did: [steps, 3 + losses, n], and the last gradient's norm.

    On the device, as is what the plain steps note after it.
    """

    table: Tensor
    norm: Tensor | None

    def __len__(self) -> int:
        return len(self.table)

    def steps(
        self, fixed: tuple[Tensor, Merge] | None
    ) -> Iterator[tuple[Tensor, Merge, WorkerLosses]]:
        """Yields signals, weights and losses of every step."""
        for signals, shares, weights, *losses in self.table:
            known = (signals, Merge(shares, weights)) if fixed is None else fixed
            yield (*known, WorkerLosses(*losses))


class Replay:
    """A function of fixed buffers, as a CUDA graph where there is a GPU; else as it is.

    Args:
        function: Takes nothing, returns nothing, reads no number of the device.
        device: Where it computes.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_prepared = device.type != "cuda"

    def prepare(self) -> None:
        """Captures the function, once; it is called some times on the way.

        Where it cannot be captured, the log says so, and it is called as it is.
        """
        if self._is_prepared:
            return
        self._is_prepared = True
        graph = torch.cuda.CUDAGraph()
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._function()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self._function()
        except RuntimeError as error:
            logger.warning(
                "A step could not be captured as a CUDA graph, its kernels are launched one by "
                "one, which is slower: %s",
                error,
            )
            return
        self._graph = graph

    def __call__(self) -> None:
        """Calls the function."""
        if self._graph is None:
            self._function()
        else:
            self._graph.replay()
