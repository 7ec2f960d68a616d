"""Generalized advantage estimation and the standardisation of advantages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.postprocessing.zero_padding import (
    split_and_zero_pad_n_episodes,
    unpad_data_if_necessary,
)

AdvantageNormalization = Literal["worker", "batch", "none"]
MIN_STD = 1e-4  # As in stock RLlib's standardisation.


def chunk_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    *,
    terminated: np.ndarray,
    gamma: float,
    lambda_: float,
) -> np.ndarray:
    """Returns the GAE advantages of C chunks, all at once (Schulman et al. 2016, eq. 16).

    A number that is not finite stays within its chunk.

    Args:
        rewards: [steps], chunk after chunk.
        values: [steps + C]: value predictions, of each chunk one more than it has steps.
        lengths: [C], steps of each chunk, >= 1.
        terminated: [C]: whether the last step ended the episode: then nothing is bootstrapped.
        gamma: Discount factor.
        lambda_: GAE's decay.

    Returns:
        [steps], float32, computed in float64.
    """
    if not len(lengths):
        return np.zeros(0, np.float32)
    chunk_of = np.repeat(np.arange(len(lengths)), lengths)
    now = np.arange(len(chunk_of)) + chunk_of
    values = values.astype(np.float64)
    following = values[now + 1]
    following[(np.cumsum(lengths) - 1)[terminated]] = 0.0
    decay = gamma * lambda_
    # Time runs down the table, a column per chunk; past a chunk's end stand zeros.
    is_step = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(is_step.shape[::-1])
    with np.errstate(over="ignore", invalid="ignore"):  # Such a worker is dropped.
        table.T[is_step] = rewards + gamma * following - values[now]
        # A_t = delta_t + gamma lambda A_{t+1}.
        for time in range(len(table) - 2, -1, -1):
            table[time] += decay * table[time + 1]
        return table.T[is_step].astype(np.float32)


class EpisodeAdvantages(ConnectorV2):
    """Learner connector: adds advantages (not standardised) and value targets to the batch.

    Takes the place of RLlib's `GeneralAdvantageEstimation`, which standardises over all workers
    and counts the artificial row at the end of each episode chunk in its mean and deviation.
    Those rows get advantage 0 here and are masked out of everything by `loss_mask`.

    Args:
        gamma: Discount factor.
        lambda_: GAE's decay.
        compute_values: (module, its batch) -> value predictions; None: the module's own.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        gamma: float,
        lambda_: float,
        compute_values: Callable[[Any, dict[str, Any]], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma = gamma
        self.lambda_ = lambda_
        self._compute_values = compute_values

    def __call__(  # noqa: D102
        self, *, rl_module: Any, episodes: list[Any], batch: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        lengths = [len(episode) for episode in self.single_agent_episode_iterator(episodes)]
        for module_id, module_batch in batch.items():
            module = rl_module[module_id].unwrapped()
            if isinstance(module, ValueFunctionAPI):
                self._add_advantages(module, module_batch, lengths)
        return batch

    def _add_advantages(self, module: Any, batch: dict[str, Any], lengths: list[int]) -> None:
        with torch.no_grad():
            if self._compute_values is None:
                prediction = module.compute_values(batch)
            else:
                prediction = self._compute_values(module, batch)

        def column(data: Any) -> np.ndarray:
            return np.asarray(unpad_data_if_necessary(lengths, convert_to_numpy(data)))

        values, rewards = column(prediction), column(batch[Columns.REWARDS])
        terminateds = column(batch[Columns.TERMINATEDS])
        advantages = np.zeros(len(values), np.float32)
        ends = np.cumsum(lengths) - 1  # The artificial rows, which hold the bootstrap values.
        is_step = np.ones(len(values), np.bool_)
        is_step[ends] = False
        advantages[is_step] = chunk_advantages(
            rewards[is_step],
            values,
            np.array(lengths) - 1,
            terminated=terminateds[ends - 1].astype(np.bool_),
            gamma=self.gamma,
            lambda_=self.lambda_,
        )
        for key, data in (
            (Postprocessing.ADVANTAGES, advantages),
            (Postprocessing.VALUE_TARGETS, (advantages + values).astype(np.float32)),
        ):
            if module.is_stateful():
                rows = split_and_zero_pad_n_episodes(
                    data, episode_lens=lengths, max_seq_len=module.model_config["max_seq_len"]
                )
                data = np.stack(rows, axis=0)
            batch[key] = torch.from_numpy(data).to(prediction.device)


def moments(
    values: torch.Tensor, owner: torch.Tensor | None = None, *, num_groups: int = 1
) -> torch.Tensor:
    """Returns number, mean and sum of squared deviations of the values of each group.

    A group's numbers depend on its own values and their order only, to the last bit.

    Args:
        values: [rows].
        owner: [rows] int64, the group of each value; None: all are of one group.
        num_groups: Number of groups; some may be empty, and have zeros.

    Returns:
        [num_groups, 3] float64.
    """
    values = values.double()
    if owner is None:
        owner = torch.zeros(len(values), dtype=torch.int64, device=values.device)

    def sums(of: torch.Tensor) -> torch.Tensor:
        return of.new_zeros(num_groups).index_add_(0, owner, of)

    count = sums(torch.ones_like(values))
    mean = sums(values) / count.clamp_min(1)
    squares = sums((values - mean[owner]).square_())
    return torch.stack([count, mean, squares], dim=1)


def pooled(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance (population) of the union of some groups (Chan et al. 1979).

    The order of the rows alone decides the rounding, not who computed them.

    Args:
        parts: [N, 3], the `moments` of each group; those of empty groups are 0.
    """
    count, mean, squares = parts.unbind(1)
    total = count.sum().clamp_min(1)
    overall = (count * mean).sum() / total
    return overall, (squares.sum() + (count * (mean - overall).square()).sum()) / total


def standardize(
    advantages: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """Returns advantages with mean 0 and standard deviation 1 (population), in their own dtype.

    Args:
        advantages: [rows] or [sequences, time].
        mean: What to subtract, in a shape that fits.
        variance: Its square root is divided by, `MIN_STD` at least.
    """
    std = variance.sqrt().clamp_min(MIN_STD)
    return ((advantages.double() - mean) / std).to(advantages.dtype)
