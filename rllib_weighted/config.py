"""The configuration: every setting, its default, and its validation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.ppo.ppo import PPOConfig
from ray.rllib.connectors.module_to_env import ListifyDataForVectorEnv
from ray.rllib.utils.annotations import override
from ray.rllib.utils.schedules.scheduler import Scheduler
from typing_extensions import Self

import rllib_weighted
from rllib_weighted.core.actions import CountActions, is_counted_elsewhere
from rllib_weighted.core.contexts import Context, WorkerContexts, resolve_contexts
from rllib_weighted.core.durable import DEFAULT_TIMEOUT_S
from rllib_weighted.core.envs import share_gym_env
from rllib_weighted.core.level_table import LevelTable
from rllib_weighted.core.levels import LevelPool, resolve_level_options
from rllib_weighted.core.observations import cast_observations
from rllib_weighted.core.spaces import check_spaces
from rllib_weighted.core.workers import MergeUnit, WorkerLayout
from rllib_weighted.learning.interfaces import Halves
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.learning.learner_group import WeightedLearnerGroup
from rllib_weighted.learning.parameters import ActorExport
from rllib_weighted.merging import SIGNALS, MergeChoice, Weighting, resolve_strategy
from rllib_weighted.records.origin import resolved_settings
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.validation import (
    CHECKED_NUMBERS,
    config_problems,
    has_sound_counts,
    no_ops,
)

logger = logging.getLogger(__name__)

_LACKED_BY_0_1 = (
    "env_backend",
    "learner_timeout_s",
    "level_options",
    "max_missed_rounds",
    "max_rounds_without_update",
    "merge_diagnostics_halves",
    "merge_diagnostics_interval",
    "merge_parts",
    "observation_scale",
    "per_worker_parameters",
    "storage_timeout_s",
    "worker_env_config",
)
_warned_of: set[tuple[str, str]] = set()


class WeightedPPOConfig(PPOConfig):
    """Configuration of `WeightedPPO`: everything that RLlib's `PPOConfig` has, and the merge.

    Examples:
        >>> from rllib_weighted import WeightedPPOConfig
        >>> config = (
        ...     WeightedPPOConfig()
        ...     .environment("CartPole-v1")
        ...     .env_runners(num_env_runners=2, num_envs_per_env_runner=4)
        ...     .training(merge_strategy="reward_weighted", merge_unit="env", min_weight=1 / 8)
        ... )
    """

    # Also of the class: 0.1 did not have these settings, and configs in its checkpoints lack them.
    env_backend = "gymnasium"
    observation_scale: float = 1.0
    per_worker_parameters: bool | None = None
    learner_timeout_s: float | None = 1800
    max_missed_rounds: int | None = 3
    max_rounds_without_update: int | None = 5
    storage_timeout_s = DEFAULT_TIMEOUT_S
    merge_diagnostics_interval: int | None = None
    worker_env_config: WorkerContexts | None = None
    level_options: dict[str, Any] = {}  # noqa: RUF012 (a default, not written to)
    merge_diagnostics_halves: Halves = "steps"
    merge_parts: dict[str, Any] | None = None

    def __init__(self, algo_class: type | None = None) -> None:
        """Initializes a WeightedPPOConfig with RLlib's PPO defaults and the merge's."""
        super().__init__(algo_class=algo_class or rllib_weighted.WeightedPPO)
        self.merge_strategy: str | Weighting = "reward_weighted"
        self.min_weight: float | list[Any] | None = None
        self.merge_options: dict[str, Any] = {}
        self.merge_arm: str | None = None
        self.per_worker_parameters = None
        self.merge_diagnostics_interval = None
        self.merge_diagnostics_halves = "steps"
        self.merge_parts = None
        self.merge_unit: MergeUnit = "env_runner"
        self.advantage_normalization = "worker"
        self.actor_export: ActorExport = "best"
        self.env_seeding = "stream"
        self.level_options = {}
        self.worker_env_config = None
        self.env_backend = "gymnasium"
        self.observation_scale = 1.0
        self.fast_learner = True
        self.fast_sampling = True
        self.learner_timeout_s = 1800
        self.max_missed_rounds = 3
        self.max_rounds_without_update = 5
        self.storage_timeout_s = DEFAULT_TIMEOUT_S
        # A round's order carries all state to the env runners; RLlib's own broadcast may lag.
        self._dont_auto_sync_env_runner_states = True

    @override(PPOConfig)
    def training(
        self,
        *,
        merge_strategy: Any = NotProvided,
        min_weight: Any = NotProvided,
        merge_options: Any = NotProvided,
        merge_arm: Any = NotProvided,
        per_worker_parameters: Any = NotProvided,
        merge_unit: Any = NotProvided,
        advantage_normalization: Any = NotProvided,
        actor_export: Any = NotProvided,
        merge_diagnostics_interval: Any = NotProvided,
        merge_diagnostics_halves: Any = NotProvided,
        merge_parts: Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training related configuration.

        Args:
            merge_strategy: "average", "sum", "reward_weighted" (default), "loss_weighted",
                "actor_average", "actor_sum", the name of a registered strategy, or a strategy
                object.
            min_weight: Minimum weight m that every worker gets on top of its share. None
                (default) is 1 / (number of workers); a number >= 0; or a schedule in RLlib's
                form, [[env steps, value], …]. `average` and `sum` have none and ignore it.
            merge_options: Options of the strategy, by name: see its fields.
            merge_arm: A name for the strategy and minimum weight, which `merge_grid` sets; nothing
                depends on it.
            per_worker_parameters: Whether every worker has its own parameters and optimizer state,
                and adds the merged gradient to its own: g_i' = g_i + sum_j w_j g_j, the weights
                w_j of any strategy. None (default): True for `actor_average`, `actor_sum` and
                strategies of your own that say so, False for all others.
            merge_unit: What a worker is: "env_runner" (default), or "env", a single
                sub-environment of a vectorised env runner.
            advantage_normalization: Over what advantages are standardised: "worker" (default),
                "batch" or "none".
            actor_export: What the policy is that is evaluated and saved when every worker has its
                own parameters: "best" (default), that of the worker with the highest reward
                signal, or "mean", the mean of their parameters.
            merge_diagnostics_interval: Every how many rounds the noise and the agreement of the
                workers' gradients are measured, before the first step, and what each strategy
                would gain is predicted from them (`merge/diagnostics/…`). None (default): never,
                but in every round with a strategy that reads these signals.
            merge_diagnostics_halves: What the two halves of a worker's batch are drawn from, whose
                gradients are compared: "steps" (default), of which neighbours resemble each other,
                so that the noise is a lower bound; or "episodes".
            merge_parts: Weights of its own for a part of the loss: {"value": the name of a
                strategy}, or {"value": {"merge_strategy": …, "merge_options": …, "min_weight": …}}
                for the value function's; the policy's follows `merge_strategy`. None (default): one
                weight for both.
            kwargs: Everything that `PPOConfig.training` takes.

        Returns:
            This updated config.
        """
        super().training(**kwargs)
        self._set_given(
            merge_strategy=merge_strategy,
            min_weight=min_weight,
            merge_options=merge_options,
            merge_arm=merge_arm,
            per_worker_parameters=per_worker_parameters,
            merge_unit=merge_unit,
            advantage_normalization=advantage_normalization,
            actor_export=actor_export,
            merge_diagnostics_interval=merge_diagnostics_interval,
            merge_diagnostics_halves=merge_diagnostics_halves,
            merge_parts=merge_parts,
        )
        return self

    @override(PPOConfig)
    def env_runners(
        self,
        *,
        env_seeding: Any = NotProvided,
        level_options: Any = NotProvided,
        worker_env_config: Any = NotProvided,
        env_backend: Any = NotProvided,
        fast_sampling: Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the env runners' configuration.

        Args:
            env_seeding: "stream" (default): every episode of a worker is new, and the same again
                in a second run. "fixed": every reset of a sub-environment uses its own seed
                again, so that workers differ for the whole run. "prioritized": every episode is
                of a level that is drawn from a pool by how much there is to learn from it and by
                how long ago it was played, after arXiv 2010.03934.
            level_options: Options of "prioritized", by name: `pool` (a number of levels, a list of
                seeds or a list of dicts that are merged into `env_config`; 8 levels per worker),
                `score` ("value_error", "learnability", "return" or a function), `beta` (0.1),
                `staleness` (0.1), `window` (10) and `success_return`; see
                `rllib_weighted.core.levels.LevelOptions`.
            worker_env_config: What each worker's `env_config` is updated by: a list of dicts, one
                per worker, or a function from the worker's number (0 … N - 1) to its dict, which
                must return the same in every process. Evaluation takes all of them in turn,
                episode by episode, or those in `evaluation_config={"worker_env_config": [...]}`.
            env_backend: What steps the environments: "gymnasium" (default), or "envpool", whose own
                environments are several times as fast; `.environment("envpool:<id>")` says the
                same. EnvPool cannot seed an episode: only `env_seeding="stream"` is taken, and a
                restored run goes on with new episodes, not with those it would have seen.
            fast_sampling: Whether rollouts are sampled on arrays, and handed on as such, where
                nothing in the config can see the difference (default True). False: always in
                RLlib's own loop, as episodes.
            kwargs: Everything that `AlgorithmConfig.env_runners` takes.

        Returns:
            This updated config.
        """
        given = {
            "env_seeding": env_seeding,
            "level_options": level_options,
            "worker_env_config": worker_env_config,
            "env_backend": env_backend,
            "fast_sampling": fast_sampling,
        }
        if not isinstance(kwargs.get("num_envs_per_env_runner", 0), int):
            # RLlib compares it with 0 at once, which a Tune space does not stand; `validate` will.
            given["num_envs_per_env_runner"] = kwargs.pop("num_envs_per_env_runner")
        super().env_runners(**kwargs)
        self._set_given(**given)
        return self

    @override(PPOConfig)
    def learners(self, *, fast_learner: Any = NotProvided, **kwargs: Any) -> Self:
        """Sets the learners' configuration.

        Args:
            fast_learner: Whether optimizer steps are taken without autograd where that is known to
                give the same (default True): RLlib's default module with dense layers on a CPU,
                PPO's own loss and Adam. False: always with autograd.
            kwargs: Everything that `AlgorithmConfig.learners` takes.

        Returns:
            This updated config.
        """
        super().learners(**kwargs)
        self._set_given(fast_learner=fast_learner)
        return self

    @override(PPOConfig)
    def rl_module(self, *, observation_scale: Any = NotProvided, **kwargs: Any) -> Self:
        """Sets the configuration of the module.

        Args:
            observation_scale: What RLlib's default module multiplies observations by, after it has
                made floats of them (default 1: whole numbers keep their values). 1 / 255 for
                images: they stay uint8 in rollouts and batches.
            kwargs: Everything that `AlgorithmConfig.rl_module` takes.

        Returns:
            This updated config.
        """
        super().rl_module(**kwargs)
        self._set_given(observation_scale=observation_scale)
        return self

    @override(PPOConfig)
    def fault_tolerance(
        self,
        *,
        learner_timeout_s: Any = NotProvided,
        max_missed_rounds: Any = NotProvided,
        max_rounds_without_update: Any = NotProvided,
        storage_timeout_s: Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets what happens when processes, environments or a storage fail.

        Args:
            learner_timeout_s: Seconds within which remote learners should be done with a round's
                update, or with a part of a checkpoint (default 1800, as long as learners wait for
                each other). Who is not is ended, and the run with an error; the state before the
                round is saved, and the trial goes on from it when it is run again. None: any time.
            max_missed_rounds: After how many rounds in a row of which an env runner sends nothing
                within `sample_timeout_s` it is killed and started anew (default 3). None: never.
                It needs `restart_failed_env_runners`.
            max_rounds_without_update: After how many rounds in a row in which every worker is
                dropped, so that nothing is learned, the run ends with an error that names the
                first cause (default 5). None: it never does.
            storage_timeout_s: Seconds for which writing a checkpoint or the merge history to a
                remote storage is tried again while the store does not answer, or fails by itself
                (default 300); 0 gives up at once. A store that refuses is an error at once.
            kwargs: Everything that `AlgorithmConfig.fault_tolerance` takes.

        Returns:
            This updated config.
        """
        super().fault_tolerance(**kwargs)
        self._set_given(
            learner_timeout_s=learner_timeout_s,
            max_missed_rounds=max_missed_rounds,
            max_rounds_without_update=max_rounds_without_update,
            storage_timeout_s=storage_timeout_s,
        )
        return self

    def _set_given(self, **settings: Any) -> None:
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, value)

    # Tune's samplers draw numpy numbers; RLlib asks for plain ones.

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value.item() if isinstance(value, np.generic) else value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value.item() if isinstance(value, np.generic) else value)

    @override(AlgorithmConfig)
    def to_dict(self) -> dict[str, Any]:
        """Returns all settings by name; those that 0.1 did not have only if they are changed.

        Tune resumes an experiment with exactly the names that it was started with.
        """
        settings: dict[str, Any] = super().to_dict()
        for name in _LACKED_BY_0_1:
            if settings[name] == getattr(type(self), name):
                del settings[name]
        return settings

    @override(AlgorithmConfig)
    def get_state(self) -> dict[str, Any]:
        """Returns all settings, also those that are -1.

        RLlib (2.60) leaves out whatever equals -1, its marker of deprecated settings; a mistaken
        -1 would become the default, and nobody would see it.
        """
        state: dict[str, Any] = super().get_state()
        return state | {name: getattr(self, name) for name in CHECKED_NUMBERS}

    # What RLlib builds from this config

    @override(PPOConfig)
    def get_default_learner_class(self) -> type[WeightedPPOLearner]:
        return WeightedPPOLearner

    @override(AlgorithmConfig)
    def build_learner_group(
        self,
        *,
        env: Any = None,
        spaces: Any = None,
        rl_module_spec: Any = None,
        placement_group: Any = None,
    ) -> WeightedLearnerGroup:
        if rl_module_spec is None:
            rl_module_spec = self.get_multi_rl_module_spec(env=env, spaces=spaces)
        return WeightedLearnerGroup(
            config=self.copy(), module_spec=rl_module_spec, placement_group=placement_group
        )

    @override(AlgorithmConfig)
    def get_rl_module_spec(self, *args: Any, **kwargs: Any) -> Any:
        spec = super().get_rl_module_spec(*args, **kwargs)
        check_spaces(spec)
        cast_observations(spec, self.observation_scale)
        return spec

    @override(AlgorithmConfig)
    def get_multi_rl_module_spec(self, **kwargs: Any) -> Any:
        spec = super().get_multi_rl_module_spec(**kwargs)
        for module_spec in spec.rl_module_specs.values():
            check_spaces(module_spec)
            cast_observations(module_spec, self.observation_scale)
        return spec

    @override(AlgorithmConfig)
    def build_module_to_env_connector(self, env: Any = None, spaces: Any = None) -> Any:
        pipeline = super().build_module_to_env_connector(env=env, spaces=spaces)
        if (
            self.add_default_connectors_to_module_to_env_pipeline
            and pipeline.input_action_space is not None
            and is_counted_elsewhere(pipeline.input_action_space)
        ):
            pipeline.insert_before(ListifyDataForVectorEnv, CountActions())
        return pipeline

    @override(AlgorithmConfig)
    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        """Returns evaluation's config, with the contexts that its env runners take in turn."""
        own: AlgorithmConfig | None = super().get_evaluation_config_object()
        if isinstance(own, WeightedPPOConfig):
            given = own.worker_env_config  # Its own, or else this config's.
            contexts = resolve_contexts(given, self.worker_layout.num_workers)
            pool = self.level_pool()
            if not contexts and pool is not None:
                contexts = list(pool.contexts or ())
            own.worker_env_config = contexts or None
        return own

    @override(PPOConfig)
    def validate(self) -> None:
        """Checks all settings at once.

        Raises:
            ValueError: With every problem found: what should be, what was found, the remedy.
        """
        if self.env_runner_cls is None:  # type: ignore[has-type]
            self.env_runner_cls = WeightedEnvRunner
        if self.in_evaluation:
            super().validate()
            return
        problems = config_problems(self)
        if problems and not self._validate_config:
            logger.warning("Problems in the config:\n%s", _listed(problems))
        elif problems:
            if has_sound_counts(self):
                problems += _upstream_problems(self._validate_upstream)
            raise ValueError(
                f"{len(problems)} problem{'s' * (len(problems) > 1)} in the config:\n"
                + _listed(problems)
            )
        self._validate_upstream()
        mode = getattr(self.gym_env_vectorize_mode, "value", self.gym_env_vectorize_mode)
        if mode != "vector_entry_point":
            share_gym_env(self.env)
        if self._validate_config:
            self._warn_of_unused_min_weight()
            for name, text in no_ops(self).items():
                _warn_once((name, ""), text)
            self._warn_of_unused_level_options()

    def _validate_upstream(self) -> None:
        """Runs RLlib's own validation, to which `minibatch_size` is that of a single learner.

        Here it is that of all learners together, so that a step is the same for any number of
        them; `config_problems` has compared it with the whole batch.
        """
        wanted = self.minibatch_size
        if isinstance(wanted, int) and self.num_learners > 1:
            object.__setattr__(self, "minibatch_size", max(1, wanted // self.num_learners))
        try:
            super().validate()
        finally:
            object.__setattr__(self, "minibatch_size", wanted)  # Even if frozen.

    def _warn_of_unused_min_weight(self) -> None:
        strategy = self.resolve_merge_strategy()
        choice = type(strategy).__name__, str(self.min_weight)
        if self.min_weight is not None and not strategy.uses_min_weight:
            _warn_once(
                choice,
                f"`min_weight`={self.min_weight} is ignored: `merge_strategy`="
                f"{self.merge_strategy!r} has no minimum weight.",
            )

    def _warn_of_unused_level_options(self) -> None:
        if self.level_options and self.env_seeding != "prioritized":
            _warn_once(
                ("level_options", str(self.level_options)),
                f'`level_options` is ignored: `env_seeding`="{self.env_seeding}" draws no levels.',
            )

    # The merge's settings, resolved

    @property
    @override(AlgorithmConfig)
    def total_train_batch_size(self) -> int:
        """Environment steps per round over all learners.

        RLlib rounds `train_batch_size` down to a multiple of `num_learners`; then another number
        of learners would be another run.
        """
        if self._train_batch_size_per_learner is None:
            return int(self.train_batch_size)
        return int(super().total_train_batch_size)

    @property
    def worker_layout(self) -> WorkerLayout:
        """Numbering of the workers that are merged."""
        return WorkerLayout(self.num_env_runners, self.num_envs_per_env_runner, self.merge_unit)

    def env_contexts(self) -> list[Context]:
        """Returns each worker's context, in evaluation those that come in turn; [] without any."""
        return resolve_contexts(self.worker_env_config, self.worker_layout.num_workers)

    def level_pool(self) -> LevelPool | None:
        """Returns the levels that episodes are drawn from; None if they are not."""
        if self.env_seeding != "prioritized":
            return None
        options = resolve_level_options(self.level_options)
        return LevelPool.of(options.pool, self.worker_layout.num_workers)

    def make_level_table(self) -> LevelTable | None:
        """Returns a new table of the levels; None if there are none."""
        pool = self.level_pool()
        if pool is None:
            return None
        return LevelTable(pool, resolve_level_options(self.level_options))

    def resolve_merge_strategy(self) -> Weighting:
        """Returns the strategy object that `merge_strategy` and `merge_options` name."""
        return resolve_strategy(self.merge_strategy, self.merge_options)

    @property
    def value_merge(self) -> MergeChoice | None:
        """What `merge_parts` says of the value function's part of the loss; None if nothing."""
        return None if not self.merge_parts else MergeChoice.of(self.merge_parts["value"])

    @property
    def uses_per_worker_parameters(self) -> bool:
        """Whether every worker has its own parameters: as set, or else as the strategy has it."""
        if self.per_worker_parameters is None:
            return self.resolve_merge_strategy().per_worker_parameters
        return self.per_worker_parameters

    @property
    def merge_signals(self) -> tuple[str, ...]:
        """The signals that the strategies of all parts read."""
        value = self.value_merge
        of_value = () if value is None else value.resolve().signals
        return (*self.resolve_merge_strategy().signals, *of_value)

    def measures_gradients(self, round: int) -> bool:
        """Whether the workers' gradients are measured in a round (the first is 1)."""
        interval = self.merge_diagnostics_interval
        if interval is None:
            signals = self.merge_signals
            return any(SIGNALS[name].measured_on == "gradients" for name in signals)
        return (round - 1) % interval == 0

    def resolved_settings(self) -> dict[str, Any]:
        """Returns the settings that can change what is learned, as the merge history stores them.

        See `rllib_weighted.records.origin.resolved_settings` for the keys.
        """
        strategy = self.resolve_merge_strategy()
        name = self.merge_strategy
        num_workers = self.worker_layout.num_workers
        default = 0.0 if strategy.has_own_floor else 1 / num_workers
        min_weight = default if self.min_weight is None else self.min_weight
        options: dict[str, Any] = {}
        if dataclasses.is_dataclass(strategy):
            options = {
                option.name: getattr(strategy, option.name)
                for option in dataclasses.fields(strategy)
                if getattr(strategy, option.name) != option.default
            }
        settings = self.to_dict()
        if callable(self.worker_env_config):
            settings["worker_env_config"] = self.env_contexts()
        return resolved_settings(
            settings,
            merge_strategy=name if isinstance(name, str) else type(strategy).__name__,
            merge_options=options,
            min_weight=min_weight if strategy.uses_min_weight else None,
            num_workers=num_workers,
        )

    def min_weight_at(self, env_steps: int) -> float | None:
        """Returns the minimum weight after that many environment steps; None is 1/N."""
        if self.min_weight is None:
            return None
        scheduler = Scheduler(fixed_value_or_schedule=self.min_weight, framework="torch")
        return float(scheduler.update(timestep=env_steps))


def _warn_once(key: tuple[str, str], text: str) -> None:
    if key not in _warned_of:  # A config is validated many times on its way to the workers.
        _warned_of.add(key)
        logger.warning(text)


def _listed(problems: list[str]) -> str:
    # A problem may hold a traceback.
    return "\n".join("- " + problem.replace("\n", "\n  ") for problem in problems)


def _upstream_problems(validate: Callable[[], None]) -> list[str]:
    """Returns what RLlib's own validation complains of; it stops at its first problem."""
    try:
        validate()
    except ValueError as error:
        return [f"RLlib: {str(error).splitlines()[0]}"]
    except Exception:  # It may trip over what is already listed.
        return []
    return []
