"""One round's data as tensors: real steps only, rows grouped by worker."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.connectors.common import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.connectors.learner import (
    AddColumnsFromEpisodesToTrainBatch,
    AddOneTsToEpisodesAndTruncate,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from rllib_weighted._private import learner_connectors
from rllib_weighted.core.eligibility import Requirement, first_reason, required
from rllib_weighted.core.modules import user_override
from rllib_weighted.core.rollouts import RolloutColumns
from rllib_weighted.learning.advantages import (
    AdvantageNormalization,
    chunk_advantages,
    moments,
    pooled,
    standardize,
)
from rllib_weighted.learning.connectors import EpisodeAdvantages, ScaleRewards
from rllib_weighted.learning.interfaces import RoundLearner

WORKER_COLUMN = "rllib_weighted_worker"
_CHUNK_COLUMN = "rllib_weighted_chunk"
# What comes from the environment first, what follows from it last. Not the policy's outputs: a
# model that masks actions has logits of minus infinity.
_CHECKED = (
    Columns.OBS,
    Columns.ACTIONS,
    Columns.ACTION_LOGP,
    Columns.REWARDS,
    Postprocessing.ADVANTAGES,
    Postprocessing.VALUE_TARGETS,
)
_NOT_FOR_TRAINING = (WORKER_COLUMN, _CHUNK_COLUMN, Columns.EPS_ID, "weights_seq_no")


@dataclass
class RoundBatch:
    """Columns of one module and who owns which rows.

    Args:
        columns: Name -> tensor, or nest of tensors, of [rows, …]. A row is one environment step,
            or one padded sequence of them if the module is recurrent. Infos, if the user's learner
            connectors add them, are a list of one per row, as in RLlib (of a sequence: a list).
        rows: Worker -> its row indices, int64; dropped workers have none.
        is_sequences: Whether a row is a sequence.
        chunks: [rows], which episode, or piece of one, a row is of; None: it is unknown.
    """

    columns: dict[str, Any]
    rows: dict[int, np.ndarray]
    is_sequences: bool
    chunks: np.ndarray | None = None

    @property
    def mask(self) -> Tensor | None:
        """[sequences, time]: which entries are real steps; None if all rows are."""
        return self.columns.get(Columns.LOSS_MASK) if self.is_sequences else None

    @property
    def all_rows(self) -> np.ndarray:
        """The rows of all workers that are left, worker after worker."""
        return np.concatenate([np.empty(0, np.int64), *self.rows.values()])

    @property
    def num_steps(self) -> int:
        """Real environment steps of all workers that are left."""
        return self._num_real(self.all_rows)

    @property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Worker -> its rows and its real environment steps."""
        return {w: (len(rows), self._num_real(rows)) for w, rows in self.rows.items()}

    def _num_real(self, rows: np.ndarray) -> int:
        if self.mask is None:
            return len(rows)
        return int(self.mask[torch.from_numpy(rows).to(self.mask.device)].sum())

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns the columns of the given rows."""
        return take_columns(self.columns, torch.from_numpy(indices))

    @property
    def owner(self) -> Tensor:
        """Whose each of `all_rows` is: the worker's position in `rows`, [rows] int64."""
        counts = torch.tensor([len(rows) for rows in self.rows.values()], dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self.rows)), counts)

    def moments(self, *columns: Tensor) -> Tensor:
        """Returns `moments` of every worker's real steps, [workers, 3] per column, side by side.

        Args:
            columns: In the order of `all_rows`: [rows], or [sequences, time].
        """
        owner = self.owner.to(columns[0].device)
        if self.mask is not None:
            mask = self.mask[torch.from_numpy(self.all_rows).to(self.mask.device)]
            owner = owner.unsqueeze(1).expand_as(mask)[mask]
            columns = tuple(column[mask] for column in columns)
        found = [moments(column, owner, num_groups=len(self.rows)) for column in columns]
        return torch.cat(found, dim=1)

    def standardize_advantages(
        self, mode: AdvantageNormalization, overall: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Standardises the advantages.

        Args:
            mode: Over what: "worker", "batch" or "none".
            overall: Mean and variance over the batch, for "batch"; None: over the rows here.
        """
        if mode == "none" or not self.rows:
            return
        advantages = self.columns[Postprocessing.ADVANTAGES].clone()
        index = torch.from_numpy(self.all_rows).to(advantages.device)
        taken = advantages[index]
        if mode == "worker":
            count, mean, squares = self.moments(taken).unbind(1)
            owner = self.owner.to(advantages.device)
            shape = (-1, *[1] * (taken.ndim - 1))  # A worker's rows may be sequences.
            mean, variance = (
                values[owner].view(shape) for values in (mean, squares / count.clamp_min(1))
            )
        else:
            mean, variance = pooled(self.moments(taken)) if overall is None else overall
        advantages[index] = standardize(taken, mean, variance)
        self.columns[Postprocessing.ADVANTAGES] = advantages

    def drop(self, workers: Iterable[int]) -> None:
        """Removes workers, as if they had never been there; unknown workers are ignored."""
        for worker in workers:
            self.rows.pop(worker, None)

    def drop_non_finite_workers(self) -> dict[int, str]:
        """Removes workers with NaN or infinite numbers in their rows; returns why."""
        non_finite: dict[int, str] = {}
        checked = [
            ("/".join([key, *map(str, path)]), column)
            for key in _CHECKED
            for path, column in tree.flatten_with_path(self.columns.get(key, ()))
        ]
        for name, column in checked:
            if not isinstance(column, Tensor) or not column.is_floating_point():
                continue
            if torch.isfinite(column).all():
                continue
            for worker, rows in self.rows.items():
                if not torch.isfinite(column[torch.from_numpy(rows).to(column.device)]).all():
                    non_finite.setdefault(worker, f"{name} has NaN or infinite entries")
        self.drop(non_finite)
        return non_finite


def tag_rows(workers: dict[int, list[SingleAgentEpisode]]) -> None:
    """Writes each episode's worker and number into columns that survive every connector."""
    numbered = enumerate((worker, e) for worker, episodes in workers.items() for e in episodes)
    for number, (worker, episode) in numbered:
        lookback = episode.rewards.lookback
        for column, tag in ((WORKER_COLUMN, worker), (_CHUNK_COLUMN, number)):
            tags = np.full(len(episode) + lookback, tag, np.int32)
            episode.extra_model_outputs[column] = InfiniteLookbackBuffer(tags, lookback=lookback)


def make_round_batch(
    columns: dict[str, Any], *, is_sequences: bool, unused: Sequence[str] = ()
) -> RoundBatch:
    """Groups the rows of a module's batch, as the learner connectors made it, by worker.

    Args:
        columns: Name -> tensors of [rows, …], among them the worker column and `loss_mask`. The
            artificial row at the end of every episode chunk is removed (in sequences: masked).
            Without a mask, every row is a real step.
        is_sequences: Whether the module is recurrent: a row is a zero-padded sequence.
        unused: Columns that the loss and the module do not read.

    Raises:
        ValueError: If the connectors have left the worker column out.
    """
    if WORKER_COLUMN not in columns:
        raise ValueError(
            f"The learner connectors should pass the column {WORKER_COLUMN!r} on, found "
            f"{sorted(columns)}: leave `add_default_connectors_to_learner_pipeline` at True, or "
            "put RLlib's `AddColumnsFromEpisodesToTrainBatch` into your pipeline."
        )
    tags = {
        name: (columns[name][:, 0] if is_sequences else columns[name]).cpu().numpy()
        for name in (WORKER_COLUMN, _CHUNK_COLUMN)
        if name in columns
    }
    mask = columns.get(Columns.LOSS_MASK)
    leave_out = {*_NOT_FOR_TRAINING, *unused}
    kept = {key: value for key, value in columns.items() if key not in leave_out}
    if is_sequences and Columns.INFOS in kept:
        kept[Columns.INFOS] = _by_sequence(kept[Columns.INFOS], columns[Columns.SEQ_LENS])
    if mask is None and is_sequences:
        first = next(c for c in tree.flatten(kept) if isinstance(c, Tensor))
        kept[Columns.LOSS_MASK] = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
    elif mask is not None and not is_sequences:
        real = torch.nonzero(mask).squeeze(-1)
        tags = {name: tag[real.cpu().numpy()] for name, tag in tags.items()}
        del kept[Columns.LOSS_MASK]
        kept = take_columns(kept, real)
    owner = tags[WORKER_COLUMN]
    rows = {int(w): np.flatnonzero(owner == w) for w in np.unique(owner)}
    return RoundBatch(kept, rows, is_sequences, tags.get(_CHUNK_COLUMN))


def _by_sequence(infos: list[dict[str, Any]], lengths: Tensor) -> list[list[dict[str, Any]]]:
    """Returns the infos of each sequence: RLlib pads all columns but this one."""
    left = iter(infos)
    return [list(itertools.islice(left, length)) for length in lengths.tolist()]


def take_columns(columns: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """Returns the rows of all columns."""
    taken = {name: take_rows(c, index) for name, c in columns.items() if name != Columns.INFOS}
    if Columns.INFOS in columns:
        taken[Columns.INFOS] = [columns[Columns.INFOS][row] for row in index.tolist()]
    return taken


def compute_by_owner(
    compute: Callable[[int, dict[str, Any]], Tensor], columns: dict[str, Any], owner: Tensor
) -> Tensor:
    """Computes one owner's rows after the other, as if all at once.

    A module may write into the columns that it is given, for its next forward pass (RLlib's action
    masking does): what it writes there is put together in `columns`.

    Args:
        compute: (owner, its columns) -> [its rows, …].
        columns: Columns of [rows, …].
        owner: [rows] int64.

    Returns:
        [rows, …].
    """
    outputs, parts, places = [], [], []
    written: set[str] = set()
    for worker in torch.unique(owner).tolist():
        rows = torch.nonzero(owner == worker).squeeze(1)
        given = take_columns(columns, rows)
        part = {name: _copied(column) for name, column in given.items()}
        outputs.append(compute(worker, part))
        written |= {name for name in {*given, *part} if not _is_same(name, given, part)}
        parts.append(part)
        places.append(rows)
    order = torch.argsort(torch.cat(places))

    def joined(*pieces: Any) -> Any:
        return torch.cat(pieces)[order] if isinstance(pieces[0], Tensor) else pieces[0]

    for name in written:
        found = [part[name] for part in parts if name in part]
        columns.pop(name, None)
        if found:
            columns[name] = tree.map_structure(joined, *found)
    return torch.cat(outputs)[order]


def _copied(column: Any) -> Any:
    """Returns a column whose nest, if it is one, can be changed without that of the original."""
    return tree.map_structure(lambda leaf: leaf, column) if isinstance(column, dict) else column


def _is_same(name: str, given: dict[str, Any], now: dict[str, Any]) -> bool:
    before, after = given.get(name), now.get(name)
    if not isinstance(before, dict) or not isinstance(after, dict):
        return before is after
    leaves = tree.flatten(before), tree.flatten(after)
    return len(leaves[0]) == len(leaves[1]) and all(map(operator.is_, *leaves))


def take_rows(columns: Any, index: Tensor) -> Any:
    """Returns the rows of a tensor, or of each in a nest; what is no tensor has no rows."""

    def select(column: Any) -> Any:
        return column[index.to(column.device)] if isinstance(column, Tensor) else column

    return tree.map_structure(select, columns)


# What the pipeline of a single-agent PPO is made of (tested with Ray 2.60), apart from
# `ScaleRewards`: what `column_batch` stands in for.
_FIRST = (AddOneTsToEpisodesAndTruncate,)
_LAST = (
    AddObservationsFromEpisodesToBatch,
    AddColumnsFromEpisodesToTrainBatch,
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    BatchIndividualItems,
    NumpyToTensor,
    EpisodeAdvantages,
)


def why_not_columns(learner: RoundLearner) -> str | None:
    """Returns what in a built learner needs episodes; None if columns are enough."""
    return first_reason(COLUMNS, learner)


def _modules(learner: RoundLearner) -> list[Any]:
    return [module.unwrapped() for module in learner.module.values()]


def _has_known_connectors(learner: RoundLearner) -> bool:
    pieces = learner_connectors(learner)
    customs = pieces[len(_FIRST) : len(pieces) - len(_LAST)]
    ends = pieces[: len(_FIRST)], pieces[len(pieces) - len(_LAST) :]
    are_known = [tuple(map(type, end)) for end in ends] == [_FIRST, _LAST]
    return are_known and len(customs) <= 1 and all(type(c) is ScaleRewards for c in customs)


COLUMNS: tuple[Requirement[RoundLearner], ...] = (
    required(
        "`fast_sampling`=True",
        lambda learner: learner.config.fast_sampling,
        "`fast_sampling`=False",
    ),
    required("one module", lambda learner: len(_modules(learner)) == 1, "several modules"),
    required(
        "a module with a value function and without recurrent state",
        lambda learner: all(
            isinstance(module, ValueFunctionAPI) and not module.is_stateful()
            for module in _modules(learner)
        ),
        "the module is a recurrent one, or has no value function",
    ),
    Requirement(
        "no override of the learner's `update`",
        lambda learner: user_override(type(learner), "update"),
    ),
    required(
        "RLlib's learner connectors, and `ScaleRewards` at most",
        _has_known_connectors,
        "custom learner connectors",
    ),
)


def column_batch(learner: RoundLearner, columns: RolloutColumns) -> tuple[str, RoundBatch]:
    """Returns the module's id and the same batch as the learner connectors make of episodes.

    One forward pass predicts the values of all observations, the bootstrap ones included.

    Args:
        learner: A learner for which `why_not_columns` is None.
        columns: The learner's workers' steps, worker after worker; one or more.
    """
    (module_id,) = learner.module.keys()
    lengths = columns.chunks["length"]
    names = {*columns.steps} - {Columns.REWARDS}
    batch: dict[str, Any] = convert_to_torch_tensor(
        {
            Columns.OBS: columns.obs,
            WORKER_COLUMN: np.repeat(columns.chunks["worker"], lengths + 1),
            **{name: columns.steps[name] for name in names},
            Columns.REWARDS: _rewards(learner, columns),
        },
        device=learner.device,
    )
    seen = {name: batch[name] for name in (Columns.OBS, WORKER_COLUMN)}
    values = predict_values(learner, module_id, seen)
    predictions = np.asarray(convert_to_numpy(values))
    advantages = chunk_advantages(
        np.asarray(convert_to_numpy(batch[Columns.REWARDS])),
        predictions,
        lengths,
        terminated=columns.chunks["terminated"],
        gamma=learner.config.gamma,
        lambda_=learner.config.lambda_,
    )
    # An observation's row in `obs`: one more per chunk before it than in `steps`.
    rows = np.arange(len(advantages)) + np.repeat(np.arange(len(lengths)), lengths)
    del batch[WORKER_COLUMN]
    index = torch.from_numpy(rows).to(batch[Columns.OBS].device)
    batch[Columns.OBS] = batch[Columns.OBS][index]
    targets = (advantages + predictions[rows]).astype(np.float32)
    batch[Postprocessing.ADVANTAGES] = torch.from_numpy(advantages).to(values.device)
    batch[Postprocessing.VALUE_TARGETS] = torch.from_numpy(targets).to(values.device)
    if not learner.has_stock_loss(module_id):
        ends = np.cumsum(lengths) - 1
        terminated, truncated = (np.zeros(len(advantages), np.bool_) for _ in range(2))
        terminated[ends] = columns.chunks["terminated"]
        truncated[ends] = ~terminated[ends]  # So is a chunk that goes on, in RLlib's batch.
        flags = {Columns.TERMINATEDS: terminated, Columns.TRUNCATEDS: truncated}
        batch |= convert_to_torch_tensor(flags, device=learner.device)
    owner = np.repeat(columns.chunks["worker"], lengths)
    workers, starts = np.unique(owner, return_index=True)
    own_rows = np.split(np.arange(len(owner)), starts[1:])
    chunks = np.repeat(np.arange(len(lengths)), lengths)
    rows_of = dict(zip(workers.tolist(), own_rows, strict=True))
    return module_id, RoundBatch(batch, rows_of, False, chunks)


def _rewards(learner: RoundLearner, columns: RolloutColumns) -> np.ndarray:
    """Returns the rewards as the learner sees them."""
    rewards = columns.steps[Columns.REWARDS]
    for piece in learner_connectors(learner):
        if isinstance(piece, ScaleRewards):
            return rewards * piece.scale
    return rewards


def predict_values(learner: RoundLearner, module_id: str, columns: dict[str, Any]) -> Tensor:
    """Returns the value function's predictions, [rows], without gradients.

    Args:
        learner: The learner.
        module_id: The module's id.
        columns: Columns of [rows, …]; with the worker column, if workers have own parameters.
    """
    module, per_worker = learner.module[module_id].unwrapped(), learner.per_worker
    with torch.no_grad():
        if per_worker is not None:
            return per_worker.compute_values(module, columns)
        values: Tensor = module.compute_values(columns)
        return values
