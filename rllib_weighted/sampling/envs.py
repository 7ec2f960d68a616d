"""One env runner's sub-environments: what every reset starts; quarantine of non-finite numbers.

`SeededEnv` wraps each sub-environment; `EnvSeeds` builds them and keeps their counters. EnvPool's
come as one, see `sampling/envpool.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np
import tree
from ray.rllib.env.env_context import EnvContext

from rllib_weighted.core.contexts import Context
from rllib_weighted.core.envs import OWN, TRUE_REWARD, env_creator, envpool_id
from rllib_weighted.core.levels import LevelDraws, LevelPlay, LevelPool
from rllib_weighted.core.processes import cores_at_hand, num_threads, trial_cpus
from rllib_weighted.core.rollouts import EpisodeStats
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.core.workers import EnvSeeding
from rllib_weighted.sampling.envpool import EnvPoolVectorEnv

if TYPE_CHECKING:
    from rllib_weighted.config import WeightedPPOConfig

SEEDED = (gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv)
"""Vector environments whose parts are `SeededEnv`s."""
VectorEnv: TypeAlias = "gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv | EnvPoolVectorEnv"

MOST_ENVIRONMENTS = 8
"""Contexts of which a sub-environment keeps an environment; of others it is made anew."""


@dataclass(frozen=True)
class EnvContexts:
    """The contexts of one sub-environment; a context is told from another by its identity.

    Args:
        make: Makes the environment of a context.
        training: Of the levels, if they are contexts; else its worker's alone.
        evaluation: Those that evaluation takes in turn.
    """

    make: Callable[[Context], gym.Env[Any, Any]]
    training: Sequence[Context]
    evaluation: Sequence[Context]

    def first(self, slot: int, *, evaluation: bool) -> Context:
        """Returns the context that a sub-environment is built with."""
        contexts = self.evaluation if evaluation else self.training
        return contexts[slot % len(contexts)]


class SeededEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Decides seed and context of every reset of one sub-environment, from counters alone.

    - `"stream"`: episode k is reset with a seed derived from (seed, slot, k).
    - `"fixed"`: every episode is reset with the seed of k = 0.
    - `"prioritized"`: episode k is of a level that is drawn from (seed, slot, k) and `draws`.
    - in evaluation, always: episode k is reset with a seed derived from (seed, slot, version of
      the weights, k), one that training never uses; contexts come in turn.

    It also quarantines non-finite numbers. A NaN or infinite reward or observation never leaves
    this wrapper: it would poison the observation filter and the policy's batched forward pass of
    *all* sub-environments of the process. The reward is replaced by 0 (its info tells the true
    one), the observation by the last finite one, and `invalid` names what was found first, so that
    the worker can be dropped from the merge. Evaluation merges nothing: rewards stay what they are
    there.

    To `get_attr`, `set_attr` and `call` of the vector environment this wrapper is not there: they
    reach the user's environment, whatever its attributes are called. Its own begin with `OWN`.

    Observations may be nested (`Dict`, `Tuple`), so they are annotated `Any` here.

    Args:
        env: The environment of the first context.
        seed: The run's root seed.
        slot: Index of the sub-environment over all env runners.
        num_slots: Number of sub-environments.
        evaluation: Whether episodes are evaluation's.
        seeding: How training's episodes are seeded.
        pool: The levels, if `seeding` is "prioritized".
        contexts: What environments are made with; None: there is one environment, `env`.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        seed: int,
        slot: int,
        num_slots: int,
        evaluation: bool,
        seeding: EnvSeeding,
        pool: LevelPool | None = None,
        contexts: EnvContexts | None = None,
    ) -> None:
        super().__init__(env)
        self.root_seed = seed
        self.slot = slot
        self.num_slots = num_slots
        self.evaluation = evaluation
        self.seeding = seeding
        self.weights_version = 0
        self.num_resets = 0
        self.num_evaluation_resets = 0
        self.invalid: str | None = None
        self._last_finite_obs: Any = None
        self._pool = pool
        self.draws = LevelDraws.at_first(pool.size) if pool else None
        self.resets_before_round = 0
        self._played: dict[int, int] = {}  # Episode -> its level.
        self._contexts = contexts
        self._environments: dict[int, gym.Env[Any, Any]] = {}  # Context -> environment, LRU first.
        if contexts is not None:
            self._environments[id(contexts.first(slot, evaluation=evaluation))] = env

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode. The caller's `seed` is ignored: the counters decide."""
        if self.evaluation:
            seed, context = self._next_of_evaluation()
        else:
            seed, context = self._next_of_training()
        if context is not None:
            self._enter(context)
        self._last_finite_obs = None
        obs, info = self.env.reset(seed=seed, options=options)
        return self._finite_obs(obs), info

    def _next_of_training(self) -> tuple[int, Context | None]:
        episode, level = self.num_resets, 0
        self.num_resets += 1
        seed = None
        if self._pool is not None and self.draws is not None:
            level = self.draws.level(
                self.root_seed,
                slot=self.slot,
                num_slots=self.num_slots,
                episode=episode,
                count=max(0, episode - self.resets_before_round),
            )
            self._played.pop(episode, None)  # The newest one comes last.
            self._played[episode] = level
            seed = self._pool.seed(self.root_seed, level)
        if seed is None:
            seed = self._counted_seed(0 if self.seeding == "fixed" else episode)
        contexts = self._contexts.training if self._contexts else None
        return seed, contexts[level if len(contexts) > 1 else 0] if contexts else None

    def _next_of_evaluation(self) -> tuple[int, Context | None]:
        count = self.num_evaluation_resets
        self.num_evaluation_resets += 1
        seed = self._counted_seed(self.weights_version, count)
        own = self._pool.seeds if self._pool else None
        attempt = 0
        while own is not None and seed in own:  # A user's levels may be any seeds.
            attempt += 1
            seed = self._counted_seed(self.weights_version, attempt, count)
        contexts = self._contexts.evaluation if self._contexts else None
        turn = self.slot + count * self.num_slots
        return seed, contexts[turn % len(contexts)] if contexts else None

    def _counted_seed(self, *counters: int) -> int:
        return environment_seed(
            self.root_seed,
            slot=self.slot,
            num_slots=self.num_slots,
            evaluation=self.evaluation,
            counters=counters,
        )

    def _enter(self, context: Context) -> None:
        """Puts the environment of a context in the place of the one before."""
        assert self._contexts is not None
        env = self._environments.pop(id(context), None)
        if env is None:
            env = self._contexts.make(context)
            for space in ("observation_space", "action_space"):
                if getattr(env, space) != getattr(self.env, space):
                    raise ValueError(
                        f"all contexts should have the {space} {getattr(self.env, space)}, found "
                        f"{getattr(env, space)} with {context!r}: leave that context out"
                    )
        self._environments[id(context)] = self.env = env
        if len(self._environments) > MOST_ENVIRONMENTS:
            oldest = self._environments.pop(next(iter(self._environments)))
            oldest.close()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Closes the environments of all contexts."""
        for env in {id(env): env for env in [self.env, *self._environments.values()]}.values():
            env.close()  # type: ignore[no-untyped-call]

    def take_played(self) -> dict[int, int]:
        """Returns episode -> level, of those since the last call and the one before them."""
        played = self._played
        self._played = dict(list(played.items())[-1:])  # It may go on.
        return played

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps the environment; see the class for what happens to non-finite numbers."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        finite = self.finite_reward(reward)
        if finite is not reward:
            info = {**info, TRUE_REWARD: math.nan if reward is None else float(reward)}
        return self._finite_obs(obs), finite, terminated, truncated, info

    # What a vector environment's `get_attr`, `set_attr` and `call` ask for

    @staticmethod
    def _is_own(name: str) -> bool:
        # What any wrapper has (`reset`, `step`, `action_space` …) is called through this one.
        return name.startswith(OWN) or hasattr(gym.Wrapper, name)

    def has_wrapper_attr(self, name: str) -> bool:
        """Whether there is such an attribute; see `get_wrapper_attr`."""
        if self._is_own(name):
            return hasattr(self, name.removeprefix(OWN))
        return bool(self.env.has_wrapper_attr(name))

    def get_wrapper_attr(self, name: str) -> Any:
        """Returns the user's attribute, or one of this wrapper's own, by its name with `OWN`."""
        if self._is_own(name):
            return getattr(self, name.removeprefix(OWN))
        return self.env.get_wrapper_attr(name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Sets an attribute; see `get_wrapper_attr`."""
        if self._is_own(name):
            setattr(self, name.removeprefix(OWN), value)
            return True
        return bool(self.env.set_wrapper_attr(name, value, force=force))

    # For a caller that has stepped the wrapped environment by itself

    def finite_reward(self, reward: Any) -> Any:
        """Returns the reward; in training 0 in place of None or a non-finite one: it is noted."""
        if reward is not None and math.isfinite(reward):
            return reward
        self.invalid = self.invalid or f"reward {reward}"
        return reward if self.evaluation else 0.0

    def replace_nonfinite(self, obs: Any, last_finite: np.ndarray) -> Any:
        """Returns the observation, or the last finite one in its place, which is noted."""
        self.remember(last_finite)
        return self._finite_obs(obs)

    def remember(self, obs: np.ndarray) -> None:
        """Takes note of the episode's last finite observation."""
        self._last_finite_obs = obs.copy()

    def _finite_obs(self, obs: Any) -> Any:
        if all(map(_is_finite, tree.flatten(obs))):
            # A copy: the environment may write into its own array again.
            self._last_finite_obs = tree.map_structure(_copy, obs)
            return obs
        self.invalid = self.invalid or "observation with NaN or infinite entries"
        if self._last_finite_obs is None:
            return tree.map_structure(np.zeros_like, obs)
        return self._last_finite_obs


def _is_finite(leaf: Any) -> bool:
    is_number = np.asarray(leaf).dtype.kind in "fc"
    return not is_number or bool(np.isfinite(leaf).all())


def _copy(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def env_maker(
    env: Any,  # RLlib takes a name, a class or a function.
    context: EnvContext,
    *,
    training: Sequence[Context] = (),
    evaluation_contexts: Sequence[Context] = (),
    **seeding: Any,  # Passed on unseen.
) -> Callable[[], SeededEnv]:
    """Returns a function that makes one sub-environment, for gymnasium's vector environments.

    Args:
        env: `config.env`: an id registered with Ray or gymnasium, a class or a function.
        context: The sub-environment's context.
        training: See `EnvContexts`; () without any.
        evaluation_contexts: See `EnvContexts`; () without any.
        seeding: Arguments of `SeededEnv`.
    """
    creator = env_creator(env)

    def make(own: Context) -> gym.Env[Any, Any]:
        return creator(context.copy_with_overrides(env_config={**context, **own}))

    def make_seeded() -> SeededEnv:
        if not (training or evaluation_contexts):
            return SeededEnv(creator(context), **seeding)
        none: Context = {}
        contexts = EnvContexts(make, training or [none], evaluation_contexts or [none])
        first = contexts.first(seeding["slot"], evaluation=seeding["evaluation"])
        return SeededEnv(make(first), contexts=contexts, **seeding)

    return make_seeded


class EnvSeeds:
    """What decides seed and context of every reset in one env runner.

    The counters of a running vector environment live in its `SeededEnv`s: those reset themselves
    when an episode ends. A vector environment that builds its parts itself (`vector_entry_point`)
    has none: only whole resets are seeded and counted then, by this class.

    Args:
        config: The env runner's config.
        env_runner: RLlib's index of the env runner (0 = local).
        root_seed: The root seed until a request brings the run's.

    Attributes:
        workers: The worker of each sub-environment.
    """

    def __init__(self, config: WeightedPPOConfig, env_runner: int, root_seed: int) -> None:
        layout = config.worker_layout
        envs = range(layout.num_envs_per_env_runner)
        self.root_seed = root_seed
        self.workers = [layout.worker(env_runner, index) for index in envs]
        self._slots = [layout.slot(env_runner, index) for index in envs]
        self._num_slots = layout.num_slots
        self._evaluates = bool(config.in_evaluation)
        self._contexts = config.env_contexts()
        self._pool = config.level_pool()
        self._draws: LevelDraws | None = None
        self._version = 0
        self._num_evaluations = 0
        self._num_evaluation_resets = 0
        self._resets = dict.fromkeys(self._slots, 0)
        self._resets_before_round = dict(self._resets)
        self._vector_env: VectorEnv | None = None

    def build(self, config: WeightedPPOConfig, context: EnvContext) -> VectorEnv:
        """Builds the vector environment: EnvPool's, or each sub-environment inside a `SeededEnv`.

        `EnvContext.vector_index` is each sub-environment's own index. (RLlib's is always 0.)
        """
        pool_id = envpool_id(config.env, config.env_backend)
        if pool_id is not None:
            self._vector_env = EnvPoolVectorEnv(
                pool_id,
                slots=self._slots,
                num_slots=self._num_slots,
                seed=self.root_seed,
                evaluation=self._evaluates,
                num_threads=self._pool_threads(config),
                options={**context, **self._context_of_all(config)},
            )
        else:
            makers = [self._maker(config, context, index) for index in range(len(self._slots))]
            is_async = gym.VectorizeMode(config.gym_env_vectorize_mode) == gym.VectorizeMode.ASYNC
            vector_class = gym.vector.AsyncVectorEnv if is_async else gym.vector.SyncVectorEnv
            self._vector_env = vector_class(makers)
        self._write_counters()
        return self._vector_env

    @staticmethod
    def _pool_threads(config: WeightedPPOConfig) -> int:
        """Returns the threads that step EnvPool's environments: a whole trial's, if alone."""
        alone = config.num_env_runners == 0
        cpus = trial_cpus(config) if alone else config.num_cpus_per_env_runner
        return num_threads(cpus, cores=cores_at_hand())

    def _context_of_all(self, config: WeightedPPOConfig) -> Context:
        """Returns the context that EnvPool's sub-environments share: validation has seen to it."""
        if not self._contexts:
            return {}
        return self._contexts[0 if config.in_evaluation else self.workers[0]]

    def _maker(
        self, config: WeightedPPOConfig, context: EnvContext, index: int
    ) -> Callable[[], SeededEnv]:
        levels = (self._pool and self._pool.contexts) or ()
        own = self._contexts
        if own and not config.in_evaluation:
            own = [own[self.workers[index]]]
        return env_maker(
            config.env,
            context.copy_with_overrides(vector_index=index),
            training=levels or own,
            evaluation_contexts=self._contexts or levels,
            seed=self.root_seed,
            slot=self._slots[index],
            num_slots=self._num_slots,
            evaluation=self._evaluates,
            seeding=config.env_seeding,
            pool=self._pool,
        )

    def release(self) -> None:
        """Keeps the counters of a vector environment that is going to be closed."""
        try:
            self._resets = self.num_resets
        except Exception:  # One of its processes is gone. Do not repeat its last episode.
            self._resets = {slot: count + 1 for slot, count in self._resets.items()}
        self._vector_env = None

    @property
    def num_resets(self) -> dict[int, int]:
        """Slot -> training resets used so far."""
        if self._vector_env is None:
            return dict(self._resets)
        counts = self._vector_env.get_attr(f"{OWN}num_resets")
        return dict(zip(self._slots, counts, strict=True))

    def set_counters(
        self, root_seed: int, num_resets: dict[int, int], draws: LevelDraws | None = None
    ) -> None:
        """Sets what the next training resets are drawn from.

        Args:
            root_seed: The run's root seed.
            num_resets: Slot -> resets used so far; may name slots of other env runners.
            draws: What the levels of the round are drawn from, if there are any.
        """
        self.root_seed = root_seed
        self._resets = {slot: num_resets.get(slot, 0) for slot in self._slots}
        self._resets_before_round = dict(self._resets)
        self._draws = draws
        self._write_counters()

    def _write_counters(self) -> None:
        self._set_all(num_resets=list(self._resets.values()), root_seed=self.root_seed)
        if self._pool is not None and self._draws is not None:
            before = list(self._resets_before_round.values())
            self._set_all(resets_before_round=before, draws=self._draws)

    def count_kept(self, plays: Iterable[LevelPlay]) -> None:
        """Counts only the episodes of the round that are kept, where all of them are whole.

        How many more a sub-environment began until its neighbours had enough, and so which level
        its next episode is of, would depend on who its neighbours are.
        """
        if self._pool is None:
            return
        self._resets = dict(self._resets_before_round)
        for play in plays:
            self._resets[play.slot] = max(self._resets[play.slot], play.episode + 1)
        self._set_all(num_resets=list(self._resets.values()))

    def next_episode(self, index: int) -> int:
        """Returns the number of a sub-environment's next training episode; -1: not counted."""
        if self._vector_env is None:
            return -1
        return int(self._vector_env.get_attr(f"{OWN}num_resets")[index])

    def take_plays(
        self, chunks: Iterable[EpisodeStats], invalid: Mapping[int, str]
    ) -> list[LevelPlay]:
        """Returns what a round holds of its episodes' levels; [] without levels.

        Args:
            chunks: The round's chunks.
            invalid: Workers whose rewards are partly unknown.
        """
        if self._pool is None or not isinstance(self._vector_env, SEEDED):
            return []
        played: Sequence[dict[int, int]] = self._vector_env.call(f"{OWN}take_played")
        return [
            LevelPlay(
                chunk.id_,
                chunk.worker,
                self._slots[chunk.env_index],
                chunk.number,
                played[chunk.env_index][chunk.number],
                chunk.t_started,
                chunk.length,
                math.nan if chunk.worker in invalid else chunk.undiscounted_return,
                chunk.is_done,
                chunk.success,
            )
            for chunk in chunks
            # Not there: the environment failed on the way to it and was made anew.
            if chunk.number in played[chunk.env_index]
        ]

    def _set_all(self, **attributes: Any) -> None:
        if self._vector_env is not None:
            for name, value in attributes.items():
                self._vector_env.set_attr(f"{OWN}{name}", value)

    def start_evaluation(self, version: int) -> int:
        """Lets resets draw from evaluation's seeds, which begin anew with a version of the weights.

        Returns:
            Which evaluation of these weights it is, from 1.
        """
        self._evaluates = True
        if version != self._version:
            self._version = version
            self._num_evaluations = self._num_evaluation_resets = 0
            self._set_all(weights_version=version, num_evaluation_resets=0)
        self._set_all(evaluation=True)
        self._num_evaluations += 1
        return self._num_evaluations

    def end_evaluation(self) -> None:
        """Lets resets draw from training's seeds again."""
        self._evaluates = False
        self._set_all(evaluation=False)

    def next_whole_reset(self) -> int | None:
        """Returns the seed of the next reset of a vector environment that builds its own parts.

        None if there are `SeededEnv`s: they decide.
        """
        if self._vector_env is not None:
            return None
        first = self._slots[0]
        counters: tuple[int, ...] = (self._resets[first],)
        if self._evaluates:
            counters = (self._version, self._num_evaluation_resets)
            self._num_evaluation_resets += 1
        else:
            self._resets = {slot: n + 1 for slot, n in self._resets.items()}
        return environment_seed(
            self.root_seed,
            slot=first,
            num_slots=self._num_slots,
            evaluation=self._evaluates,
            counters=counters,
        )

    def take_invalid(self) -> dict[int, str]:
        """Returns worker -> what was wrong with its numbers since the last call."""
        if self._vector_env is None:
            return {}
        found: dict[int, list[str]] = {}
        for index, reason in enumerate(self._vector_env.get_attr(f"{OWN}invalid")):
            if reason is not None:
                text = f"sub-environment {index}: {reason}"
                found.setdefault(self.workers[index], []).append(text)
        self._set_all(invalid=None)
        return {worker: "; ".join(texts) for worker, texts in found.items()}
