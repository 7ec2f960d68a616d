"""What is wrong with a config: every problem, each with what should be, is, and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_weighted._private import batch_size_per_learner, grad_scaler_class
from rllib_weighted.core.contexts import context_problems
from rllib_weighted.core.envs import env_problem, envpool_id
from rllib_weighted.core.level_table import score_problem
from rllib_weighted.core.levels import LevelPool, level_problems, resolve_level_options
from rllib_weighted.core.modules import user_override
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.merging import MergeChoice, strategy_problems
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.suggest import nearest, shown

if TYPE_CHECKING:
    from rllib_weighted.config import WeightedPPOConfig


class _Rule(NamedTuple):
    """What a setting should be; RLlib itself checks few of them.

    Args:
        should_be: In words.
        holds: The test of a value. Each value of a schedule must pass it.
        remedy: What to do; `{default}` stands for the setting's default.
        choices: The nearest of these, if one is near, is suggested instead of the remedy.
        may_be_none: Whether None is allowed; it is not tested then.
        may_be_scheduled: Whether a schedule in RLlib's form is allowed.
    """

    should_be: str
    holds: Callable[[Any], bool]
    remedy: str = "change it, or leave it out for the default {default!r}"
    choices: tuple[str, ...] = ()
    may_be_none: bool = False
    may_be_scheduled: bool = False


def _is_number(value: Any, *, infinite: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return not math.isnan(value) and (infinite or math.isfinite(value))
    except OverflowError:  # A whole number that no float can hold.
        return False


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _one_of(*choices: str) -> _Rule:
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return _Rule(f"one of {listed}", lambda x: x in choices, "use {default!r}", choices)


def _subclass_of(base: type) -> _Rule:
    return _Rule(
        f"a subclass of rllib_weighted's {base.__name__}",
        lambda x: isinstance(x, type) and issubclass(x, base),
        "derive yours from it.",
    )


def _count(least: int) -> _Rule:
    return _Rule(f"a whole number >= {least}", lambda x: _is_count(x, least))


_SWITCH = _Rule("True or False", lambda x: isinstance(x, bool), "use {default}")
_FROM_0_TO_1 = _Rule("a number from 0 to 1", lambda x: _is_number(x) and 0 <= x <= 1)
_POSITIVE = _Rule("a number > 0", lambda x: _is_number(x) and x > 0)
_NOT_NEGATIVE = _Rule("a number >= 0", lambda x: _is_number(x) and x >= 0)
_NOT_NEGATIVE_OR_SCHEDULE = _NOT_NEGATIVE._replace(
    should_be="a number >= 0, or a schedule [[env steps, value], …]", may_be_scheduled=True
)
_POSITIVE_OR_NONE = _POSITIVE._replace(should_be="a number > 0, or None", may_be_none=True)
_MAX_SEED = 2**32 - 1  # Of numpy's global generator, which RLlib seeds.

_POSITIVE_COUNT_OR_NONE = _count(1)._replace(
    should_be="a whole number >= 1, or None", may_be_none=True
)

_COUNTS = {
    "num_epochs": _count(1),
    "num_envs_per_env_runner": _count(1),
    "num_env_runners": _count(0),
    "num_learners": _count(0),
}
_NUMBERS = _COUNTS | {
    "min_weight": _NOT_NEGATIVE_OR_SCHEDULE._replace(may_be_none=True),
    "merge_diagnostics_interval": _count(1)._replace(
        should_be="a whole number of rounds >= 1, or None", may_be_none=True
    ),
    "lr": _NOT_NEGATIVE_OR_SCHEDULE,
    "entropy_coeff": _NOT_NEGATIVE_OR_SCHEDULE,
    "gamma": _FROM_0_TO_1,
    "lambda_": _FROM_0_TO_1,
    "clip_param": _POSITIVE,
    # It may be infinite. `grad_clip` may not: RLlib's clipping by the global norm divides it by
    # itself.
    "vf_clip_param": _POSITIVE_OR_NONE._replace(
        holds=lambda x: _is_number(x, infinite=True) and x > 0
    ),
    "vf_loss_coeff": _NOT_NEGATIVE,
    "kl_coeff": _NOT_NEGATIVE,
    "kl_target": _POSITIVE,
    "grad_clip": _POSITIVE_OR_NONE,
    "observation_scale": _POSITIVE,
    "storage_timeout_s": _NOT_NEGATIVE,
    "learner_timeout_s": _POSITIVE_OR_NONE,
    "seed": _Rule(
        f"None or a whole number from 0 to {_MAX_SEED}",
        lambda x: _is_count(x, 0) and x <= _MAX_SEED,
        may_be_none=True,
    ),
    "max_missed_rounds": _POSITIVE_COUNT_OR_NONE,
    "max_rounds_without_update": _POSITIVE_COUNT_OR_NONE,
    "rollout_fragment_length": _Rule(
        '"auto" or a whole number >= 1', lambda x: x == "auto" or _is_count(x, 1), 'use "auto"'
    ),
}
_RULES = _NUMBERS | {
    "merge_unit": _one_of("env_runner", "env"),
    "advantage_normalization": _one_of("worker", "batch", "none"),
    "merge_diagnostics_halves": _one_of("steps", "episodes"),
    "env_seeding": _one_of("stream", "fixed", "prioritized"),
    "env_backend": _one_of("gymnasium", "envpool"),
    "actor_export": _one_of("best", "mean"),
    "batch_mode": _one_of("truncate_episodes", "complete_episodes"),
    "fast_learner": _SWITCH,
    "fast_sampling": _SWITCH,
    "per_worker_parameters": _Rule(
        "True, False or None",
        lambda x: isinstance(x, bool),
        "use None, which leaves it to the merge strategy",
        may_be_none=True,
    ),
    "env_runner_cls": _subclass_of(WeightedEnvRunner),
    "learner_class": _subclass_of(WeightedPPOLearner),
    "num_aggregator_actors_per_learner": _Rule(
        "0", lambda x: not x, "whole workers go to the learner."
    ),
    "input_": _Rule(
        '"sampler"',
        lambda x: not x or x == "sampler",
        "leave it out: WeightedPPO learns from what its env runners sample",
    ),
    "offline_evaluation_interval": _Rule(
        "None",
        lambda x: not x,
        "leave it out: there are no offline data. Use `evaluation_interval`",
    ),
    "num_offline_eval_runners": _Rule(
        "0",
        lambda x: not x,
        "leave it out: there are no offline data. See `evaluation_num_env_runners`",
    ),
    "torch_ddp_kwargs": _Rule(
        "empty",
        lambda x: not x,
        "leave it out: learners sum their gradients without DistributedDataParallel",
    ),
    "policies_to_train": _Rule(
        'None, or a list with "default_policy"',
        lambda x: x is None or (isinstance(x, (list, tuple, set)) and "default_policy" in x),
        "leave it out: there is one policy, and it is trained",
    ),
    "output": _Rule(
        "None",
        lambda x: not x,
        "leave it out: WeightedPPO's env runners write no offline data. RLlib's PPO does, or an "
        "`on_episode_end` callback of yours",
    ),
    "torch_skip_nan_gradients": _Rule(
        "False",
        lambda x: not x,
        "in RLlib it applies NaN gradients. A worker with such a gradient is dropped from the "
        "merge by itself.",
    ),
}

CHECKED_NUMBERS = frozenset(
    [*_NUMBERS, "minibatch_size", "train_batch_size", "_train_batch_size_per_learner"]
)


def config_problems(config: WeightedPPOConfig) -> list[str]:
    """Returns all problems of a `WeightedPPOConfig`, in readable sentences; [] if there is none."""
    of_strategy = strategy_problems(config.merge_strategy, config.merge_options)
    problems = [
        *_unknown_settings(config),
        *_broken_rules(config, _RULES),
        *_stack(config),
        *of_strategy,
    ]
    if not of_strategy and not any(_broken_rules(config, ["per_worker_parameters"])):
        problems += _per_worker_parameters(config)
        problems += _aggregated(config)
        problems += _parts(config)
    if not any(_broken_rules(config, (*_COUNTS, "merge_unit"))):
        compares = not of_strategy and bool(config.resolve_merge_strategy().signals)
        problems += _workers(config, compares)
        problems += _contexts(config)
        problems += _levels(config)
    problems += _envpool(config)
    problem = env_problem(config.env, config.env_backend)
    return [*problems, problem] if problem else problems


def no_ops(config: WeightedPPOConfig) -> dict[str, str]:
    """Returns settings that are set and that RLlib's new API stack (2.60) does not read.

    Returns:
        Name -> what to say, with what takes its place.
    """
    found = {
        "clip_rewards": (config.clip_rewards, "clip them in a wrapper of the environment"),
        "observation_filter": (
            config.observation_filter not in (None, "NoFilter"),
            "use `config.env_runners(env_to_module_connector=lambda env, spaces, device: "
            "MeanStdFilter())`",
        ),
        "use_attention": (
            config.model_config.get("use_attention"),
            "use `use_lstm`, or an RLModule of your own",
        ),
    }
    return {
        name: f"`{name}` is ignored: RLlib's new API stack does not read it; {remedy}."
        for name, (is_set, remedy) in found.items()
        if is_set
    }


def has_sound_counts(config: WeightedPPOConfig) -> bool:
    """Whether RLlib's own validation can do its sums: on a rollout of 0 steps it never returns."""
    return not any(_broken_rules(config, (*_COUNTS, "rollout_fragment_length"))) and all(
        value is None or _is_count(value, 1)
        for value in (config.train_batch_size, batch_size_per_learner(config))
    )


def _broken_rules(config: WeightedPPOConfig, settings: Iterable[str]) -> Iterator[str]:
    """What is wrong with single settings, each looked at by itself."""
    for name in settings:
        rule, value = _RULES[name], getattr(config, name)
        if value is None and rule.may_be_none:
            continue
        values = [value]
        if rule.may_be_scheduled and isinstance(value, (list, tuple)):
            yield from _schedule_problems(name, value)
            values = [
                pair[1] for pair in value if isinstance(pair, (list, tuple)) and len(pair) > 1
            ]
        wrong = [found for found in values if not rule.holds(found)]
        if wrong:
            remedy = rule.remedy.format(default=getattr(type(config)(), name))
            ending = nearest(wrong[0], rule.choices) or f": {remedy}"
            yield f"`{name}` should be {rule.should_be}, found {_shown(wrong[0])}{ending}"


def _unknown_settings(config: WeightedPPOConfig) -> Iterator[str]:
    """Misspelt keys of a plain dict, which RLlib would silently set as attributes."""
    known = vars(type(config)())
    for name in vars(config):
        if name in known or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, [k for k in known if k[0] != "_"], 1, cutoff=0.8)
        if near:
            yield f"`{name}` is no setting: did you mean `{near[0]}`?"


def _schedule_problems(name: str, schedule: Any) -> Iterator[str]:
    pairs = [pair for pair in schedule if isinstance(pair, (list, tuple)) and len(pair) == 2]
    steps = [pair[0] for pair in pairs]
    sound = len(pairs) == len(schedule) >= 2 and all(_is_number(step) for step in steps)
    if not sound or steps[0] != 0 or steps != sorted(set(steps)):
        yield (
            f"`{name}` as a schedule should be two or more pairs [env steps, value], the first at "
            f"step 0, in rising order of steps, found {shown(schedule)}: write "
            "[[0, first value], [env steps, last value]]"
        )


def _shown(value: Any) -> str:
    return f"{float(value):g}" if isinstance(value, float) else shown(value)


def _stack(config: WeightedPPOConfig) -> Iterator[str]:
    """What this package needs of RLlib's machinery."""
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        yield (
            "WeightedPPO runs on RLlib's new API stack only: leave `enable_rl_module_and_learner` "
            "and `enable_env_runner_and_connector_v2` at True."
        )
    if config.framework_str != "torch":
        yield f'`framework` should be "torch", found "{config.framework_str}": leave it out'
    if config.is_multi_agent or (
        isinstance(config.env, type) and issubclass(config.env, MultiAgentEnv)
    ):
        yield (
            "WeightedPPO merges single-agent environments, found a multi-agent one (policies "
            f"{sorted(map(str, config.policies))}): there is no reward signal per agent to merge "
            "each module by. Use a single-agent environment, or RLlib's PPO."
        )


# Hooks of a learner that see one parameter set; workers with their own have no use for them.
_HOOKS_OF_ONE_SET = (
    "configure_optimizers",
    "configure_optimizers_for_module",
    "compute_gradients",
    "postprocess_gradients",
    "postprocess_gradients_for_module",
)


def _per_worker_parameters(config: WeightedPPOConfig) -> Iterator[str]:
    """What does not go together with a parameter set per worker."""
    if not config.uses_per_worker_parameters:
        return
    name = "merge_strategy" if config.per_worker_parameters is None else "per_worker_parameters"
    cause = f"`{name}`={getattr(config, name)!r}"
    if _RULES["learner_class"].holds(config.learner_class):
        for hook in _HOOKS_OF_ONE_SET:
            if getattr(config.learner_class, hook) is not getattr(WeightedPPOLearner, hook):
                yield (
                    f"{cause} gives every worker its own optimizer and does not call `{hook}`, "
                    f"but {config.learner_class.__name__} overrides it: leave it out, or share "
                    "the parameters with `per_worker_parameters`=False"
                )
    if grad_scaler_class(config) is not None:
        yield (
            f"{cause} works without a gradient scaler, found "
            f"{grad_scaler_class(config)!r}: leave `_torch_grad_scaler_class` out"
        )


def _aggregated(config: WeightedPPOConfig) -> Iterator[str]:
    """What does not go together with an aggregator of gradients."""
    if not config.resolve_merge_strategy().aggregates_gradients:
        return
    cause = f"`merge_strategy`={config.merge_strategy!r} merges the gradients themselves"
    if config.uses_per_worker_parameters:
        yield (
            f"{cause}, which workers with parameters of their own do not have in common: leave "
            "`per_worker_parameters` out, or use a strategy with weights"
        )
    learner = config.learner_class
    if _RULES["learner_class"].holds(learner) and (
        learner.compute_gradients is not WeightedPPOLearner.compute_gradients
    ):
        yield (
            f"{cause} and does not call `compute_gradients`, but {learner.__name__} overrides it: "
            "leave it out, or use a strategy with weights"
        )


def _parts(config: WeightedPPOConfig) -> Iterator[str]:
    """What is wrong with the weights of a part of the loss."""
    parts = config.merge_parts
    if parts is None:
        return
    if not isinstance(parts, dict) or [*parts] != ["value"]:
        yield (
            '`merge_parts` should be None or a dict with the key "value", found '
            f'{parts!r}: write {{"value": "average"}}; the policy\'s part follows `merge_strategy`'
        )
        return
    fields = ("merge_strategy", "merge_options", "min_weight")
    value = parts["value"]
    if isinstance(value, dict) and not {"merge_strategy"} <= value.keys() <= {*fields}:
        yield (
            f'`merge_parts`["value"] should have the keys {", ".join(fields)}, of which the first '
            f"is needed, found {sorted(map(str, value))}: rename or remove the others"
        )
        return
    choice = MergeChoice.of(value)
    found = strategy_problems(choice.merge_strategy, choice.merge_options)
    yield from (f'in `merge_parts`["value"]: {problem}' for problem in found)
    if not (
        choice.min_weight is None or (_is_number(choice.min_weight) and choice.min_weight >= 0)
    ):
        yield (
            '`min_weight` in `merge_parts`["value"] should be a number >= 0 or None, found '
            f"{choice.min_weight!r}: change it, or leave it out"
        )
    kinds = [config.resolve_merge_strategy(), *([] if found else [choice.resolve()])]
    if config.uses_per_worker_parameters or any(kind.aggregates_gradients for kind in kinds):
        yield (
            "`merge_parts` needs shared parameters and strategies with weights, found "
            f"`merge_strategy`={config.merge_strategy!r} and {value!r}: leave `merge_parts` out, "
            "or use other strategies"
        )
    if _RULES["learner_class"].holds(config.learner_class) and user_override(
        config.learner_class, "compute_loss_for_module", "compute_losses"
    ):
        yield (
            "`merge_parts` needs PPO's own loss, whose parts are known, but "
            f"{config.learner_class.__name__} overrides it: leave `merge_parts` out"
        )


def _envpool(config: WeightedPPOConfig) -> Iterator[str]:
    """What does not go together with EnvPool."""
    if envpool_id(config.env, config.env_backend) is None:
        return
    if config.env_seeding in ("fixed", "prioritized"):
        yield (
            '`env_seeding` should be "stream" with EnvPool, which cannot seed an episode, found '
            f'"{config.env_seeding}": leave it out, or use `env_backend`="gymnasium"'
        )
    if config.worker_env_config is not None:
        yield from _envpool_contexts(config)
    mode = getattr(config.gym_env_vectorize_mode, "value", config.gym_env_vectorize_mode)
    if mode != "sync":
        yield (
            f'`gym_env_vectorize_mode` should be "sync" with EnvPool, found "{mode}": leave it '
            "out, EnvPool steps all sub-environments by itself"
        )


def _envpool_contexts(config: WeightedPPOConfig) -> Iterator[str]:
    """An EnvPool has one set of options for all of its sub-environments, and for all its life."""
    if config.merge_unit == "env" and config.num_envs_per_env_runner != 1:
        yield (
            '`worker_env_config` should go with `merge_unit`="env_runner" or '
            "`num_envs_per_env_runner`=1 with EnvPool, whose sub-environments share their options, "
            f'found `merge_unit`="env" with {config.num_envs_per_env_runner} sub-environments: '
            'change one of them, or use `env_backend`="gymnasium"'
        )
    own = _evaluation_settings(config)
    backend = own.get("env_backend", config.env_backend)
    if not config.evaluation_interval or envpool_id(own.get("env", config.env), backend) is None:
        return
    contexts = own.get("worker_env_config", config.worker_env_config)
    if callable(contexts) or not isinstance(contexts, (list, tuple)) or len(contexts) != 1:
        yield (
            "evaluation should have a single context with EnvPool, which cannot change them "
            "between episodes: evaluate gymnasium's environment (`evaluation_config="
            '{"env_backend": "gymnasium"}`, or another `env` there), or give one context, '
            '`evaluation_config={"worker_env_config": [{…}]}`'
        )


def _evaluation_settings(config: WeightedPPOConfig) -> dict[str, Any]:
    """Returns the settings that evaluation overrides."""
    return config.evaluation_config if isinstance(config.evaluation_config, dict) else {}


def _contexts(config: WeightedPPOConfig) -> Iterator[str]:
    """What is wrong with the workers' contexts, and with those of evaluation."""
    num_workers = config.worker_layout.num_workers
    own = _evaluation_settings(config)
    yield from context_problems(
        "worker_env_config",
        config.worker_env_config,
        num_workers=num_workers,
        env=config.env,
        backend=config.env_backend,
    )
    yield from context_problems(
        "worker_env_config` of `evaluation_config",
        own.get("worker_env_config"),
        num_workers=num_workers,
        env=own.get("env", config.env),
        backend=own.get("env_backend", config.env_backend),
        any_number=True,
    )
    if _builds_its_parts(config) and config.worker_env_config is not None:
        yield (
            '`worker_env_config` needs `gym_env_vectorize_mode`="sync" or "async", found '
            '"vector_entry_point": such an environment builds its parts by itself.'
        )


def _levels(config: WeightedPPOConfig) -> Iterator[str]:
    """What is wrong with the levels, if episodes are drawn from them."""
    if config.env_seeding != "prioritized":
        return
    num_workers = config.worker_layout.num_workers
    found = [
        *level_problems(
            config.level_options,
            num_workers=num_workers,
            env=config.env,
            backend=config.env_backend,
        )
    ]
    if not found:
        options = resolve_level_options(config.level_options)
        pool = LevelPool.of(options.pool, num_workers)
        problem = score_problem(options, pool.size) if callable(options.score) else None
        found += [problem] if problem else []
        if pool.contexts and config.worker_env_config is not None:
            found.append(
                "`worker_env_config` gives each worker a context, and the `pool` of "
                f"`level_options` gives each episode one of {pool.size}: leave one of them out"
            )
    yield from found
    ignored = {"level_options", "env_seeding"} & _evaluation_settings(config).keys()
    for name in sorted(ignored):
        yield (
            f"`{name}` has no meaning in `evaluation_config`: evaluation draws no levels. Give it "
            'contexts with `evaluation_config={"worker_env_config": [{…}, …]}`, or leave it out'
        )


def _builds_its_parts(config: WeightedPPOConfig) -> bool:
    mode = getattr(config.gym_env_vectorize_mode, "value", config.gym_env_vectorize_mode)
    return bool(mode == "vector_entry_point")


def _workers(config: WeightedPPOConfig, compares: bool) -> Iterator[str]:
    """Whether the workers are enough, and each gets its part of the batch.

    Args:
        config: One whose counts are sound.
        compares: Whether its strategy compares workers.
    """
    layout = config.worker_layout
    count = str(layout)
    if compares and layout.num_workers < 2:
        yield (
            f"`merge_strategy`={config.merge_strategy!r} needs 2 or more workers to compare, found "
            f'{count}: use more env runners, `merge_unit`="env" with several environments in '
            'each, or `merge_strategy`="average".'
        )
    if config.num_learners > layout.num_workers:
        yield (
            f"`num_learners`={config.num_learners} exceeds the {count}: each learner holds whole "
            f"workers, use at most {layout.num_workers}"
        )
    name, batch, minibatch = "train_batch_size", config.train_batch_size, config.minibatch_size
    if batch_size_per_learner(config) is not None:
        name = "train_batch_size_per_learner"
        batch = batch_size_per_learner(config)
        if config.num_learners > 1 and _is_count(batch, 1):
            name = "num_learners x train_batch_size_per_learner"
            batch *= config.num_learners
    if not _is_count(batch, layout.num_slots):
        yield (
            f"`{name}` should be a whole number >= {layout.num_slots}, a step or more for each "
            f"sub-environment of the {count}, found {_shown(batch)}: raise it, or use fewer"
        )
    elif _is_count(minibatch, batch + 1):
        yield (
            f"`minibatch_size` should be at most `{name}`={batch}, found {minibatch}: lower it, "
            "or use None for the whole batch."
        )
    if minibatch is not None and not _is_count(minibatch, layout.num_workers):
        yield (
            f"`minibatch_size` should be None (the whole batch) or a whole number >= "
            f"{layout.num_workers}, a sample or more of each of the {count}, found "
            f"{_shown(minibatch)}: raise it, or use None"
        )
    if _builds_its_parts(config) and config.env_seeding in ("fixed", "prioritized"):
        yield (
            f'`env_seeding`="{config.env_seeding}" needs `gym_env_vectorize_mode`="sync" or '
            '"async", found "vector_entry_point": such an environment resets its parts by itself.'
        )
