from __future__ import annotations

import math
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_weighted import Average, RewardWeighted, WeightedPPOConfig
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.suggest import shown
from rllib_weighted.validation import CHECKED_NUMBERS, config_problems


def good(**settings):
    config = WeightedPPOConfig().environment("CartPole-v1").update_from_dict(settings)
    assert all(
        getattr(config, name) is not None or value is None for name, value in settings.items()
    )
    return config


def problems(**settings):
    """What is wrong, as `validate` says it: [] or one sentence each."""
    try:
        good(**settings).validate()
    except ValueError as error:
        title, *found = str(error).splitlines()
        assert title == f"{len(found)} problem{'s' * (len(found) > 1)} in the config:"
        assert all(sentence.startswith("- ") for sentence in found)
        return [sentence.removeprefix("- ") for sentence in found]
    return []


NOT_NUMBERS = [math.nan, "1", None, True, [1], {}, 1j]

# Setting -> (valid values, numbers that are out of range).
NUMBERS = {
    "lr": ([0, 0.0, 1e-3, 1, [[0, 1e-3], [1000, 0.0]], ((0, 1), (5, 2), (9, 1))], [-1, -0.1]),
    "entropy_coeff": ([0, 0.01, [[0, 0.1], [100, 0]]], [-1, -1e-9]),
    "gamma": ([0, 0.99, 1, 1.0], [-1, -0.1, 1.01, 2]),
    "lambda_": ([0, 0.95, 1], [-1, 1.5]),
    "clip_param": ([0.2, 1, 5.0], [-1, 0, -0.3]),
    "vf_clip_param": ([0.5, 1e9, math.inf, None], [-1, 0]),
    "vf_loss_coeff": ([0, 0.5, 2], [-1, -0.5]),
    "kl_coeff": ([0, 0.2], [-1, -0.2]),
    "kl_target": ([0.01, 1], [-1, 0]),
    "observation_scale": ([1, 0.5, 1 / 255], [-1, 0, -0.1]),
    "storage_timeout_s": ([0, 0.5, 300], [-1, math.inf]),
    "learner_timeout_s": ([None, 0.5, 1800], [-1, 0, math.inf]),
    "grad_clip": ([None, 0.5, 40], [-1, 0, -0.5]),
    "min_weight": ([None, 0, 0.0, 0.125, 3, [[0, 0.5], [1e6, 0]]], [-1, -1.0, -1e-9]),
}
COUNTS = {
    "num_epochs": ([1, 30], [-1, 0]),
    "num_envs_per_env_runner": ([1, 4], [-1, 0]),
    "num_env_runners": ([2, 3], [-1]),
    "merge_diagnostics_interval": ([None, 1, 20], [-1, 0]),
    "num_learners": ([0, 1, 2], [-1]),  # of two workers
    "minibatch_size": ([2, 128, 4000, None], [-1, 0, 1, 4001]),
    "train_batch_size": ([128, 4001], [-1, 0, 1]),
    "max_missed_rounds": ([None, 1, 7], [-1, 0]),
    "max_rounds_without_update": ([None, 1, 7], [-1, 0]),
    "rollout_fragment_length": (["auto", 2000], [-1, 0]),
    "seed": ([None, 0, 7, 2**32 - 1], [-1, 2**32]),
}
ALL = NUMBERS | COUNTS


@pytest.mark.parametrize(
    ("name", "value"), [(name, v) for name, (valid, _) in ALL.items() for v in valid]
)
def test_valid_values_pass(name, value):
    assert problems(**{name: value}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, v) for name, (_, bad) in ALL.items() for v in bad]
    + [
        (name, v)
        for name, (valid, _) in ALL.items()
        for v in [*NOT_NUMBERS, math.inf, 1.5]
        if not (v is None and None in valid) and not (v in (math.inf, 1.5) and name in NUMBERS)
    ]
    + [(name, math.inf) for name in NUMBERS if math.inf not in NUMBERS[name][0]]
    + [
        ("gamma", 10**400),
        ("lr", -(10**400)),
        pytest.param("num_epochs", -(10**5000), id="no text"),
    ],
)
def test_invalid_values_are_named_with_what_was_found_and_what_to_do(name, value):
    found = problems(**{name: value})
    mine = [sentence for sentence in found if sentence.startswith(f"`{name}`")]
    assert len(mine) >= 1, found
    assert "should be" in mine[0]
    assert "found" in mine[0]
    found_value = f"{value:g}" if isinstance(value, float) else shown(value)
    assert any(found_value in sentence or shown(value) in sentence for sentence in mine)
    assert re.search(r": (change|use|lower|raise|write|merging)", mine[0]), mine[0]


def test_the_tables_cover_every_checked_number():
    alias = {"train_batch_size_per_learner": "_train_batch_size_per_learner"}
    assert {alias.get(name, name) for name in ALL} == CHECKED_NUMBERS - set(alias.values())


@pytest.mark.parametrize(
    "schedule",
    [
        [],
        [[0, 0.1]],
        [[1, 0.1], [2, 0.2]],
        [[0, 0.1], [5, 0.2], [5, 0.3]],
        [[0, 0.1], [9, 0.2], [5, 0.3]],
        [[0, 0.1], [5]],
        [[0, 0.1], 5],
        [[0, 0.1], [math.nan, 0.2]],
        [["0", 0.1], ["5", 0.2]],
        [[0, 0.1], [5, 0.2, 0.3]],
        [0, 0.1],
    ],
)
@pytest.mark.parametrize("name", ["lr", "entropy_coeff", "min_weight"])
def test_ill_formed_schedules(name, schedule):
    found = problems(**{name: schedule})
    assert any(
        f"`{name}` as a schedule should be two or more pairs" in sentence
        and f"found {schedule!r}: write" in sentence
        for sentence in found
    )


@pytest.mark.parametrize("bad", [-1, -0.5, math.nan, math.inf, True, "x", None])
def test_bad_values_in_a_schedule(bad):
    found = problems(min_weight=[[0, 0.1], [10, bad]])
    assert any(s.startswith("`min_weight` should be a number >= 0") for s in found)


CHOICES = {
    "merge_unit": "env_runer",
    "advantage_normalization": "workers",
    "env_seeding": "steam",
    "batch_mode": "complete_episode",
}


@pytest.mark.parametrize(("name", "typo"), CHOICES.items())
def test_choices(name, typo):
    (sentence,) = (s for s in problems(**{name: typo}) if s.startswith(f"`{name}`"))
    assert f"found {typo!r}; did you mean" in sentence
    for value in (None, 3, True, ["worker"]):
        (sentence,) = (s for s in problems(**{name: value}) if s.startswith(f"`{name}`"))
        assert f"found {value!r}: use '" in sentence


@pytest.mark.parametrize("name", ["fast_learner", "fast_sampling"])
@pytest.mark.parametrize("value", [None, 0, 1, "yes", "False", [True], math.nan])
def test_a_switch_is_on_or_off(name, value):
    assert problems(**{name: True}) == problems(**{name: False}) == []
    (sentence,) = problems(**{name: value})
    assert sentence == f"`{name}` should be True or False, found {value!r}: use True"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"merge_strategy": "reward_weigthed"}, "'average'.*did you mean 'reward_weighted'"),
        ({"merge_strategy": "Sum"}, "did you mean 'sum'"),
        ({"merge_strategy": 3}, "should be one of .*found 3"),
        ({"merge_strategy": RewardWeighted}, r"write RewardWeighted\(\)"),
        ({"merge_options": {"ofset": 1}}, "ofset.*did you mean 'offset'"),
        (
            {"merge_options": {"offset": "max"}},
            "`offset` should be 'auto' or 'min' or a valid number",
        ),
        ({"merge_options": {"normalize": 1}}, "`normalize` should be a valid boolean, found 1"),
        ({"merge_options": {"loss": "total"}}, "unknown option 'loss'"),
        ({"merge_options": [1]}, "`merge_options` should be a dict"),
        ({"merge_options": {"transform": "top_k"}}, "`top_k` should be a whole number"),
        (
            {"merge_strategy": RewardWeighted(), "merge_options": {"offset": 1}},
            "should be empty when `merge_strategy` is an object",
        ),
    ],
)
def test_strategies_and_their_options(settings, match):
    (sentence,) = problems(**settings)
    assert re.search(match, sentence)


def test_good_strategies():
    assert problems(merge_strategy=Average()) == []
    assert problems(merge_strategy=RewardWeighted(offset=3.0), merge_options={}) == []
    options = {"loss": "value", "scope": "round", "direction": "low", "transform": "rank"}
    assert problems(merge_strategy="loss_weighted", merge_options=options) == []
    assert problems(merge_options=None) == []


@pytest.mark.parametrize("runners", [0, 1])
@pytest.mark.parametrize("strategy", ["reward_weighted", "loss_weighted", RewardWeighted()])
def test_a_weighted_strategy_needs_two_workers(runners, strategy):
    (sentence,) = problems(num_env_runners=runners, merge_strategy=strategy)
    assert re.search(
        r"needs 2 or more workers.*found 1 worker .*merge_strategy`=\"average\"", sentence
    )
    single = {"num_env_runners": runners, "merge_strategy": strategy}
    assert problems(**single, merge_unit="env", num_envs_per_env_runner=2) == []
    for plain in ("average", "sum"):
        assert problems(num_env_runners=runners, merge_strategy=plain) == []


class OwnOptimizer(WeightedPPOLearner):
    def configure_optimizers(self):
        return super().configure_optimizers()


@pytest.mark.parametrize("value", [1, 0, "yes", "True", []])
def test_per_worker_parameters_are_a_switch(value):
    (sentence,) = problems(per_worker_parameters=value)
    assert sentence.startswith(
        f"`per_worker_parameters` should be True, False or None, found {value!r}: use None"
    )
    for fine in (True, False, None):
        assert problems(per_worker_parameters=fine) == []


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"merge_strategy": "actor_sum"}, "`merge_strategy`='actor_sum'"),
        ({"per_worker_parameters": True}, "`per_worker_parameters`=True"),
    ],
)
def test_what_does_not_go_with_parameters_per_worker(settings, cause):
    unfit = {"_learner_class": OwnOptimizer, "_torch_grad_scaler_class": torch.amp.GradScaler}
    hook, scaler = problems(**settings, **unfit)
    assert hook.startswith(f"{cause} gives every worker its own optimizer and does not call")
    assert "`configure_optimizers`, but OwnOptimizer overrides it: leave it out" in hook
    assert scaler.startswith(f"{cause} works without a gradient scaler, found <class")
    assert problems(**{**settings, **unfit, "per_worker_parameters": False}) == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"num_envs_per_env_runner": 3, "train_batch_size": 5, "minibatch_size": None},
            r"`train_batch_size` should be a whole number >= 6.*found 5: raise it",
        ),
        (
            {"train_batch_size_per_learner": 1, "minibatch_size": None},
            r"`train_batch_size_per_learner` should be a whole number >= 2.*found 1",
        ),
        (
            {"num_envs_per_env_runner": 4, "merge_unit": "env", "minibatch_size": 7},
            r"`minibatch_size` should be None .* >= 8, .* of each of the 8 workers.*found 7",
        ),
        (
            {"minibatch_size": 129, "train_batch_size": 128},
            r"`minibatch_size` should be at most `train_batch_size`=128, found 129: lower it",
        ),
        ({"torch_skip_nan_gradients": True}, "`torch_skip_nan_gradients` should be False"),
        (
            {"num_learners": 3},
            r"`num_learners`=3 exceeds the 2 workers \(`num_env_runners`=2.*: .* at most 2",
        ),
        (
            {"num_learners": 2, "train_batch_size_per_learner": 64, "minibatch_size": 129},
            r"at most `num_learners x train_batch_size_per_learner`=128, found 129",
        ),
        ({"num_aggregator_actors_per_learner": 1}, "should be 0, found 1"),
        ({"env_runner_cls": SingleAgentEnvRunner}, "subclass of .* WeightedEnvRunner"),
        ({"_learner_class": PPOTorchLearner}, "subclass of .* WeightedPPOLearner"),
        ({"framework_str": "tf2"}, '`framework` should be "torch", found "tf2"'),
        (
            {"gym_env_vectorize_mode": "vector_entry_point", "env_seeding": "fixed"},
            '"vector_entry_point"',
        ),
        (
            {"gym_env_vectorize_mode": "vector_entry_point", "env_seeding": "prioritized"},
            '`env_seeding`="prioritized" needs .* found "vector_entry_point"',
        ),
        (
            {"gym_env_vectorize_mode": "vector_entry_point", "worker_env_config": [{}, {}]},
            '`worker_env_config` needs .* found "vector_entry_point"',
        ),
        ({"worker_env_config": [{}]}, "list of 2 dicts, one per worker, found 1"),
        (
            {"evaluation_config": {"worker_env_config": [{"gravty": 1}]}},
            "`worker_env_config` of `evaluation_config` should hold keys that .*found 'gravty'",
        ),
        (
            {"env_seeding": "prioritized", "level_options": {"pool": 1}},
            "`pool` of `level_options` should hold 2 levels or more, one for each worker, found 1",
        ),
        (
            {"env_seeding": "prioritized", "level_options": {"score": "regret"}},
            "one of 'value_error', 'learnability', 'return', or a function, found 'regret'",
        ),
        (
            {
                "env_seeding": "prioritized",
                "level_options": {"pool": [{}, {}]},
                "worker_env_config": [{}, {}],
            },
            "gives each episode one of 2: leave one of them out",
        ),
        (
            {"env_seeding": "prioritized", "evaluation_config": {"level_options": {"pool": 3}}},
            "`level_options` has no meaning in `evaluation_config`",
        ),
        ({"env": "NoSuchEnv-v0"}, "'NoSuchEnv-v0' is not registered"),
        ({"env": None}, "no environment is set"),
    ],
)
def test_settings_that_do_not_go_together(settings, match):
    found = problems(**settings)
    assert any(re.search(match, sentence) for sentence in found), found


def test_levels_and_contexts():
    assert problems(worker_env_config=[{}, {"sutton_barto_reward": True}]) == []
    assert problems(env_seeding="prioritized") == []
    options = {"pool": [3, 5], "score": lambda levels: levels.ages}
    assert problems(env_seeding="prioritized", level_options=options) == []
    evaluated = {"worker_env_config": [{"sutton_barto_reward": True}]}
    assert problems(worker_env_config=[{}, {}], evaluation_config=evaluated) == []


def test_a_users_function_that_raises_shows_its_traceback():
    def context(worker):
        return {"gravity": 1 / worker}

    def score(levels):
        return levels.no_such_thing

    config = good(
        worker_env_config=context, env_seeding="prioritized", level_options={"score": score}
    )
    _, first, second = config_problems(config)
    assert "`worker_env_config` should return a dict for each worker, but raised" in first
    assert "for worker 0: mend the function\n" in first
    assert first.endswith("ZeroDivisionError: division by zero")
    assert "`score` of `level_options` (score) should return a number" in second
    assert "no attribute 'no_such_thing'" in second


def test_level_options_without_levels_are_ignored_with_a_warning(caplog):
    options = {"pool": 98}
    for _ in range(2):
        assert problems(level_options=options) == []
    warning = '`level_options` is ignored: `env_seeding`="stream" draws no levels.'
    assert [record.message for record in caplog.records] == [warning]


ENVPOOL = {"env_backend": "envpool", "worker_env_config": [{}, {}]}


def test_envpools_sub_environments_share_their_context():
    assert problems(**ENVPOOL) == []
    (sentence,) = problems(
        **{**ENVPOOL, "worker_env_config": [{}] * 4},
        merge_unit="env",
        num_envs_per_env_runner=2,
    )
    assert 'found `merge_unit`="env" with 2 sub-environments: change one of them' in sentence


def test_envpool_cannot_evaluate_several_contexts():
    (sentence,) = problems(**ENVPOOL, evaluation_interval=1)
    assert "evaluation should have a single context with EnvPool" in sentence
    for own in ({"env_backend": "gymnasium"}, {"worker_env_config": [{}]}):
        assert problems(**ENVPOOL, evaluation_interval=1, evaluation_config=own) == []


def test_the_old_api_stack():
    config = good().api_stack(
        enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
    )
    with pytest.raises(ValueError, match="new API stack only"):
        config.validate()


class TwoAgents(MultiAgentEnv):
    pass


def test_multi_agent_environments():
    match = "WeightedPPO merges single-agent environments, found a multi-agent one"
    config = good().multi_agent(
        policies={"a", "b"}, policy_mapping_fn=lambda agent, episode, **kwargs: "a"
    )
    with pytest.raises(ValueError, match=match):
        config.validate()
    with pytest.raises(ValueError, match=match):
        good().environment(TwoAgents).validate()


def test_classes_of_the_users_own_pass():
    class OwnEnv(gym.Env):
        pass

    assert config_problems(good().environment(OwnEnv)) == config_problems(good(env_runner_cls=None))


MISSPELT = {
    "merge_strtegy": "merge_strategy",
    "min_wieght": "min_weight",
    "merge_option": "merge_options",
    "env_seding": "env_seeding",
    "num_env_runner": "num_env_runners",
}


@pytest.mark.parametrize(("typo", "meant"), MISSPELT.items())
def test_misspelt_keys_of_a_dict(typo, meant):
    config = WeightedPPOConfig().environment("CartPole-v1").update_from_dict({typo: 1})
    with pytest.raises(ValueError, match=f"`{typo}` is no setting: did you mean `{meant}`"):
        config.validate()


def test_settings_of_the_users_own_pass():
    config = WeightedPPOConfig().environment("CartPole-v1")
    config.update_from_dict({"own_curriculum": 3}).validate()
    assert config.own_curriculum == 3


def test_all_problems_at_once():
    found = problems(
        merge_strategy="sums",
        min_weight=-1,
        gamma=2,
        num_learners=3,
        env_seeding="x",
        torch_skip_nan_gradients=True,
        seed="s",
        env="CartPole-v99",
        minibatch_size=1,
    )
    for name in (
        "merge_strategy",
        "min_weight",
        "gamma",
        "num_learners",
        "env_seeding",
        "torch_skip_nan_gradients",
        "seed",
        "environment 'CartPole-v99'",
        "minibatch_size",
    ):
        named = [sentence for sentence in found if sentence.startswith((f"`{name}`", name))]
        assert len(named) == 1, (name, found)


def test_numpy_numbers_are_numbers():
    assert (
        problems(
            min_weight=np.float64(0.25),
            gamma=np.float32(0.5),
            num_epochs=np.int64(2),
            minibatch_size=np.int32(64),
            seed=np.uint8(3),
        )
        == []
    )
    assert len(problems(min_weight=np.float64(math.nan), gamma=np.bool_(True))) == 2


CODE = """
import ray, sys
from rllib_weighted import WeightedPPOConfig
config = WeightedPPOConfig().environment("CartPole-v1").training(min_weight=-1, gamma=3)
try:
    config.build_algo()
except ValueError as error:
    assert "`min_weight`" in str(error) and "`gamma`" in str(error), error
    sys.exit(3 if ray.is_initialized() else 0)
sys.exit(4)
"""


def test_errors_come_before_anything_starts():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_validation_can_be_switched_off_as_in_rllib(caplog):
    config = good(gamma=3).experimental(_validate_config=False)
    config.validate()
    assert "`gamma` should be" in caplog.text


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"clip_rewards": True}, "`clip_rewards` is ignored.*wrapper"),
        (
            {"observation_filter": "MeanStdFilter"},
            "`observation_filter` is ignored.*MeanStdFilter()",
        ),
        ({"model_config": {"use_attention": True}}, "`use_attention` is ignored.*use_lstm"),
    ],
)
def test_what_the_new_stack_does_not_read_is_said_once(settings, match, caplog, monkeypatch):
    monkeypatch.setattr("rllib_weighted.config._warned_of", set())
    config = WeightedPPOConfig().environment("CartPole-v1")
    model_config = settings.pop("model_config", None)
    if model_config:
        config.rl_module(model_config=model_config)
    config.update_from_dict(settings)
    for _ in range(2):
        config.validate()
    (message,) = [r.getMessage() for r in caplog.records if "is ignored" in r.getMessage()]
    assert re.search(match, message)


def test_defaults_are_not_called_ignored(caplog):
    good().rl_module(model_config={"use_lstm": True}).validate()
    assert "is ignored" not in caplog.text
