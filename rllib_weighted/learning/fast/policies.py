"""Action distributions with their derivatives: what PPO's loss takes of them, row by row."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor


class Policy(abc.ABC):
    """A batch of action distributions, one per row.

    Attributes:
        logp: Log-probability of the actions taken, [rows], nats.
        entropy: [rows], nats.
        kl: KL divergence from the sampling policy to this one, [rows], nats; None if not asked.
    """

    logp: Tensor
    entropy: Tensor
    kl: Tensor | None = None

    @abc.abstractmethod
    def backward(self, logp: Tensor, entropy: Tensor | None, kl: Tensor | None) -> Tensor:
        """Returns the gradient of a loss by the distributions' inputs, [rows, inputs].

        Args:
            logp: The loss's derivative by each row's `logp`, [rows].
            entropy: By each row's `entropy`; None: 0.
            kl: By each row's `kl`; None: 0.
        """


class Categorical(Policy):
    """Softmax policies.

    Args:
        logits: [rows, actions].
        one_hot: The actions taken, [rows, actions].
        before: Logits that the actions were sampled with; None: no KL.
    """

    def __init__(self, logits: Tensor, one_hot: Tensor, before: Tensor | None) -> None:
        self._taken = one_hot
        self._log = torch.log_softmax(logits, -1)
        self._probs = self._log.exp()
        self.logp = (self._log * one_hot).sum(-1)
        self.entropy = (self._probs * self._log).sum(-1).neg_()
        if before is not None:
            log_before = torch.log_softmax(before, -1)
            self._probs_before = log_before.exp()
            self.kl = (self._probs_before * (log_before - self._log)).sum(-1)

    def backward(self, logp: Tensor, entropy: Tensor | None, kl: Tensor | None) -> Tensor:
        """See `Policy.backward`. dlogp_a/dz = 1_a - p; dH/dz = -p (log p + H); dKL/dz = p - q."""
        gradient = (self._taken - self._probs).mul_(logp.unsqueeze(-1))
        if entropy is not None:
            slope = (self._log + self.entropy.unsqueeze(-1)).mul_(self._probs)
            gradient.addcmul_(slope, entropy.unsqueeze(-1), value=-1)
        if kl is not None:
            gradient.addcmul_(self._probs - self._probs_before, kl.unsqueeze(-1))
        return gradient


class DiagonalGaussian(Policy):
    """Gaussian policies with independent entries.

    Args:
        mean: [rows, size].
        log_std: [rows, size].
        actions: [rows, size].
        before: (mean, log_std) that the actions were sampled with; None: no KL.
    """

    def __init__(
        self,
        mean: Tensor,
        log_std: Tensor,
        actions: Tensor,
        before: tuple[Tensor, Tensor] | None,
    ) -> None:
        size = mean.shape[-1]
        self._precision = (log_std * -2).exp_()
        self._scaled = (actions - mean).mul_(self._precision)
        self._square = (actions - mean).mul_(self._scaled)
        total = log_std.sum(-1)
        self.logp = self._square.sum(-1).mul_(-0.5) - total - 0.5 * size * math.log(2 * math.pi)
        self.entropy = total + 0.5 * size * (1 + math.log(2 * math.pi))
        if before is not None:
            mean_before, log_std_before = before
            self._shift = (mean - mean_before).mul_(self._precision)
            spread = (log_std_before * 2).exp_().addcmul_(mean - mean_before, mean - mean_before)
            self._relative = spread.mul_(self._precision)
            terms = log_std - log_std_before + self._relative.mul(0.5) - 0.5
            self.kl = terms.sum(-1)

    def backward(self, logp: Tensor, entropy: Tensor | None, kl: Tensor | None) -> Tensor:
        """See `Policy.backward`; the inputs are mean and log_std, [rows, 2 size]."""
        factor = logp.unsqueeze(-1)
        by_mean = self._scaled * factor
        by_log_std = (self._square - 1).mul_(factor)
        if entropy is not None:
            by_log_std.add_(entropy.unsqueeze(-1))
        if kl is not None:
            by_mean.addcmul_(self._shift, kl.unsqueeze(-1))
            by_log_std.addcmul_(1 - self._relative, kl.unsqueeze(-1))
        return torch.cat([by_mean, by_log_std], -1)
