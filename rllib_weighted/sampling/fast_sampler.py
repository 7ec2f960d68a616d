"""The fast vector path: a whole rollout on arrays, episode objects only where they are asked for.

RLlib's own loop runs connector pipelines, appends to episode objects and logs metrics at every
vector step. Where nothing in the config can see the difference, this loop does the same
arithmetic, on the same random stream, in a fraction of the time: both give the same rollouts,
bit for bit.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor, nn

from rllib_weighted.core.modules import Forward, dense_layers
from rllib_weighted.core.rollouts import CHUNK, RolloutColumns, ranges
from rllib_weighted.sampling.envs import SeededEnv

# The policy of the fast vector path: RLlib's arithmetic without what surrounds it


_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode and records no gradients."""
    was_training = module.training
    if was_training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            module.train()


class RolloutPolicy:
    """Acts for one rollout, and keeps what it computed.

    Args:
        module: RLlib's default PPO module, with the parameters to act with.
        device: Where it computes.
    """

    def __init__(self, module: Any, device: Any) -> None:
        self._device = device
        self._is_on_cpu = device is None or str(device) == "cpu"
        self._forward = _forward_of(module)
        self._distribution = module.get_exploration_action_dist_cls()
        self._act = {TorchCategorical: self._categorical, TorchDiagGaussian: self._gaussian}.get(
            self._distribution, self._general
        )
        self._actions: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._logps: list[Tensor] = []  # Of categories: all of them, normalised.

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Returns actions, [envs, …], for observations of [envs, …]."""
        if obs.dtype == np.float32 and self._is_on_cpu:
            tensor = torch.from_numpy(obs)
        else:
            tensor = convert_to_torch_tensor(obs, self._device)
        inputs = self._forward(tensor)
        self._inputs.append(inputs)
        actions = self._act(inputs)
        self._actions.append(actions)
        return actions.cpu().numpy()

    def _categorical(self, logits: Tensor) -> Tensor:
        """As `torch.distributions.Categorical`: of its log-probability, the lookup is left."""
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        self._logps.append(logits)
        return torch.multinomial(torch.softmax(logits, dim=-1), 1, True).squeeze(1)

    def _gaussian(self, inputs: Tensor) -> Tensor:
        """As `torch.distributions.Normal`, summed over the action's entries."""
        mean, log_std = inputs.chunk(2, dim=-1)
        std = log_std.exp()
        actions = torch.normal(mean, std)
        logp = -((actions - mean) ** 2) / (2 * std**2) - std.log() - _LOG_SQRT_2PI
        self._logps.append(logp.sum(-1))
        return actions

    def _general(self, inputs: Tensor) -> Tensor:
        distribution = self._distribution.from_logits(inputs)
        actions: Tensor = distribution.sample()
        self._logps.append(distribution.logp(actions))
        return actions

    def columns(self) -> dict[str, np.ndarray]:
        """Returns what it computed, each of [steps, envs, …], in the order of RLlib's columns."""
        actions, logps = torch.stack(self._actions), torch.stack(self._logps)
        if self._distribution is TorchCategorical:
            logps = logps.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return {
            Columns.ACTIONS: actions.cpu().numpy(),
            Columns.ACTION_LOGP: logps.cpu().numpy(),
            Columns.ACTION_DIST_INPUTS: torch.stack(self._inputs).cpu().numpy(),
        }


def _forward_of(module: Any) -> Forward:
    """Returns observations -> the inputs of the action distribution, by the shortest way."""
    if "forward_exploration" in vars(module):  # Each worker acts with its own parameters.
        return lambda obs: module.forward_exploration({Columns.OBS: obs})[
            Columns.ACTION_DIST_INPUTS
        ]
    layers = None if "_forward_exploration" in vars(module) else dense_layers(module)
    if layers is None:
        return lambda obs: module._forward_exploration({Columns.OBS: obs})[
            Columns.ACTION_DIST_INPUTS
        ]

    def forward(obs: Tensor) -> Tensor:
        for layer in layers:
            obs = layer(obs)
        return obs

    return forward


def actions_for_env(config: Any, space: gym.Space) -> Callable[[np.ndarray], np.ndarray]:
    """Returns actions of the policy, [envs, …] -> those for the environments, as RLlib's own.

    Args:
        config: The algorithm's config.
        space: The space of a single action.
    """
    if not isinstance(space, gym.spaces.Box) or not (
        config.normalize_actions or config.clip_actions
    ):
        return lambda actions: actions
    if config.normalize_actions and not (
        space.dtype in (np.float32, np.float64)
        and bool(np.all(space.bounded_below))
        and bool(np.all(space.bounded_above))
    ):
        return lambda actions: np.asarray(unsquash_action(actions, space))
    if not config.normalize_actions:
        return lambda actions: np.asarray(clip_action(actions, space))
    low, high = space.low, space.high
    width = high - low
    return lambda actions: np.minimum(np.maximum(low + (actions + 1.0) * width / 2.0, low), high)


# Stepping the sub-environments of one env runner


class Step(NamedTuple):
    """What came of one vector step: `obs` [envs, …], the rest [envs]; infos if wanted."""

    obs: np.ndarray
    rewards: np.ndarray
    terminateds: np.ndarray
    truncateds: np.ndarray
    infos: list[dict[str, Any]] | None


class VectorStepper:
    """Steps the vector environment as RLlib does; for whoever wants infos.

    Args:
        env: The env runner's vector environment.
        resets_next: [envs]: which sub-environments the next step resets.
    """

    def __init__(self, env: Any, resets_next: np.ndarray) -> None:
        self._env = env
        if type(env.unwrapped) is gym.vector.SyncVectorEnv:
            # A `DirectStepper` may have gone before. Private; tested with gymnasium 1.2.2.
            env.unwrapped._autoreset_envs = resets_next.copy()

    def step(self, actions: np.ndarray, resets: np.ndarray) -> Step:
        """Steps all sub-environments; those that `resets` names start a new episode."""
        return Step(*self._env.step(actions))

    def leave(self) -> None:
        """Nothing is left to be handed over."""


class DirectStepper:
    """Steps each sub-environment itself, without infos, and looks at all numbers at once.

    The same as gymnasium's `SyncVectorEnv` over `SeededEnv`s, without the copies and the
    per-environment checks; see `can_step_directly`.

    Args:
        env: The env runner's vector environment.
        obs: [envs, …]: the observations before the first step, as the environments gave them.
    """

    def __init__(self, env: Any, obs: np.ndarray) -> None:
        self._envs: tuple[SeededEnv, ...] = tuple(env.unwrapped.envs)
        self._obs = obs
        self._may_be_bad = obs.dtype.kind in "fc"

    def step(self, actions: np.ndarray, resets: np.ndarray) -> Step:
        """Steps all sub-environments; those that `resets` names start a new episode."""
        num_envs = len(self._envs)
        observations: list[Any] = [None] * num_envs
        rewards = np.zeros(num_envs)
        terminateds, truncateds = np.zeros(num_envs, np.bool_), np.zeros(num_envs, np.bool_)
        for i, (env, resets_now) in enumerate(zip(self._envs, resets.tolist(), strict=True)):
            if resets_now:
                observations[i], _ = env.reset()
            else:
                step = env.env.step(actions[i])
                observations[i], rewards[i], terminateds[i], truncateds[i], _ = step
        obs = np.stack(observations, out=np.empty_like(self._obs))
        sound = not self._may_be_bad or np.isfinite(obs).all()
        if not (sound and np.isfinite(rewards).all()):
            rewards = np.array(
                [env.finite_reward(r) for env, r in zip(self._envs, rewards, strict=True)]
            )
            observations = [
                obs_i if reset else env.replace_nonfinite(obs_i, last)
                for env, obs_i, last, reset in zip(
                    self._envs, observations, self._obs, resets, strict=True
                )
            ]
            obs = np.stack(observations, out=np.empty_like(self._obs))
        self._obs = obs
        return Step(obs, rewards, terminateds, truncateds, None)

    def leave(self) -> None:
        """Tells each sub-environment its last observation, for whoever steps it next."""
        for env, obs in zip(self._envs, self._obs, strict=True):
            env.remember(obs)


def can_step_directly(env: Any) -> bool:
    """Whether a vector environment is a plain synchronous one of `SeededEnv`s."""
    return (
        type(env) is DictInfoToList
        and type(env.env) is gym.vector.SyncVectorEnv
        and all(type(sub_env) is SeededEnv for sub_env in env.env.envs)
    )


logger = logging.getLogger(__name__)

_EPISODE_CALLBACKS = (
    "on_episode_created",
    "on_episode_start",
    "on_episode_step",
    "on_episode_end",
)


def why_not_fast(env_runner: Any) -> str | None:
    """Returns what in the config needs RLlib's own loop; None if the fast path will do."""
    config = env_runner.config
    if not config.fast_sampling:
        return "`fast_sampling`=False"
    if not isinstance(env_runner.env.unwrapped, gym.vector.SyncVectorEnv):
        return "the vector environment is not a synchronous one"
    if type(env_runner.module) is not DefaultPPOTorchRLModule or env_runner.module.is_stateful():
        return "the module is a custom or a recurrent one"
    if not isinstance(env_runner.env.single_observation_space, gym.spaces.Box):
        return "the observation space is not a Box"
    action_space = env_runner.env.single_action_space
    if not isinstance(action_space, (gym.spaces.Box, gym.spaces.Discrete)):
        return "the action space is neither Box nor Discrete"
    if getattr(action_space, "start", 0):
        return "the action space does not start at 0"
    if not (
        config.add_default_connectors_to_env_to_module_pipeline
        and config.add_default_connectors_to_module_to_env_pipeline
        and config._module_to_env_connector is None
    ):
        return "custom module-to-env connectors"
    if _custom_pieces(env_runner) is None:
        return "custom env-to-module connectors"
    if config.restart_failed_sub_environments:
        return "`restart_failed_sub_environments`"
    if not config.explore:
        return "`explore`=False"
    if not config.episodes_to_numpy:
        return "`episodes_to_numpy`=False"
    return _callback(config, _EPISODE_CALLBACKS)


def make_fast_sampler(env_runner: Any, for_episodes: str | None) -> FastSampler | None:
    """Returns the fast vector path, or None if something needs RLlib's own loop; logs which.

    Args:
        env_runner: The env runner.
        for_episodes: What needs episodes; see `why_episodes`.
    """
    index = env_runner.worker_index
    reason = "it evaluates" if env_runner.config.in_evaluation else why_not_fast(env_runner)
    if reason is not None:
        logger.info("Env runner %s samples in RLlib's own loop: %s.", index, reason)
        return None
    what = f"episodes: {for_episodes}" if for_episodes else "columns, if the learner takes them"
    logger.info("Env runner %s samples on the fast path and hands on %s.", index, what)
    return FastSampler(env_runner)


# What a subclass of a user's may override in order to see or change what is sampled.
_EPISODE_HOOKS = ("get_metrics", "sample", "_sample", "sample_round", "tag_episode")


def why_episodes(env_runner: Any, base: type) -> str | None:
    """Returns what needs a fast rollout as episodes; None if columns will do.

    Args:
        env_runner: The env runner.
        base: The class whose own methods take columns.
    """
    for hook in _EPISODE_HOOKS:
        # Unwrapped: in an actor, Ray's subclass wraps all methods for tracing.
        own, ours = (inspect.unwrap(getattr(cls, hook)) for cls in (type(env_runner), base))
        if own is not ours:
            return f"{type(env_runner).__name__} overrides `{hook}`"
    return _callback(env_runner.config, ("on_sample_end",))


def _custom_pieces(env_runner: Any) -> list[MeanStdFilter] | None:
    """Returns the observation filters in front of RLlib's default connectors; None: others."""
    if env_runner.config._env_to_module_connector is None:
        return []
    defaults = 5  # What RLlib appends to a single-agent pipeline (tested with Ray 2.60).
    pieces = list(env_runner._env_to_module.connectors)[:-defaults]
    return pieces if all(type(piece) is MeanStdFilter for piece in pieces) else None


def _callback(config: Any, names: tuple[str, ...]) -> str | None:
    for name in names:
        overridden = any(
            getattr(cls, name, None) is not getattr(RLlibCallback, name)
            for cls in force_list(config.callbacks_class)
        )
        if overridden or getattr(config, f"callbacks_{name}") is not None:
            return f"the callback `{name}`"
    return None


@dataclass
class _Ongoing:
    """The episode that a sub-environment is in.

    Args:
        id_: The episode's id.
        t: Steps that earlier chunks hold.
    """

    id_: str
    t: int = 0


@dataclass
class _Recording:
    """One rollout, time first.

    Args:
        obs: T + 1 arrays of [envs, …] as the module sees them.
        resets: T arrays of [envs]: whether the step was a reset, and so none.
        infos: T + 1 lists of one dict per sub-environment; empty if not wanted.
    """

    obs: list[np.ndarray]
    infos: list[Any]
    resets: list[np.ndarray] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    terminateds: list[np.ndarray] = field(default_factory=list)
    truncateds: list[np.ndarray] = field(default_factory=list)


# Of a chunk: sub-environment, first step, last step + 1.
_Span = tuple[int, int, int]


_Infos = list[list[dict[str, Any]]]


class FastSampler:
    """Samples for one env runner on arrays; keeps what goes on from call to call.

    Args:
        env_runner: The env runner; see `why_not_fast` for what it must be like.
    """

    def __init__(self, env_runner: Any) -> None:
        self._runner = env_runner
        self._filters = _custom_pieces(env_runner) or []
        self._for_env = actions_for_env(env_runner.config, env_runner.env.single_action_space)
        self._raw: np.ndarray | None = None  # [envs, …] as the environments gave them.
        self._obs: np.ndarray | None = None  # [envs, …] as the module sees them.
        self._infos: Any = []  # One per sub-environment.
        self._resets_next = np.zeros(env_runner.num_envs, np.bool_)
        self._ongoing: list[_Ongoing] = []

    @property
    def is_under_way(self) -> bool:
        """Whether the next call goes on with the ongoing episodes."""
        return self._obs is not None

    def forget(self) -> None:
        """Drops the ongoing episodes; the next call starts with a reset."""
        self._obs = None

    def sample(
        self, num_timesteps: int, *, with_infos: bool
    ) -> tuple[RolloutColumns, _Infos | None]:
        """Steps the environments, exploring, until `num_timesteps` steps are done.

        Args:
            num_timesteps: Environment steps over all sub-environments; resets do not count.
            with_infos: Whether the environments' infos are wanted; it is slower.

        Returns:
            Done episodes in the order in which they ended, then the ongoing chunks; and the
            infos of each of them.
        """
        if self._obs is None:
            self._reset()
        with evaluating(self._runner.module):
            policy = RolloutPolicy(self._runner.module, self._runner._device)
            recording = self._record(num_timesteps, policy, with_infos=with_infos)
        ends = np.stack(recording.terminateds) | np.stack(recording.truncateds)
        spans = _spans(np.stack(recording.resets), ends)
        infos = None
        if with_infos:
            infos = [
                [row[env] for row in recording.infos[start : stop + 1]]
                for env, start, stop in spans
            ]
        return self._columns(recording, spans, policy.columns()), infos

    def _reset(self) -> None:
        obs, infos = self._runner._try_env_reset()
        self._raw = obs.copy()
        self._obs = self._filtered(self._raw)
        self._infos = infos
        self._resets_next = np.zeros(self._runner.num_envs, np.bool_)
        self._ongoing = [_Ongoing(uuid.uuid4().hex) for _ in range(self._runner.num_envs)]

    def _record(self, num_timesteps: int, policy: RolloutPolicy, *, with_infos: bool) -> _Recording:
        assert self._obs is not None
        assert self._raw is not None
        env = self._runner.env
        stepper: VectorStepper | DirectStepper
        if with_infos or not can_step_directly(env):
            stepper = VectorStepper(env, self._resets_next)
        else:
            stepper = DirectStepper(env, self._raw)
        recording = _Recording([self._obs], [self._infos])
        missing = num_timesteps
        while missing > 0:
            actions = self._for_env(policy.act(self._obs))
            step = stepper.step(actions, self._resets_next)
            recording.resets.append(self._resets_next)
            missing -= len(self._resets_next) - int(np.count_nonzero(self._resets_next))
            self._raw, self._infos = step.obs, step.infos
            self._obs = self._filtered(step.obs)
            self._resets_next = step.terminateds | step.truncateds
            recording.obs.append(self._obs)
            recording.rewards.append(step.rewards)
            recording.terminateds.append(step.terminateds)
            recording.truncateds.append(step.truncateds)
            recording.infos.append(step.infos)
        stepper.leave()
        if self._infos is None:
            self._infos = [{} for _ in self._resets_next]
        return recording

    def _filtered(self, obs: np.ndarray) -> np.ndarray:
        if not self._filters:
            return obs
        rows = list(obs)
        for piece in self._filters:
            if piece._filters is None:
                piece._init_new_filters()
            rows = [piece._filters[None](row, update=piece._update_stats) for row in rows]
        return np.stack(rows)

    def _columns(
        self, recording: _Recording, spans: list[_Span], columns: dict[str, np.ndarray]
    ) -> RolloutColumns:
        """Cuts a recording into chunks, one after the other."""
        table = np.array(spans, np.int64).reshape(-1, 3)
        env, start, stop = table.T
        num_envs = self._runner.num_envs
        if isinstance(self._runner.env.single_action_space, gym.spaces.Discrete):
            columns[Columns.ACTIONS] = columns[Columns.ACTIONS].astype(np.int32)  # As RLlib's.
        columns[Columns.REWARDS] = np.stack(recording.rewards)

        def gather(column: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            rows = ranges(start, lengths) * num_envs + np.repeat(env, lengths)
            return column.reshape(-1, *column.shape[2:])[rows]

        chunks = np.zeros(len(spans), CHUNK)
        chunks["env_index"], chunks["length"] = env, stop - start
        chunks["worker"] = [self._runner.worker_of(index) for index in env.tolist()]
        chunks["terminated"] = np.stack(recording.terminateds)[stop - 1, env]
        chunks["truncated"] = np.stack(recording.truncateds)[stop - 1, env]
        chunks[WEIGHTS_SEQ_NO] = self._runner._weights_seq_no
        ends = chunks["terminated"] | chunks["truncated"]
        for chunk, index, is_end in zip(chunks, env.tolist(), ends.tolist(), strict=True):
            ongoing = self._ongoing[index]
            chunk["id"], chunk["t_started"] = ongoing.id_, ongoing.t
            ongoing.t += int(chunk["length"])
            if is_end:
                self._ongoing[index] = _Ongoing(uuid.uuid4().hex)
        return RolloutColumns(
            gather(np.stack(recording.obs), stop - start + 1),
            {name: gather(column, stop - start) for name, column in columns.items()},
            chunks,
        )


def _spans(resets: np.ndarray, ends: np.ndarray) -> list[_Span]:
    """Returns the done episodes' spans in the order in which they ended, then the ongoing ones'.

    Args:
        resets: [T, envs]: whether the step was a reset: it belongs to no episode.
        ends: [T, envs]: whether it was an episode's last one.
    """
    done: list[_Span] = []
    starts = [0] * resets.shape[1]
    for last, index in np.argwhere(ends).tolist():
        start = starts[index]
        done.append((index, start + int(resets[start, index]), last + 1))
        starts[index] = last + 1
    ongoing = []
    for index, start in enumerate(starts):
        if start < len(resets):
            start += int(resets[start, index])
        if start < len(resets):
            ongoing.append((index, start, len(resets)))
    return done + ongoing
