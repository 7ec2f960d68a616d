"""What is wrong with a config: every problem, each with what should be, is, and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_weighted._private import batch_size_per_learner, grad_scaler_class
from rllib_weighted.core.envs import env_problem, envpool_id
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.merging import strategy_problems
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.suggest import nearest

if TYPE_CHECKING:
    from rllib_weighted.config import WeightedPPOConfig

_CHOICES = {
    "merge_unit": ("env_runner", "env"),
    "advantage_normalization": ("worker", "batch", "none"),
    "env_seeding": ("stream", "fixed"),
    "env_backend": ("gymnasium", "envpool"),
    "actor_export": ("best", "mean"),
    "batch_mode": ("truncate_episodes", "complete_episodes"),
}

_SWITCHES = ("fast_learner", "fast_sampling")

# Setting -> (what it should be, whether a schedule will do, the test). RLlib lets these pass.
_Rule = tuple[str, bool, Callable[[float], bool]]
_RULES: dict[str, _Rule] = {
    "min_weight": ("a number >= 0", True, lambda x: x >= 0),
    "lr": ("a number >= 0", True, lambda x: x >= 0),
    "entropy_coeff": ("a number >= 0", True, lambda x: x >= 0),
    "gamma": ("a number from 0 to 1", False, lambda x: 0 <= x <= 1),
    "lambda_": ("a number from 0 to 1", False, lambda x: 0 <= x <= 1),
    "clip_param": ("a number > 0", False, lambda x: x > 0),
    "vf_clip_param": ("a number > 0, or None", False, lambda x: x > 0),
    "vf_loss_coeff": ("a number >= 0", False, lambda x: x >= 0),
    "kl_coeff": ("a number >= 0", False, lambda x: x >= 0),
    "kl_target": ("a number > 0", False, lambda x: x > 0),
    "grad_clip": ("a number > 0, or None", False, lambda x: x > 0),
}
_MAY_BE_NONE = ("min_weight", "grad_clip", "vf_clip_param")
# Not `grad_clip`: RLlib's clipping by the global norm divides it by itself.
_MAY_BE_INFINITE = ("vf_clip_param",)
_COUNTS = {"num_epochs": 1, "num_envs_per_env_runner": 1, "num_env_runners": 0, "num_learners": 0}
_MAX_SEED = 2**32 - 1  # Of numpy's global generator, which RLlib seeds.

CHECKED_NUMBERS = frozenset(
    [
        *_RULES,
        *_COUNTS,
        "minibatch_size",
        "train_batch_size",
        "_train_batch_size_per_learner",
        "rollout_fragment_length",
        "seed",
    ]
)


def config_problems(config: WeightedPPOConfig) -> list[str]:
    """Returns all problems of a `WeightedPPOConfig`, in readable sentences; [] if there is none."""
    problems = [
        *_unknown_settings(config),
        *_choices(config),
        *_numbers(config),
        *_stack(config),
    ]
    problems += strategy_problems(config.merge_strategy, config.merge_options)
    problems += _per_worker_parameters(config)
    if not any(_counts(config)) and config.merge_unit in _CHOICES["merge_unit"]:
        problems += _workers(config)
    problems += _envpool(config)
    problem = env_problem(config.env, config.env_backend)
    return [*problems, problem] if problem else problems


def has_sound_counts(config: WeightedPPOConfig) -> bool:
    """Whether RLlib's own validation can do its sums: on a rollout of 0 steps it never returns."""
    return not any((*_counts(config), *_fragment(config))) and all(
        value is None or _is_count(value, 1)
        for value in (config.train_batch_size, batch_size_per_learner(config))
    )


def _unknown_settings(config: WeightedPPOConfig) -> Iterator[str]:
    """Misspelt keys of a plain dict, which RLlib would silently set as attributes."""
    known = vars(type(config)())
    for name in vars(config):
        if name in known or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, [k for k in known if k[0] != "_"], 1, cutoff=0.8)
        if near:
            yield f"`{name}` is no setting: did you mean `{near[0]}`?"


def _choices(config: WeightedPPOConfig) -> Iterator[str]:
    for name, allowed in _CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            listed = ", ".join(f'"{choice}"' for choice in allowed)
            near = nearest(value, allowed) or f": use {_default(config, name)!r}"
            yield f"`{name}` should be one of {listed}, found {value!r}{near}"
    for name in _SWITCHES:
        value = getattr(config, name)
        if not isinstance(value, bool):
            yield f"`{name}` should be True or False, found {value!r}: use {_default(config, name)}"


def _numbers(config: WeightedPPOConfig) -> Iterator[str]:
    for name, (should_be, may_be_scheduled, test) in _RULES.items():
        value = getattr(config, name)
        if value is None and name in _MAY_BE_NONE:
            continue
        values = [value]
        if may_be_scheduled and isinstance(value, (list, tuple)):
            yield from _schedule_problems(name, value)
            values = [
                pair[1] for pair in value if isinstance(pair, (list, tuple)) and len(pair) > 1
            ]
        for number in values:
            if not _is_number(number, infinite=name in _MAY_BE_INFINITE) or not test(number):
                scheduled = ", or a schedule [[env steps, value], …]" if may_be_scheduled else ""
                yield (
                    f"`{name}` should be {should_be}{scheduled}, found {_shown(number)}: "
                    f"{_remedy(config, name)}"
                )
                break
    yield from _counts(config)
    if config.seed is not None and not (_is_count(config.seed, 0) and config.seed <= _MAX_SEED):
        yield (
            f"`seed` should be None or a whole number from 0 to {_MAX_SEED}, found "
            f"{_shown(config.seed)}: {_remedy(config, 'seed')}"
        )
    yield from _fragment(config)


def _fragment(config: WeightedPPOConfig) -> Iterator[str]:
    length = config.rollout_fragment_length
    if length != "auto" and not _is_count(length, 1):
        yield (
            f'`rollout_fragment_length` should be "auto" or a whole number >= 1, found '
            f'{_shown(length)}: use "auto"'
        )


def _counts(config: WeightedPPOConfig) -> Iterator[str]:
    for name, least in _COUNTS.items():
        value = getattr(config, name)
        if not _is_count(value, least):
            yield (
                f"`{name}` should be a whole number >= {least}, found {_shown(value)}: "
                f"{_remedy(config, name)}"
            )


def _schedule_problems(name: str, schedule: Any) -> Iterator[str]:
    pairs = [pair for pair in schedule if isinstance(pair, (list, tuple)) and len(pair) == 2]
    steps = [pair[0] for pair in pairs]
    sound = len(pairs) == len(schedule) >= 2 and all(_is_number(step) for step in steps)
    if not sound or steps[0] != 0 or steps != sorted(set(steps)):
        yield (
            f"`{name}` as a schedule should be two or more pairs [env steps, value], the first at "
            f"step 0, in rising order of steps, found {schedule!r}: write "
            "[[0, first value], [env steps, last value]]"
        )


def _default(config: WeightedPPOConfig, name: str) -> Any:
    return getattr(type(config)(), name)


def _remedy(config: WeightedPPOConfig, name: str) -> str:
    return f"change it, or leave it out for the default {_default(config, name)!r}"


def _is_number(value: Any, *, infinite: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return not math.isnan(value) and (infinite or math.isfinite(value))
    except OverflowError:  # A whole number that no float can hold.
        return False


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _shown(value: Any) -> str:
    return f"{float(value):g}" if isinstance(value, float) else repr(value)


def _stack(config: WeightedPPOConfig) -> Iterator[str]:
    """What this package needs of RLlib's machinery."""
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        yield (
            "WeightedPPO runs on RLlib's new API stack only: leave `enable_rl_module_and_learner` "
            "and `enable_env_runner_and_connector_v2` at True."
        )
    if config.framework_str != "torch":
        yield f'`framework` should be "torch", found "{config.framework_str}": leave it out'
    if config.num_aggregator_actors_per_learner:
        yield (
            "`num_aggregator_actors_per_learner` should be 0, found "
            f"{config.num_aggregator_actors_per_learner}: whole workers go to the learner."
        )
    if config.torch_skip_nan_gradients:
        yield (
            "`torch_skip_nan_gradients` should be False, found True: in RLlib it applies NaN "
            "gradients. A worker with such a gradient is dropped from the merge by itself."
        )
    yield from _classes(config)
    if config.is_multi_agent or (
        isinstance(config.env, type) and issubclass(config.env, MultiAgentEnv)
    ):
        yield (
            "WeightedPPO merges single-agent environments, found a multi-agent one (policies "
            f"{sorted(map(str, config.policies))}): there is no reward signal per agent to merge "
            "each module by. Use a single-agent environment, or RLlib's PPO."
        )


def _classes(config: WeightedPPOConfig) -> Iterator[str]:
    for name, value, base in (
        ("env_runner_cls", config.env_runner_cls, WeightedEnvRunner),
        ("learner_class", config.learner_class, WeightedPPOLearner),
    ):
        if not (isinstance(value, type) and issubclass(value, base)):
            yield (
                f"`{name}` should be a subclass of rllib_weighted's {base.__name__}, found "
                f"{value!r}: derive yours from it."
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
    chosen, cause = config.per_worker_parameters, f"`merge_strategy`={config.merge_strategy!r}"
    if chosen is not None:
        cause = f"`per_worker_parameters`={chosen!r}"
        if not isinstance(chosen, bool):
            yield (
                f"`per_worker_parameters` should be True, False or None, found {chosen!r}: use "
                "None, which leaves it to the merge strategy"
            )
            return
    if not _is_sound_strategy(config) or not config.uses_per_worker_parameters:
        return
    base = WeightedPPOLearner
    if isinstance(config.learner_class, type) and issubclass(config.learner_class, base):
        for name in _HOOKS_OF_ONE_SET:
            if getattr(config.learner_class, name) is not getattr(base, name):
                yield (
                    f"{cause} gives every worker its own optimizer and does not call `{name}`, "
                    f"but {config.learner_class.__name__} overrides it: leave it out, or share "
                    "the parameters with `per_worker_parameters`=False"
                )
    if grad_scaler_class(config) is not None:
        yield (
            f"{cause} works without a gradient scaler, found "
            f"{grad_scaler_class(config)!r}: leave `_torch_grad_scaler_class` out"
        )


def _envpool(config: WeightedPPOConfig) -> Iterator[str]:
    """What does not go together with EnvPool."""
    if envpool_id(config.env, config.env_backend) is None:
        return
    if config.env_seeding == "fixed":
        yield (
            '`env_seeding` should be "stream" with EnvPool, which cannot seed an episode, found '
            '"fixed": leave it out, or use `env_backend`="gymnasium"'
        )
    mode = getattr(config.gym_env_vectorize_mode, "value", config.gym_env_vectorize_mode)
    if mode != "sync":
        yield (
            f'`gym_env_vectorize_mode` should be "sync" with EnvPool, found "{mode}": leave it '
            "out, EnvPool steps all sub-environments by itself"
        )


def _workers(config: WeightedPPOConfig) -> Iterator[str]:
    """Whether the workers are enough, and each gets its part of the batch."""
    layout = config.worker_layout
    count = (
        f"{layout.num_workers} worker{'s' * (layout.num_workers > 1)} (`num_env_runners`="
        f"{config.num_env_runners}, `num_envs_per_env_runner`={config.num_envs_per_env_runner}, "
        f'`merge_unit`="{config.merge_unit}")'
    )
    if _compares_workers(config) and layout.num_workers < 2:
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
    mode = getattr(config.gym_env_vectorize_mode, "value", config.gym_env_vectorize_mode)
    if mode == "vector_entry_point" and config.env_seeding == "fixed":
        yield (
            '`env_seeding`="fixed" needs `gym_env_vectorize_mode`="sync" or "async", found '
            '"vector_entry_point": such an environment resets its parts by itself.'
        )


def _compares_workers(config: WeightedPPOConfig) -> bool:
    return _is_sound_strategy(config) and bool(config.resolve_merge_strategy().signals)


def _is_sound_strategy(config: WeightedPPOConfig) -> bool:
    return not strategy_problems(config.merge_strategy, config.merge_options)
