"""PPO's loss, one value per worker, from one forward pass over all workers' rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tree
from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_KL_KEY,
    LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY,
)
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY, Learner
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.modules import defining_class
from rllib_weighted.learning.interfaces import ModuleSettings, RoundLearner, TrainedModule

_PARTS = {
    "policy": POLICY_LOSS_KEY,
    "value": VF_LOSS_KEY,
    "value_unclipped": LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY,
    "entropy": ENTROPY_KEY,
    "kl": LEARNER_RESULTS_KL_KEY,
}
PART_NAMES = ("total", *_PARTS)


@dataclass(frozen=True)
class WorkerLosses:
    """Losses of N workers, each the mean over that worker's own rows. All [N].

    Args:
        total: What is differentiated.
        policy: Clipped surrogate loss (its negative is maximised); None if unknown.
        value: Clipped value loss, before its coefficient; None if unknown. With its graph, where
            `total` has one and the loss is PPO's own.
        value_unclipped: Value loss before clipping; None if unknown.
        entropy: Entropy of the policy, nats; None if unknown.
        kl: KL divergence from the sampling policy, nats; None if unknown.
    """

    total: Tensor
    policy: Tensor | None = None
    value: Tensor | None = None
    value_unclipped: Tensor | None = None
    entropy: Tensor | None = None
    kl: Tensor | None = None

    @property
    def parts(self) -> list[Any]:  # Any: the first is a tensor, the others may be None.
        """All of them, in the order of `PART_NAMES`."""
        return [getattr(self, name) for name in PART_NAMES]

    def part(self, name: str) -> Tensor:
        """Returns the loss named "total", "policy" or "value"."""
        part: Tensor | None = getattr(self, name)
        if part is None:
            raise ValueError(
                f'merge_options["loss"]="{name}" needs a loss that reports its {name} part, but '
                "this learner's custom loss does not log it: call `super()."
                'compute_loss_for_module()` in it, or use merge_options={"loss": "total"}.'
            )
        return part

    def detached(self) -> WorkerLosses:
        """Returns the same numbers without a graph."""
        parts: list[Any] = [None if part is None else part.detach() for part in self.parts]
        return WorkerLosses(*parts)

    def take(self, indices: Sequence[int]) -> WorkerLosses:
        """Returns the losses of some of the workers, by their positions."""
        index = list(indices)
        taken: list[Any] = [None if part is None else part[index] for part in self.parts]
        return WorkerLosses(*taken)

    @staticmethod
    def join(losses: Sequence[WorkerLosses]) -> WorkerLosses:
        """Joins the losses of several groups of workers; a part that one lacks is unknown."""
        parts = zip(*(each.parts for each in losses), strict=True)
        joined: list[Any] = [
            None if any(part is None for part in found) else torch.cat(found) for found in parts
        ]
        return WorkerLosses(*joined)


def segment_means(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns the mean of each run of rows.

    Args:
        values: [rows, C], the rows of segment 0, then those of segment 1, …
        sizes: Rows per segment, each >= 1; they add up to `rows`.

    Returns:
        [len(sizes), C].
    """
    if len(set(sizes)) == 1:
        return values.view(len(sizes), sizes[0], -1).mean(dim=1)
    lengths = torch.tensor(sizes, device=values.device)
    index = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), lengths)
    sums = values.new_zeros(len(sizes), values.shape[1]).index_add(0, index, values)
    return sums / lengths[:, None]


def ppo_worker_losses(
    *,
    module: Any,  # An RLModule: RLlib finds its methods at run time.
    settings: ModuleSettings,
    batch: dict[str, Any],
    fwd_out: dict[str, Any],
    sizes: Sequence[int],
    entropy_coeff: float | Tensor,
    kl_coeff: float | Tensor,
) -> WorkerLosses:
    """Computes the loss of RLlib's PPO (Schulman et al. 2017) for each worker.

    Args:
        module: The RLModule, unwrapped.
        settings: The module's settings.
        batch: Columns of [rows, …], worker after worker, real steps only.
        fwd_out: The module's `forward_train` output on it; with `Columns.VF_PREDS`, its value
            predictions are taken from there.
        sizes: Rows per worker.
        entropy_coeff: Current entropy coefficient.
        kl_coeff: Current KL coefficient.
    """
    policy = module.get_train_action_dist_cls().from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
    advantages = batch[Postprocessing.ADVANTAGES]
    ratio = torch.exp(policy.logp(batch[Columns.ACTIONS]) - logp_of_actions(batch))
    clipped = torch.clamp(ratio, 1 - settings.clip_param, 1 + settings.clip_param)
    surrogate = torch.min(advantages * ratio, advantages * clipped)
    entropy = policy.entropy()
    zero = torch.zeros_like(surrogate)
    error = zero
    if settings.use_critic:
        values = fwd_out.get(Columns.VF_PREDS)
        if values is None:
            values = module.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
        error = (values - batch[Postprocessing.VALUE_TARGETS]).square()
    value = torch.clamp(error, 0, settings.vf_clip_param)
    kl = zero
    if settings.use_kl_loss:
        before = module.get_exploration_action_dist_cls().from_logits(
            batch[Columns.ACTION_DIST_INPUTS]
        )
        kl = before.kl(policy)
    rows = torch.stack([-surrogate, value, error, entropy, kl], dim=1)
    means = segment_means(rows, sizes).unbind(1)
    policy_loss, value_loss, unclipped, mean_entropy, mean_kl = means
    total = policy_loss + settings.vf_loss_coeff * value_loss - entropy_coeff * mean_entropy
    if settings.use_kl_loss:
        total = total + kl_coeff * mean_kl
    return WorkerLosses(
        total=total,
        policy=policy_loss.detach(),
        value=value_loss,
        value_unclipped=unclipped.detach(),
        entropy=mean_entropy.detach(),
        kl=mean_kl.detach(),
    )


def logp_of_actions(columns: dict[str, Any]) -> Tensor:
    """Returns the log-probabilities of the actions, [rows], under the policy that took them.

    Raises:
        ValueError: If the policy has not said them.
    """
    if Columns.ACTION_LOGP not in columns:
        raise ValueError(
            f"the rollouts should hold `{Columns.ACTION_LOGP}`, the log-probability of each action "
            "under the policy that took it, which PPO's loss divides by; found none: let "
            "`forward_exploration` (or the connector that draws the actions) return it beside "
            f"`{Columns.ACTIONS}`, or return `{Columns.ACTION_DIST_INPUTS}` alone, from which "
            "RLlib draws both"
        )
    logp: Tensor = columns[Columns.ACTION_LOGP]
    return logp


def why_not_stock_loss(learner: RoundLearner, module_id: str) -> str | None:
    """Returns why PPO's loss cannot be computed for all workers at once; None if it can."""
    return first_reason(STOCK_LOSS, TrainedModule(learner, module_id))


STOCK_LOSS: tuple[Requirement[TrainedModule], ...] = (
    required(
        "RLlib's `compute_loss_for_module`",
        lambda s: defining_class(type(s.learner), "compute_loss_for_module") is PPOTorchLearner,
        "the learner overrides `compute_loss_for_module`",
    ),
    required(
        "RLlib's `compute_losses`",
        lambda s: defining_class(type(s.learner), "compute_losses") is Learner,
        "the learner overrides `compute_losses`",
    ),
    required(
        "a module without recurrent state",
        lambda s: not s.module.is_stateful(),
        "the module is a recurrent one",
    ),
    required(
        "a module without a loss of its own",
        lambda s: not isinstance(s.module, SelfSupervisedLossAPI),
        "the module has a loss of its own",
    ),
)


def losses_one_by_one(
    learner: Any,  # RLlib's: `compute_losses` and a metrics logger.
    module_id: str,
    columns: dict[str, Any],
    fwd_out: dict[str, Any],
    sizes: Sequence[int],
) -> WorkerLosses:
    """Calls a learner's own `compute_losses` once per worker, on that worker's rows.

    For recurrent modules and custom losses. One forward pass, N losses.

    Args:
        learner: The learner.
        module_id: The module's id.
        columns: Columns of [rows, …], worker after worker.
        fwd_out: The module's `forward_train` output on them.
        sizes: Rows per worker.

    Returns:
        The total losses, and the parts that the loss logs under RLlib's names.
    """
    totals: list[Tensor] = []
    parts: dict[str, list[Any]] = {name: [] for name in _PARTS}
    num_rows, start = sum(sizes), 0
    for size in sizes:
        rows = slice(start, start + size)
        start += size
        own = _slice_rows(columns, rows, num_rows)
        try:
            losses = learner.compute_losses(
                fwd_out={module_id: _slice_rows(fwd_out, rows, num_rows)}, batch={module_id: own}
            )
        except KeyError as error:
            if error.args == (Columns.ACTION_LOGP,):
                logp_of_actions(own)
            raise
        totals.append(losses[module_id])
        for name, key in _PARTS.items():
            is_logged = (module_id, key) in learner.metrics
            parts[name].append(learner.metrics.peek((module_id, key)) if is_logged else None)
    total = torch.stack(totals)
    return WorkerLosses(total, **{name: _stack(found, total) for name, found in parts.items()})


def _slice_rows(columns: dict[str, Any], rows: slice, num_rows: int) -> dict[str, Any]:
    def cut(column: Any) -> Any:
        has_rows = isinstance(column, Tensor) and column.ndim and column.shape[0] == num_rows
        return column[rows] if has_rows else column

    infos = columns.get(Columns.INFOS)
    cuts = {k: tree.map_structure(cut, v) for k, v in columns.items() if k != Columns.INFOS}
    if infos is not None:
        # Those of sequences are lists themselves; RLlib's loss gets them one after the other.
        own = [info if isinstance(info, list) else [info] for info in infos[rows]]
        cuts[Columns.INFOS] = list(itertools.chain.from_iterable(own))
    return cuts


def _stack(values: list[Any], like: Tensor) -> Tensor | None:
    if any(value is None for value in values):
        return None
    return torch.stack([torch.as_tensor(value).detach().to(like) for value in values])
