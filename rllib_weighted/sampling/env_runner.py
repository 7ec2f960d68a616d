"""The env runner: tags every episode with its worker, samples on counted random streams."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import ray
import torch
import tree
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from torch import Tensor

from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.modules import (
    ParameterPlaces,
    StackedForward,
    swapped_parameters,
    why_not_stacked,
    worker_parameters,
)
from rllib_weighted.core.processes import prepare_process
from rllib_weighted.core.rollouts import (
    CarriedReturns,
    Quotas,
    RolloutColumns,
    concatenated,
    join_chunks,
    log_episode_metrics,
    of_columns,
    of_episodes,
)
from rllib_weighted.core.seeding import Stream, draw_root_seed, seeded_globals, stream_seed
from rllib_weighted.core.workers import ENV_INDEX_KEY, WORKER_KEY
from rllib_weighted.sampling.envs import EnvSeeds
from rllib_weighted.sampling.fast_sampler import FastSampler, make_fast_sampler, why_episodes
from rllib_weighted.sampling.filters import is_finite, repair_deltas

# Acting with each worker's own parameters, for the time of a round


_FORWARDS = ("forward_exploration", "forward_inference")  # All that RLlib acts with.


@contextlib.contextmanager
def per_worker_policy(
    module: Any, per_worker_parameters: Mapping[str, Any] | None, workers: Sequence[int]
) -> Iterator[None]:
    """Inside, every sub-environment acts with its own worker's parameters.

    If all belong to one worker, the module has its parameters. Else the module's forward passes
    for acting compute each row of a batch, one per sub-environment, with that row's parameters,
    and everything else still sees the module's own. On leaving, it has those again, and only
    those.

    Args:
        module: The env runner's module.
        per_worker_parameters: Name -> [N, ...], see `SampleRequest`; None: nothing changes.
        workers: The worker of each sub-environment.

    Raises:
        ValueError: If the parameters do not fit the module.
    """
    if per_worker_parameters is None:
        yield
    elif len(set(workers)) == 1:
        own = worker_parameters(module, per_worker_parameters, workers[0])
        with swapped_parameters(module, own):
            yield
    else:
        own = worker_parameters(module, per_worker_parameters, workers)
        forwards = (_one_by_one if why_not_stacked(module) else _all_at_once)(module, own)
        with _shadowed(module, forwards):
            yield


@contextlib.contextmanager
def _shadowed(module: Any, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Puts functions in front of methods of one object, and takes them away again."""
    before = {name: vars(module)[name] for name in forwards if name in vars(module)}
    for name, forward in forwards.items():
        setattr(module, name, forward)
    try:
        yield
    finally:
        for name in forwards:
            delattr(module, name)
        for name, forward in before.items():
            setattr(module, name, forward)


def _all_at_once(module: Any, own: dict[str, Tensor]) -> dict[str, Callable[..., Any]]:
    """The fast way: one forward pass over rows with parameters of their own."""
    stacked = StackedForward(module)

    def make(name: str) -> Callable[..., Any]:
        forward = getattr(stacked, name)

        def act(batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
            _check_rows(batch, own)
            obs = tree.map_structure(lambda column: column.unsqueeze(1), batch[Columns.OBS])
            outputs = forward(own, {Columns.OBS: obs})
            return {key: output.squeeze(1) for key, output in outputs.items()}

        return act

    return {name: make(name) for name in _FORWARDS}


def _one_by_one(module: Any, own: dict[str, Tensor]) -> dict[str, Callable[..., Any]]:
    """The general way: the module's own forward pass on each row alone."""
    places = ParameterPlaces(module)
    rows = [dict(zip(own, tensors, strict=True)) for tensors in zip(*own.values(), strict=True)]

    def make(name: str) -> Callable[..., Any]:
        forward = getattr(module, name)

        def act(batch: Mapping[str, Any], **kwargs: Any) -> Any:
            _check_rows(batch, own)
            outputs = []
            for index, tensors in enumerate(rows):
                with places.swapped(tensors):
                    outputs.append(forward(_row(batch, index, len(rows)), **kwargs))
            return tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

        return act

    return {name: make(name) for name in _FORWARDS}


def _row(batch: Mapping[str, Any], index: int, num_rows: int) -> dict[str, Any]:
    def cut(column: Any) -> Any:
        has_rows = isinstance(column, Tensor) and column.ndim and len(column) == num_rows
        return column[index : index + 1] if has_rows else column

    return {key: tree.map_structure(cut, value) for key, value in batch.items()}


def _check_rows(batch: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """ValueError unless the batch has one row per sub-environment: else whose is a row?"""
    num_rows = len(tree.flatten(batch[Columns.OBS])[0])
    num_envs = len(next(iter(own.values())))
    if num_rows != num_envs:
        raise ValueError(
            f"the env-to-module connectors should make one row per sub-environment ({num_envs}) "
            f"when each acts with its worker's own parameters, found {num_rows}: use connectors "
            'that keep the rows, or merge_unit="env_runner"'
        )


logger = logging.getLogger(__name__)

CHUNK_STEPS = 16  # Vector steps between two looks at which sub-environments are done.


class WeightedEnvRunner(SingleAgentEnvRunner):
    """Samples a round in one call and says of every episode which worker it came from.

    It overrides `make_env`, `sample`, `set_state` (public hooks) and `_sample`, `_new_episode`,
    `_try_env_reset` (private ones; tested with Ray 2.60).
    """

    env: Any
    episodes_to_numpy: bool

    @override(SingleAgentEnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._index: int = kwargs.get("worker_index") or 0
        root_seed = draw_root_seed() if config.seed is None else config.seed
        self._seeds = EnvSeeds(config, self._index, root_seed)
        self._restore_id = ""
        self._in_round = False
        self._was_late = False
        self._quota: int | None = None
        self._as_columns = False
        self._returns = CarriedReturns()
        self._evaluated_version = -1
        self._num_calls = 0
        self._weights_seq_no: int = 0
        self._config_seed = config.seed
        super().__init__(config=prepare_process(config, self._index), **kwargs)
        self.config.seed = self._config_seed

    # Sampling

    def sample_round(self, order: SampleRequest | ray.ObjectRef) -> SampleResult:
        """Samples one training round.

        An exception of the environment or the module does not end the env runner: it comes back
        as `error`, and the next round starts with new environments. (Stock RLlib ends the actor,
        and the driver never sees the message.)

        Args:
            order: What to sample with, or a reference to it.
        """
        order = ray.get(order) if isinstance(order, ray.ObjectRef) else order
        if self._was_late and time.time() > order.expires:
            # Many orders may have piled up behind a slow round: sample none of them for nobody.
            return SampleResult(env_runner=self._index, error="The order came too late.")
        started = time.monotonic()
        self._in_round = True
        try:
            return self._sample_round(order)
        except Exception:
            error = traceback.format_exc()
            self._discard_env()
            return SampleResult(env_runner=self._index, error=error)
        finally:
            self._in_round = False
            timeout = self.config.sample_timeout_s
            self._was_late = timeout is not None and time.monotonic() - started > timeout

    def _sample_round(self, order: SampleRequest) -> SampleResult:
        if self.env is None:
            self.make_env()
        if order.state:
            self.set_state(order.state)
        self._take_counters(order)
        self._seeds.take_invalid()  # Of an evaluation in between.
        before = self._connector_states()
        complete = self.config.batch_mode == "complete_episodes"
        self._quota = self._steps_per_env() if complete else None
        self._as_columns = order.takes_columns and self._why_episodes is None
        seed = stream_seed(order.root_seed, Stream.ACTIONS, self._index, order.round)
        workers = [self._seeds.worker(index) for index in range(self.num_envs)]
        try:
            with (
                per_worker_policy(self.module, order.per_worker_parameters, workers),
                seeded_globals(seed),
            ):
                sampled = self.sample(num_timesteps=self._steps_per_env() * self.num_envs)
        finally:
            self._quota = None
            self._as_columns = False
        columns = sampled if isinstance(sampled, RolloutColumns) else None
        invalid = self._seeds.take_invalid()
        after = self._connector_states()
        return SampleResult(
            env_runner=self._index,
            episodes=[] if columns else sampled,
            columns=columns,
            is_fast=self.fast_sampler is not None,
            metrics=self.get_metrics(),
            connector_states=repair_deltas(before, after) if is_finite(after) else {},
            num_resets=self._seeds.num_resets,
            returns=self._returns.finished(
                of_columns(columns) if columns else of_episodes(sampled), invalid
            ),
            invalid=invalid,
        )

    def _connector_states(self) -> dict[str, Any]:
        """Returns the states of the connectors; RLlib's own have none."""
        has_custom = self.config._env_to_module_connector or self.config._module_to_env_connector
        return self.get_state(not_components=[COMPONENT_RL_MODULE]) if has_custom else {}

    def _take_counters(self, order: SampleRequest) -> None:
        own = self._seeds.num_resets
        if order.restore_id != self._restore_id:
            self._restore_id = order.restore_id
            self._needs_initial_reset = True
            self._returns = CarriedReturns()
            own = {}
        # Ours are ahead after a round that came too late for the algorithm.
        ahead = {slot: max(count, order.num_resets.get(slot, 0)) for slot, count in own.items()}
        self._seeds.set_counters(order.root_seed, {**order.num_resets, **ahead})

    def _steps_per_env(self) -> int:
        """Steps that each sub-environment owes to a round."""
        layout = self.config.worker_layout
        length = self.config.rollout_fragment_length
        if length == "auto":  # RLlib's own answer differs between env runners.
            return math.ceil(self.config.total_train_batch_size / layout.num_slots)
        per_fragment = length * layout.num_slots
        return int(length * math.ceil(self.config.total_train_batch_size / per_fragment))

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Samples as in RLlib; evaluates, if this is no part of a training round.

        Evaluation has a random stream of its own per version of the weights. A training env
        runner evaluates too, by episodes, where RLlib has made no evaluation env runners.
        """
        by_episodes = kwargs.get("num_episodes") is not None
        if self._in_round or not (self.config.in_evaluation or by_episodes):
            training_episodes: list[SingleAgentEpisode] = super().sample(**kwargs)
            return training_episodes
        version = self._weights_seq_no
        self._num_calls = self._num_calls + 1 if version == self._evaluated_version else 1
        self._evaluated_version = version
        counters = (self._index, version, self._num_calls)
        seed = stream_seed(self._seeds.root_seed, Stream.EVALUATION_ACTIONS, *counters)
        self._seeds.start_evaluation(version)
        try:
            with seeded_globals(seed):
                episodes: list[SingleAgentEpisode] = super().sample(**kwargs)
        finally:
            if not self.config.in_evaluation:
                self._seeds.end_evaluation()
        return episodes

    @override(SingleAgentEnvRunner)
    def _sample(self, **kwargs: Any) -> Any:
        if self._quota is not None:
            return self._sample_complete(self._quota, **kwargs)
        return self._sample_steps(**kwargs)

    def _sample_steps(self, **kwargs: Any) -> list[SingleAgentEpisode] | RolloutColumns:
        """Samples on the fast path if it will do, else in RLlib's own loop.

        Returns:
            Episodes; columns if the round's order takes them and nothing here needs episodes.
        """
        fast = self._fast_sampler_for(**kwargs)
        if fast is None:
            return self._sample_in_own_loop(**kwargs)
        if self._needs_initial_reset or kwargs.get("force_reset") or not fast.is_under_way:
            fast.forget()
            self._ongoing_episodes_for_metrics.clear()
        columns, infos = fast.sample(kwargs["num_timesteps"], with_infos=not self._as_columns)
        self._needs_initial_reset = False
        log_episode_metrics(self, columns)
        if self._as_columns:
            return columns
        return columns.to_episodes(
            self._env_to_module.observation_space, self.env.single_action_space, infos
        )

    def _sample_in_own_loop(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        if self.fast_sampler is not None and self.fast_sampler.is_under_way:
            self.fast_sampler.forget()
            self._needs_initial_reset = True
        episodes: list[SingleAgentEpisode] = super()._sample(**kwargs)
        return episodes

    def _fast_sampler_for(
        self,
        *,
        num_timesteps: int | None = None,
        explore: bool = True,
        random_actions: bool = False,
        **kwargs: Any,
    ) -> FastSampler | None:
        explores_by_steps = num_timesteps is not None and explore and not random_actions
        return self.fast_sampler if explores_by_steps else None

    @functools.cached_property
    def fast_sampler(self) -> FastSampler | None:
        """The fast vector path; None if something in the config needs RLlib's own loop."""
        return make_fast_sampler(self, self._why_episodes)

    @functools.cached_property
    def _why_episodes(self) -> str | None:
        return why_episodes(self, WeightedEnvRunner)

    def _sample_complete(self, quota: int, **kwargs: Any) -> Any:
        """Samples whole episodes: each sub-environment runs until they hold `quota` steps.

        Every sub-environment starts a new episode at the start of the round. What the faster
        ones do while the last one finishes is left out, so that no worker is preferred.
        """
        is_fast = self._fast_sampler_for(**kwargs) is not None
        sample: Any = self._sample_steps if is_fast else self._sample_uncut
        quotas = Quotas(self.num_envs, quota)
        parts = [sample(**{**kwargs, "force_reset": True})]
        quotas.add(parts[0])
        kwargs["num_timesteps"] = CHUNK_STEPS * self.num_envs
        while not quotas.met:
            parts.append(sample(**kwargs))
            quotas.add(parts[-1])
        if isinstance(parts[0], RolloutColumns):
            return concatenated(parts).joined(quotas.kept)
        episodes = join_chunks(
            chunk for part in parts for chunk in part if chunk.id_ in quotas.kept
        )
        return [e.to_numpy() for e in episodes] if self.episodes_to_numpy else episodes

    def _sample_uncut(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Samples in RLlib's own loop, where an episode stays one object for the callbacks.

        Returns:
            The episodes that ended, as lists; the ongoing ones go on in the next call.
        """
        to_numpy, self.episodes_to_numpy = self.episodes_to_numpy, False
        try:
            episodes = self._sample_in_own_loop(**kwargs)
        finally:
            self.episodes_to_numpy = to_numpy
        for episode in episodes:
            if not episode.is_done:
                self._ongoing_episodes[episode.custom_data[ENV_INDEX_KEY]] = episode
                del self._ongoing_episodes_for_metrics[episode.id_]
        return [episode for episode in episodes if episode.is_done]

    # Identity

    @override(SingleAgentEnvRunner)
    def _new_episode(self, env_index: int, episodes: Any = None) -> None:
        super()._new_episode(env_index, episodes)
        self.tag_episode(
            (self._ongoing_episodes if episodes is None else episodes)[env_index], env_index
        )

    def tag_episode(self, episode: SingleAgentEpisode, env_index: int) -> None:
        """Writes into an episode which sub-environment and which worker it comes from."""
        episode.custom_data[ENV_INDEX_KEY] = env_index
        episode.custom_data[WORKER_KEY] = self._seeds.worker(env_index)

    def worker_of(self, env_index: int) -> int:
        """Returns the worker that a sub-environment belongs to."""
        return self._seeds.worker(env_index)

    # State and environments

    @override(SingleAgentEnvRunner)
    def set_state(self, state: Any) -> None:
        if COMPONENT_RL_MODULE in state and state.get(WEIGHTS_SEQ_NO, 0) > 0:
            # RLlib would take newer weights only. A restored checkpoint's may be older, or others
            # of the same number.
            self._weights_seq_no = 0
        super().set_state(state)

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Builds the vector environment: as RLlib does, but see `EnvSeeds.build`."""
        self.config.seed = self._config_seed  # Missing in RLlib's constructor; callbacks see it.
        mode = gym.VectorizeMode(self.config.gym_env_vectorize_mode)
        self._discard_env()
        if mode == gym.VectorizeMode.VECTOR_ENTRY_POINT:
            super().make_env()
            return
        context = EnvContext(
            self.config.env_config,
            worker_index=self.worker_index,
            num_workers=self.num_workers,
            remote=self.config.remote_worker_envs,
        )
        self.env = DictInfoToList(self._seeds.build(self.config, context))
        self.num_envs = self.env.num_envs
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env.unwrapped,
                "env_context": context,
            },
        )

    def _discard_env(self) -> None:
        if self.env is None:
            return
        self._seeds.release()
        try:
            self.env.close()
        except Exception:
            logger.warning("Closing a failed environment raised; going on.", exc_info=True)
        self.env = None

    @override(SingleAgentEnvRunner)
    def _try_env_reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Resets all sub-environments; RLlib's own `seed` (its overlapping streams) is ignored."""
        return super()._try_env_reset(seed=self._seeds.next_whole_reset(), options=options)
