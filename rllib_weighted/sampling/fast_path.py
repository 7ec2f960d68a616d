"""The fast vector path: a whole rollout on arrays, episode objects only where they are asked for.

RLlib's own loop runs connector pipelines, appends to episode objects and logs metrics at every
vector step. Where nothing in the config can see the difference, this loop does the same
arithmetic, on the same random stream, in a fraction of the time: both give the same rollouts,
bit for bit.
"""

from __future__ import annotations

import inspect
import logging
import uuid
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted.columns import CHUNK, RolloutColumns, ranges
from rllib_weighted.sampling.policy import RolloutPolicy, actions_for_env, evaluating
from rllib_weighted.sampling.stepping import DirectStepper, VectorStepper, can_step_directly

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
