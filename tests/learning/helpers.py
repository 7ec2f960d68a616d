"""Learners without env runners: synthetic episodes, small modules, slow oracles."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.messages import UpdateRequest
from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.batch import RoundBatch
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import (
    WeightedLearnerGroup,
    WorkerTrainingData,
    group_by_worker,
)
from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.minibatches import minibatches, num_minibatches
from rllib_weighted.merging import resolve_strategy
from tests import reference_ppo

OBS = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
DISCRETE = gym.spaces.Discrete(2)
LR = 0.05


def small_config(num_workers: int, base: type[PPOConfig] = WeightedPPOConfig) -> Any:
    """A config with tiny networks; `base=PPOConfig` is its stock twin."""
    config = (
        base()
        .env_runners(num_env_runners=num_workers)
        .training(
            lr=LR,
            gamma=0.9,
            lambda_=0.8,
            vf_clip_param=100.0,
            entropy_coeff=0.01,
            minibatch_size=None,
            num_epochs=1,
            use_kl_loss=False,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8], fcnet_activation="tanh"))
        .debugging(seed=1)
    )
    if isinstance(config, WeightedPPOConfig):
        config.training(merge_strategy="average")
    return config


_pool: dict[Hashable, list[tuple[Any, Any]]] = {}
_num_taken: Counter[Hashable] = Counter()


def put_groups_back() -> None:
    """Makes all pooled groups available again."""
    _num_taken.clear()


def pooled_group(
    num_workers: int,
    learner_class: type[WeightedPPOLearner] | None = None,
    *,
    action_space: gym.Space = DISCRETE,
    fast_learner: bool = True,
    **training: Any,
) -> Any:
    """A group as new. Building one takes most of a short test's time, so they are used again."""
    key = (num_workers, learner_class, fast_learner, str(action_space), str(training))
    index = _num_taken[key]
    _num_taken[key] += 1
    groups = _pool.setdefault(key, [])
    if index == len(groups):
        config = small_config(num_workers).training(**training).learners(fast_learner=fast_learner)
        if learner_class is not None:
            config.learners(learner_class=learner_class)
        group = build_group(config, action_space=action_space)
        groups.append((group, copy.deepcopy(learner_of(group).get_state())))
        if index:
            copy_parameters(groups[0][0], group)
    group, _ = groups[index]
    learner_of(group).set_state(copy.deepcopy(groups[0][1]))
    return group


def _short_stack() -> list[Any]:
    """The caller and its caller, as far as `ConnectorV2.__init__` needs them.

    The real `inspect.stack` looks up the source of every frame: under pytest that takes longer
    than all the rest of building a learner.
    """
    return [None, SimpleNamespace(frame=sys._getframe(2))]


def build_group(config: Any, *, action_space: gym.Space = DISCRETE, obs_space: Any = OBS) -> Any:
    with mock.patch("inspect.stack", _short_stack):
        return config.build_learner_group(spaces={DEFAULT_MODULE_ID: (obs_space, action_space)})


def learner_of(group: Any) -> Any:
    return group._learner


def module_of(group: Any) -> Any:
    return learner_of(group).module[DEFAULT_MODULE_ID].unwrapped()


class SGD(WeightedPPOLearner):
    """Plain gradient descent in float64: an update moves the parameters by lr x gradient."""

    def build(self) -> None:
        torch.manual_seed(0)
        super().build()

    def _make_module(self) -> Any:
        module = super()._make_module()
        module[DEFAULT_MODULE_ID].double()
        return module

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        params = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.SGD(params, lr=LR),
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    def _round_batch(self, training_data: WorkerTrainingData) -> tuple[str, RoundBatch]:
        # The connectors write float32: compute the values in float32, everything after in 64.
        self.module[DEFAULT_MODULE_ID].float()
        module_id, batch = super()._round_batch(training_data)
        self.module[DEFAULT_MODULE_ID].double()
        batch.columns = {key: to_double(column) for key, column in batch.columns.items()}
        return module_id, batch


class EitherPrecision(WeightedPPOLearner):
    """Adam in float32, or in float64 once `use(torch.float64)` was called."""

    def build(self) -> None:
        torch.manual_seed(0)
        super().build()

    def use(self, dtype: torch.dtype) -> None:
        for module in self.module._rl_modules.values():
            module.to(dtype)
        for stack in self.per_worker.stacked.values() if self.per_worker else ():
            stack.data = stack.data.to(dtype)

    def _round_batch(self, training_data: WorkerTrainingData) -> tuple[str, RoundBatch]:
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        if next(module.parameters()).dtype == torch.float32:
            return super()._round_batch(training_data)
        # The connectors write float32, whatever the module computes with.
        compute_values = module.compute_values
        module.compute_values = lambda batch, **kwargs: compute_values(to_double(batch), **kwargs)
        try:
            module_id, batch = super()._round_batch(training_data)
        finally:
            del module.compute_values
        batch.columns = {key: to_double(column) for key, column in batch.columns.items()}
        return module_id, batch


def standardized(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean 0 and population deviation 1, over the entries of the mask; by numpy, in float64."""
    real = (values if mask is None else values[mask]).double().numpy()
    shifted = values.double() - float(real.mean())
    return (shifted / max(float(real.std()), 1e-4)).to(values.dtype)


def to_double(column: Any) -> Any:
    if isinstance(column, dict):
        return {key: to_double(value) for key, value in column.items()}
    return column.double() if isinstance(column, Tensor) and column.is_floating_point() else column


def make_episode(
    worker: int | None,
    length: int,
    *,
    seed: int,
    terminated: bool = False,
    truncated: bool = False,
    action_space: gym.Space = DISCRETE,
    obs_space: Any = OBS,
    states: dict[str, Any] | None = None,
) -> SingleAgentEpisode:
    """An episode as an env runner would send it, of random numbers."""
    rng = np.random.default_rng(seed)
    if isinstance(action_space, gym.spaces.Discrete):
        inputs = rng.normal(size=(length, int(action_space.n))).astype(np.float32)
        actions = rng.integers(action_space.n, size=length).astype(np.int32)
        logp = torch.log_softmax(torch.from_numpy(inputs), -1).numpy()[np.arange(length), actions]
    elif isinstance(action_space, gym.spaces.MultiDiscrete):
        sizes = [int(n) for n in action_space.nvec]
        inputs = rng.normal(size=(length, sum(sizes))).astype(np.float32)
        actions = np.stack([rng.integers(n, size=length) for n in sizes], axis=1)
        parts = np.split(inputs, np.cumsum(sizes)[:-1], axis=1)
        logp = sum(
            torch.log_softmax(torch.from_numpy(part), -1).numpy()[np.arange(length), chosen]
            for part, chosen in zip(parts, actions.T, strict=True)
        )
    else:
        size = int(np.prod(action_space.shape))
        inputs = (0.3 * rng.normal(size=(length, 2 * size))).astype(np.float32)
        actions = rng.normal(size=(length, size)).astype(np.float32)
        mean, log_std = np.split(inputs, 2, axis=-1)
        z = (actions - mean) / np.exp(log_std)
        logp = (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1).astype(np.float32)
    extra = {"action_dist_inputs": inputs, "action_logp": logp}
    if states is not None:
        extra["state_out"] = states
    episode = SingleAgentEpisode(
        observations=_observations(rng, obs_space, length + 1),
        observation_space=obs_space,
        actions=actions,
        action_space=action_space,
        rewards=rng.normal(size=length).astype(np.float32),
        infos=[{}] * (length + 1),
        terminated=terminated,
        truncated=truncated,
        extra_model_outputs=extra,
        len_lookback_buffer=0,
    )
    if worker is not None:
        episode.custom_data[WORKER_KEY] = worker
    return episode.to_numpy()


def _observations(rng: np.random.Generator, space: Any, length: int) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: _observations(rng, part, length) for key, part in space.items()}
    return rng.uniform(-1, 1, (length, *space.shape)).astype(np.float32)


def make_episodes(lengths: Sequence[Sequence[int]], *, seed: int = 0, **kwargs: Any) -> list[Any]:
    """Episodes of some workers: `lengths[w]` are those of worker w; the first one terminates."""
    return [
        make_episode(w, n, seed=seed + 100 * w + i, terminated=i == 0, truncated=i == 1, **kwargs)
        for w, group in enumerate(lengths)
        for i, n in enumerate(group)
    ]


def make_request(
    num_workers: int,
    strategy: Any = "average",
    options: dict[str, Any] | None = None,
    *,
    rewards: Iterable[float | None] = (),
    **kwargs: Any,
) -> UpdateRequest:
    kwargs = {"round": 1, "root_seed": 7, **kwargs}
    return UpdateRequest(
        num_workers=num_workers,
        strategy=resolve_strategy(strategy, options),
        reward_signals={w: r for w, r in enumerate(rewards) if r is not None},
        **kwargs,
    )


def run_update(
    group: WeightedLearnerGroup, episodes: list[Any], request: UpdateRequest | None, **kwargs: Any
) -> Any:
    """One round; returns the merge report."""
    config = group.config
    kwargs = {
        "num_epochs": config.num_epochs,
        "minibatch_size": config.minibatch_size,
        "shuffle_batch_per_epoch": config.shuffle_batch_per_epoch,
        **kwargs,
    }
    group.update(episodes=episodes, merge=request, **kwargs)
    return group.take_update_result()


def flat_parameters(group: Any) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in module_of(group).parameters()])


def copy_parameters(source: Any, target: Any) -> None:
    module_of(target).load_state_dict(module_of(source).state_dict())


def optimizer_is_finite(group: Any) -> bool:
    (optimizer,) = learner_of(group)._named_optimizers.values()
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def oracle_gradients(
    learner: WeightedPPOLearner, module_id: str, batch: RoundBatch, parts: dict[int, np.ndarray]
) -> tuple[Tensor, Tensor]:
    """N separate forward and backward passes, each over one worker's rows alone.

    The loss is the learner's `compute_loss_for_module`: RLlib's own, unless a test overrides it.

    Returns:
        [N, P] gradients and [N] losses, in the order of `parts`.
    """
    gradients, losses = [], []
    params = list(learner.module[module_id].parameters())
    for rows in parts.values():
        columns = batch.take(rows)
        loss = learner.compute_loss_for_module(
            module_id=module_id,
            config=learner.config.get_config_for_module(module_id),
            batch=columns,
            fwd_out=learner.module[module_id].forward_train(columns),
        )
        found = torch.autograd.grad(loss, params, allow_unused=True)
        gradients.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(params, found, strict=True)
                ]
            )
        )
        losses.append(loss.detach())
    return torch.stack(gradients), torch.stack(losses)


def hand_weights(strategy: str, signals: Sequence[float], min_weight: float | None) -> list[float]:
    """The weights of the four strategies with default options, as the specification has them."""
    settings = reference_ppo.Settings(strategy=strategy, min_weight=min_weight)
    return reference_ppo.weights(list(signals), settings).tolist()


def oracle_parameters(
    group: Any,
    episodes: list[Any],
    request: UpdateRequest,
    strategy: str,
    *,
    num_epochs: int = 1,
    minibatch_size: int | None = None,
    shuffle: bool = True,
) -> Tensor:
    """Where an update should take an `SGD` learner: N backward passes at every step, summed."""
    learner = learner_of(group)
    data = WorkerTrainingData.from_workers(
        group_by_worker(episodes, num_workers=request.num_workers)
    )
    module_id, batch = learner._round_batch(data)
    batch.standardize_advantages(learner.config.advantage_normalization)
    for minibatch in minibatches(
        batch.rows,
        per_epoch=num_minibatches(
            [len(r) for r in batch.rows.values()], batch.num_steps, minibatch_size
        ),
        num_epochs=num_epochs,
        shuffle=shuffle,
        seed=request.root_seed,
        round=request.round,
    ):
        gradients, losses = oracle_gradients(learner, module_id, batch, minibatch.parts)
        workers = list(minibatch.parts)
        signals = losses.tolist()
        if strategy == "reward_weighted":
            signals = [request.reward_signals[worker] for worker in workers]
        weights = hand_weights(strategy, signals, request.min_weight)
        step = sum(w * g for w, g in zip(weights, gradients, strict=True))
        position = torch.nn.utils.parameters_to_vector(learner.module[module_id].parameters())
        torch.nn.utils.vector_to_parameters(
            position - LR * step, learner.module[module_id].parameters()
        )
    return flat_parameters(group)


def flat_gradients(learner: WeightedPPOLearner, gradients: dict[Any, Tensor]) -> Tensor:
    return torch.cat(
        [
            (gradients[p] if p in gradients else torch.zeros_like(p)).flatten()
            for p in learner.module[DEFAULT_MODULE_ID].parameters()
        ]
    )


def worker_losses(*totals: float) -> WorkerLosses:
    """Losses of N workers, given by hand."""
    return WorkerLosses(torch.tensor(totals, dtype=torch.float64))
