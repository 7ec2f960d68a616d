"""Two rules of the literature that the package does not have, to see whether they earn their place.

One decides once per epoch, the other for every parameter. Both look at each worker's own gradient
and keep the average's weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from rllib_weighted.core.messages import UpdateRequest
from rllib_weighted.learning import update
from rllib_weighted.learning.gradients import WorkerGradients
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import Minibatch
from rllib_weighted.learning.steps import Round, SharedSteps

_SMOOTHING = 0.8  # Of agreements: what is kept of the rounds before.


def agreement(rows: Tensor) -> float:
    """Returns the mean over workers of the cosine of g_i and the others' mean, of rows [N, P]."""
    others = rows.sum(0) - rows
    return float(torch.nn.functional.cosine_similarity(rows, others, dim=1).mean())


def signal_to_noise(rows: Tensor) -> Tensor:
    """Returns r = m^2 / (m^2 + v / N), [P]: m and v are means and variances over rows, [N, P].

    After arXiv 2309.13681, where they scale the gradient; where both are 0, r is 0.
    """
    squares = rows.mean(0).square()
    noise = rows.var(0) / len(rows)
    return squares / (squares + noise).clamp_min(torch.finfo(rows.dtype).tiny)


class AgreeingSteps(SharedSteps):
    """A round ends before the first epoch in which the workers no longer agree.

    Before each epoch but the first, `agreement` is measured over the whole batch. It has a moving
    average over the rounds for each epoch; at 0 or below it, the round has taken its last step.
    """

    def take_all(self, minibatches: Iterable[Minibatch]) -> WorkerLosses | None:
        """Takes the steps of the epochs that are left; see `Steps.take_all`."""
        rows_per_epoch = sum(map(len, self._round.batch.rows.values()))
        averages: list[float] = self._learner.agreements
        losses, seen = None, 0
        for minibatch in minibatches:
            epoch, rest = divmod(seen, rows_per_epoch)
            if epoch and not rest and self._disagree(epoch, averages):
                break
            seen += sum(minibatch.sizes)
            taken = self.take(minibatch)
            losses = losses if taken is None else taken
        return losses

    def _disagree(self, epoch: int, averages: list[float]) -> bool:
        everything = Minibatch.of(self._round.batch.rows)
        now = agreement(WorkerGradients(self._round).of(everything).total)
        if epoch > len(averages):
            averages.append(now)
        else:
            before = averages[epoch - 1]
            averages[epoch - 1] = _SMOOTHING * before + (1 - _SMOOTHING) * now
        return averages[epoch - 1] <= 0


class SignalToNoiseSteps(SharedSteps):
    """The optimizer's update of each parameter times `signal_to_noise`, divided by its mean.

    Scaling the gradients would not do: Adam divides each parameter's by their size. With a mean of
    1, the step is as large as it was, and only its direction changes.
    """

    def take(self, minibatch: Minibatch) -> WorkerLosses | None:
        """Moves the parameters once; see `Steps.take`."""
        gradients = WorkerGradients(self._round)
        factors = signal_to_noise(gradients.of(minibatch).total)
        parameters = dict(self._round.module.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        losses = super().take(minibatch)
        if losses is not None:
            factors = factors / factors.mean()
            with torch.no_grad():
                for name, factor in gradients.named(factors).items():
                    old = before[name]
                    parameters[name].copy_(old + factor * (parameters[name] - old))
        return losses


class _TriedLearner(WeightedPPOLearner):
    """Takes its rounds' steps in a way of its own; for one learner with the stock loss."""

    steps: ClassVar[type[SharedSteps]]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.agreements: list[float] = []

    def update(self, **kwargs: Any) -> Any:
        """See `WeightedPPOLearner.update`."""

        def make(round: Round, request: UpdateRequest) -> SharedSteps:
            return self.steps(round)

        with mock.patch.object(update, "make_steps", make):
            return super().update(**kwargs)


class AgreeingLearner(_TriedLearner):
    """With `AgreeingSteps`."""

    steps = AgreeingSteps


class SignalToNoiseLearner(_TriedLearner):
    """With `SignalToNoiseSteps`."""

    steps = SignalToNoiseSteps


LEARNERS = {"agreement": AgreeingLearner, "signal to noise": SignalToNoiseLearner}
"""What `Arm.learner` may name."""
