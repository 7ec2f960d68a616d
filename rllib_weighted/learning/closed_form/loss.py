"""PPO's loss and its derivatives, row by row (Schulman et al. 2017, eq. 9)."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from rllib_weighted.core.modules import Networks
from rllib_weighted.learning.interfaces import ModuleSettings
from rllib_weighted.learning.losses import logp_of_actions


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


@dataclass(frozen=True)
class RowColumns:
    """What the loss reads, as one matrix [rows, …] of floats, and which columns are what.

    One matrix, so that rows are put into the order of an epoch by one operation. Observations that
    only the module itself can read (images) keep their shape and type beside it.
    """

    values: Tensor
    slices: dict[str, slice]
    obs: Tensor | None = None

    @classmethod
    def pack(cls, columns: dict[str, Any], *, networks: Networks, use_kl_loss: bool) -> RowColumns:
        """Packs a round's columns; discrete actions become one-hot rows."""
        obs, dtype = columns[Columns.OBS], columns[Postprocessing.ADVANTAGES].dtype
        if networks.floats is not None:
            obs = networks.floats(obs)
        actions = columns[Columns.ACTIONS]
        if networks.distribution == "categorical":
            num_actions = columns[Columns.ACTION_DIST_INPUTS].shape[-1]
            actions = F.one_hot(actions.long(), num_actions)
        pieces = {
            Columns.ACTIONS: actions,
            Columns.ACTION_LOGP: logp_of_actions(columns).unsqueeze(1),
            Postprocessing.ADVANTAGES: columns[Postprocessing.ADVANTAGES].unsqueeze(1),
            Postprocessing.VALUE_TARGETS: columns[Postprocessing.VALUE_TARGETS].unsqueeze(1),
        }
        if use_kl_loss:
            pieces[Columns.ACTION_DIST_INPUTS] = columns[Columns.ACTION_DIST_INPUTS]
        if networks.is_dense:
            pieces, dtype = {Columns.OBS: obs, **pieces}, obs.dtype
        slices, width = {}, 0
        for name, piece in pieces.items():
            slices[name] = slice(width, width + piece.shape[1])
            width += piece.shape[1]
        values = torch.cat([piece.to(dtype) for piece in pieces.values()], 1)
        return cls(values, slices, None if networks.is_dense else obs)

    def take(self, index: Tensor) -> RowColumns:
        """Returns some rows, in the order of the index."""
        obs = None if self.obs is None else self.obs.index_select(0, index)
        return RowColumns(self.values.index_select(0, index), self.slices, obs)

    def room_for(self, num_rows: int) -> RowColumns:
        """Returns zeros of the same columns and types."""
        obs = None if self.obs is None else self.obs.new_zeros(num_rows, *self.obs.shape[1:])
        return RowColumns(self.values.new_zeros(num_rows, self.values.shape[1]), self.slices, obs)

    def take_into(self, target: RowColumns, index: Tensor) -> None:
        """Writes some rows, in the order of the index, where they have room."""
        torch.index_select(self.values, 0, index, out=target.values)
        if self.obs is not None and target.obs is not None:
            torch.index_select(self.obs, 0, index, out=target.obs)

    def cut(self, start: int, stop: int) -> RowColumns:
        """Returns a run of rows, without a copy."""
        obs = None if self.obs is None else self.obs[start:stop]
        return RowColumns(self.values[start:stop], self.slices, obs)

    def __getitem__(self, name: str) -> Tensor:
        """Returns a column, [rows, size]; advantages, targets and log-probabilities as [rows]."""
        if name == Columns.OBS and self.obs is not None:
            return self.obs
        columns = self.values[:, self.slices[name]]
        is_flat = name not in (Columns.OBS, Columns.ACTIONS, Columns.ACTION_DIST_INPUTS)
        return columns.squeeze(1) if is_flat else columns


class PPOLoss:
    """The five parts of every row's loss, and the derivatives of their weighted sum.

    Args:
        settings: The module's settings.
        networks: Says what the policy outputs are.
        entropy_coeff: Current entropy coefficient.
        kl_coeff: Current KL coefficient.
        like: A tensor of the parameters' dtype and device.

    Attributes:
        mix: [5]: the total loss is this times the parts.
    """

    def __init__(
        self,
        settings: ModuleSettings,
        networks: Networks,
        *,
        entropy_coeff: float,
        kl_coeff: float,
        like: Tensor,
    ) -> None:
        self._clip = settings.clip_param
        self._value_clip = math.inf if settings.vf_clip_param is None else settings.vf_clip_param
        self._value_coeff = settings.vf_loss_coeff
        # What the derivatives by a row's entropy and KL are multiplied by; None: they are 0.
        self._by_entropy: float | Tensor | None = -entropy_coeff or None
        self._by_kl: float | Tensor | None = kl_coeff if settings.use_kl_loss and kl_coeff else None
        self._networks = networks
        self._zero = like.new_zeros(())
        self.mix = like.new_tensor(
            [1.0, self._value_coeff, 0.0, self._by_entropy or 0.0, self._by_kl or 0.0]
        )

    def follow(self, mix: Tensor) -> None:
        """Takes entropy and KL coefficient from a vector like `mix` that changes between passes.

        What is 0 now stays out.
        """
        self.mix = mix
        self._by_entropy = None if self._by_entropy is None else mix[3]
        self._by_kl = None if self._by_kl is None else mix[4]

    def forward(self, rows: RowColumns, outputs: Tensor, values: Tensor) -> Tensor:
        """Returns the parts of every row's loss, [5, rows], and keeps what `backward` needs.

        Args:
            rows: Columns of these rows.
            outputs: Inputs of the action distributions, [rows, inputs].
            values: Predicted values, [rows].
        """
        self._policy = policy = self._policy_of(rows, outputs)
        advantages = rows[Postprocessing.ADVANTAGES]
        ratio = (policy.logp - rows[Columns.ACTION_LOGP]).exp_()
        self._plain = advantages * ratio
        self._clipped = ratio.clamp_(1 - self._clip, 1 + self._clip).mul_(advantages)
        surrogate = torch.min(self._plain, self._clipped)
        self._error = values - rows[Postprocessing.VALUE_TARGETS]
        self._square = self._error.square()
        kl = torch.zeros_like(surrogate) if policy.kl is None else policy.kl
        return torch.stack(
            [
                surrogate.neg_(),
                self._square.clamp(max=self._value_clip),
                self._square,
                policy.entropy,
                kl,
            ]
        )

    def backward(
        self, factors: Tensor, value_factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the gradient of a weighted sum of the rows' losses by the outputs and the values.

        Args:
            factors: [rows], of the policy's part of each row's loss.
            value_factors: [rows], of the value function's part; None: the same.
        """
        value_factors = factors if value_factors is None else value_factors
        # Of two equal terms autograd takes half of each gradient: where nothing was clipped.
        is_plain = self._plain <= self._clipped
        # A ratio beyond all numbers gives NaN, as in autograd: the reference drops its worker.
        by_logp = (self._plain * is_plain).mul_(factors).neg_()
        is_inside = self._square <= self._value_clip
        by_value = torch.where(is_inside, self._error, self._zero).mul_(value_factors)
        by_value.mul_(2 * self._value_coeff)
        by_outputs = self._policy.backward(
            by_logp,
            None if self._by_entropy is None else factors * self._by_entropy,
            None if self._by_kl is None else factors * self._by_kl,
        )
        return by_outputs, by_value

    def _policy_of(self, rows: RowColumns, outputs: Tensor) -> Policy:
        actions = rows[Columns.ACTIONS]
        before = None
        if Columns.ACTION_DIST_INPUTS in rows.slices:
            before = rows[Columns.ACTION_DIST_INPUTS]
        if self._networks.distribution == "categorical":
            return Categorical(outputs, actions, before)
        mean, log_std = outputs.chunk(2, dim=-1)
        sampled = None
        if before is not None:
            mean_before, log_std_before = before.chunk(2, dim=-1)
            sampled = mean_before, log_std_before
        return DiagonalGaussian(mean, log_std, actions, sampled)
