"""What a round uses of the learner and of its config; RLlib's own annotations do not say.

`WeightedPPOLearner` is the one implementation. Modules and metrics loggers stay untyped: RLlib
finds their attributes at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rllib_weighted.core.modules import Networks
    from rllib_weighted.learning.adam import ClipBy
    from rllib_weighted.learning.advantages import AdvantageNormalization
    from rllib_weighted.learning.batch import RoundBatch
    from rllib_weighted.learning.closed_form.captured import Programs
    from rllib_weighted.learning.collectives import Collectives
    from rllib_weighted.learning.losses import WorkerLosses
    from rllib_weighted.learning.minibatches import Minibatch
    from rllib_weighted.learning.parameters import PerWorkerParameters
    from rllib_weighted.learning.signal_memory import SignalMemory


Halves: TypeAlias = Literal["steps", "episodes"]


class ModuleSettings(Protocol):
    """Settings that RLlib keeps for each module, and PPO's loss and its optimizer read."""

    clip_param: float
    vf_clip_param: float | None
    vf_loss_coeff: float
    use_critic: bool
    use_kl_loss: bool
    grad_clip: float | None
    grad_clip_by: ClipBy
    fast_learner: bool
    log_gradients: bool


class LearnerSettings(Protocol):
    """Settings of the whole learner."""

    advantage_normalization: AdvantageNormalization
    fast_sampling: bool
    gamma: float
    lambda_: float
    merge_diagnostics_halves: Halves


class RoundLearner(Protocol):
    """The learner, as the steps of a round see it."""

    config: LearnerSettings
    collectives: Collectives
    per_worker: PerWorkerParameters | None
    module: Any
    metrics: Any
    device: torch.device
    weights_version: int
    checks_gradients: bool
    closed_form_networks: Networks | None
    programs: Programs
    signals: SignalMemory
    parameters_by_reference: dict[Any, Tensor]

    def module_settings(self, module_id: str) -> ModuleSettings:
        """Returns the settings of a module."""

    def has_stock_loss(self, module_id: str) -> bool:
        """Whether PPO's loss can be computed for all workers at once."""

    def entropy_coeff(self, module_id: str) -> float:
        """Returns the entropy coefficient of this round."""

    def kl_coeff(self, module_id: str) -> float:
        """Returns the KL coefficient of this round."""

    def worker_losses(
        self, module_id: str, batch: RoundBatch, minibatch: Minibatch, workers: Sequence[int]
    ) -> WorkerLosses:
        """Returns the losses of some workers on their rows of a minibatch, in their order."""

    def losses_of_rows(
        self,
        module_id: str,
        columns: dict[str, Any],
        fwd_out: dict[str, Any],
        sizes: Sequence[int],
    ) -> WorkerLosses:
        """Returns one loss per worker from the module's outputs on their rows."""

    def loss_gradients(self, module_id: str, loss: Tensor) -> dict[Any, Tensor]:
        """Returns parameter reference -> gradient of a loss."""

    def postprocess_gradients(self, gradients_dict: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """RLlib's: clips the gradients."""

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """RLlib's: steps the optimizers."""

    def get_optimizer(self, module_id: str) -> torch.optim.Optimizer:
        """RLlib's: returns the only optimizer of a module."""

    def get_optimizers_for_module(self, module_id: str) -> list[tuple[str, torch.optim.Optimizer]]:
        """RLlib's: returns all optimizers of a module, with their names."""


def on_cpu(learner: RoundLearner) -> bool:
    """Whether a learner computes on the CPU."""
    return str(learner.device).startswith("cpu")


@dataclass(frozen=True)
class TrainedModule:
    """A learner and the module that it trains.

    Args:
        learner: The learner.
        module_id: The module's id.
    """

    learner: RoundLearner
    module_id: str

    @property
    def module(self) -> Any:
        """The RLModule, unwrapped."""
        return self.learner.module[self.module_id].unwrapped()

    @property
    def settings(self) -> ModuleSettings:
        """Settings of the module."""
        return self.learner.module_settings(self.module_id)
