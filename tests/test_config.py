from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_weighted import LossWeighted, RewardWeighted, WeightedPPO, WeightedPPOConfig
from rllib_weighted.learning.learner import WeightedPPOLearner
from rllib_weighted.merging import ActorAverage, ActorSum
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.validation import CHECKED_NUMBERS

OWN = {
    "merge_strategy": "reward_weighted",
    "min_weight": None,
    "merge_options": {},
    "merge_arm": None,
    "merge_unit": "env_runner",
    "advantage_normalization": "worker",
    "actor_export": "best",
    "env_seeding": "stream",
    "fast_learner": True,
    "fast_sampling": True,
}


def cartpole() -> WeightedPPOConfig:
    return WeightedPPOConfig().environment("CartPole-v1")


def test_settings_that_earlier_versions_lack_are_named_only_if_changed():
    """So that Tune, which compares the names, resumes their experiments."""
    new = {
        "env_backend": "envpool",
        "observation_scale": 0.5,
        "per_worker_parameters": True,
        "storage_timeout_s": 5,
        "learner_timeout_s": 60,
        "worker_env_config": [{}, {}],
        "level_options": {"beta": 0.5},
    }
    assert not new.keys() & WeightedPPOConfig().to_dict().keys()
    config = cartpole().training(per_worker_parameters=True)
    config.rl_module(observation_scale=0.5)
    config.env_runners(
        env_backend="envpool", worker_env_config=[{}, {}], level_options={"beta": 0.5}
    )
    config.fault_tolerance(
        learner_timeout_s=60, storage_timeout_s=5, restart_failed_env_runners=False
    )
    assert config.restart_failed_env_runners is False
    assert {name: config.to_dict()[name] for name in new} == new
    assert WeightedPPOConfig().update_from_dict(config.to_dict()).env_backend == "envpool"


def test_defaults_are_those_of_ppo_and_of_the_merge():
    ours, stock = WeightedPPOConfig().to_dict(), PPOConfig().to_dict()
    assert {name: ours[name] for name in OWN} == OWN
    differing = {name for name in stock if name in ours and str(ours[name]) != str(stock[name])}
    assert differing <= {"_dont_auto_sync_env_runner_states"}
    assert set(ours) - set(stock) == set(OWN)
    assert WeightedPPOConfig().algo_class is WeightedPPO


def test_defaults_are_not_shared():
    WeightedPPOConfig().merge_options["offset"] = 1
    assert WeightedPPOConfig().merge_options == {}
    WeightedPPOConfig().level_options["beta"] = 1
    assert WeightedPPOConfig().level_options == WeightedPPOConfig.level_options == {}


def test_setters_return_the_config_and_leave_alone_what_is_not_given():
    config = WeightedPPOConfig()
    assert config.training(merge_strategy="sum", lr=0.1) is config
    assert config.env_runners(env_seeding="fixed", fast_sampling=False, num_env_runners=3) is config
    assert config.learners(fast_learner=False, num_learners=2) is config
    assert (config.fast_learner, config.num_learners) == (False, 2)
    assert config.learners(num_learners=0).fast_learner is False
    assert config.training(min_weight=0.5) is config
    assert config.env_runners(num_envs_per_env_runner=2) is config
    assert (config.merge_strategy, config.lr, config.min_weight) == ("sum", 0.1, 0.5)
    assert (config.env_seeding, config.num_env_runners) == ("fixed", 3)
    assert config.fast_sampling is False
    assert config.training(min_weight=None).min_weight is None
    with pytest.raises(TypeError, match="merge_strtegy"):
        config.training(merge_strtegy="sum")
    with pytest.raises(TypeError, match="positional"):
        config.training("sum")


SETTINGS = {
    "merge_strategy": "loss_weighted",
    "min_weight": 0.25,
    "merge_options": {"direction": "low"},
    "merge_arm": "loss_weighted 0.5",
    "per_worker_parameters": True,
    "merge_unit": "env",
    "advantage_normalization": "batch",
    "actor_export": "mean",
    "env_seeding": "fixed",
    "fast_learner": False,
    "fast_sampling": False,
    "lambda": 0.9,
    "num_envs_per_env_runner": 2,
}


def test_plain_dicts():
    assert set(OWN) <= set(SETTINGS)
    for config in (
        WeightedPPOConfig.from_dict(dict(SETTINGS)),
        WeightedPPOConfig().update_from_dict(SETTINGS),
        WeightedPPOConfig.from_dict(WeightedPPOConfig().update_from_dict(SETTINGS).to_dict()),
        WeightedPPOConfig().update_from_dict(
            WeightedPPOConfig.overrides(
                **{
                    ("lambda_" if key == "lambda" else key): value
                    for key, value in SETTINGS.items()
                }
            )
        ),
    ):
        config.environment("CartPole-v1").validate()
        assert config.lambda_ == 0.9
        for name in OWN:
            assert getattr(config, name) == SETTINGS[name]


def test_unknown_overrides_are_refused():
    with pytest.raises(KeyError, match="merge_strtegy"):
        WeightedPPOConfig.overrides(merge_strtegy="sum")


@pytest.mark.parametrize(
    "copied",
    [
        lambda config: WeightedPPOConfig.from_state(config.get_state()),
        lambda config: config.copy(),
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
    ],
)
def test_copies_keep_every_setting(copied):
    config = cartpole().update_from_dict(SETTINGS)
    config.merge_strategy = LossWeighted(direction="low")
    config.merge_options = {}
    config.min_weight = [[0, 0.5], [10, 0.0]]
    found = copied(config)
    assert type(found) is WeightedPPOConfig
    for name in OWN:
        assert getattr(found, name) == getattr(config, name)
    found.validate()
    found.merge_options["offset"] = 1.0
    found.min_weight = 3
    if copied is not None and found is not config:
        assert config.min_weight == [[0, 0.5], [10, 0.0]]


def _by_dict(config, name, value):
    return config.update_from_dict({name: value})


def _by_attribute(config, name, value):
    setattr(config, name, value)
    return config


def _by_item(config, name, value):
    config[name] = value
    return config


def _by_overrides(config, name, value):
    return config.update_from_dict(WeightedPPOConfig.overrides(**{name: value}))


def _by_setter(config, name, value):
    if name == "num_env_runners":
        return config.env_runners(**{name: value})
    if name == "num_learners":
        return config.learners(num_learners=value)
    if name == "seed":
        return config.debugging(seed=value)
    if name == "observation_scale":
        return config.rl_module(observation_scale=value)
    if name.startswith("max_") or name.endswith("_timeout_s"):
        return config.fault_tolerance(**{name: value})
    return config.training(**{name.removeprefix("_"): value})


@pytest.mark.parametrize("minus_one", [-1, np.float32(-1)])
@pytest.mark.parametrize("put", [_by_dict, _by_attribute, _by_item, _by_overrides, _by_setter])
def test_minus_one_is_refused_and_never_reset_to_the_default(put, minus_one):
    """RLlib's `get_state` leaves out whatever equals -1."""
    names = CHECKED_NUMBERS
    if put is _by_setter:
        # RLlib's setters refuse these at once.
        names = names - {"num_envs_per_env_runner", "rollout_fragment_length"}
    for name in sorted(names):
        config = put(cartpole(), name, minus_one)
        # What `Algorithm.__init__` does before it validates.
        copied = WeightedPPOConfig.from_state(config.copy().get_state())
        with pytest.raises(ValueError, match=f"`{name.removeprefix('_')}` should be.*found -1"):
            copied.validate()
        with pytest.raises(ValueError, match="found -1"):
            pickle.loads(pickle.dumps(config)).validate()


def test_minus_one_elsewhere_is_rllibs_own_marker():
    assert WeightedPPOConfig().vf_share_layers == -1  # an old setting, still recognised as such
    cartpole().validate()


def test_minus_one_is_still_minus_one_in_arithmetic_and_json():
    import json

    config = cartpole().training(min_weight=-1)
    assert config.min_weight + 1 == 0
    assert json.loads(json.dumps({"x": config.min_weight})) == {"x": -1.0}


def test_numpy_numbers_become_plain_ones():
    config = cartpole().training(min_weight=np.float32(0.5), num_epochs=np.int64(3))
    assert (type(config.min_weight), type(config.num_epochs)) == (float, int)
    config.validate()


def test_a_frozen_config_stays_frozen():
    config = cartpole()
    config.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        config.min_weight = 0.5


def test_what_is_built():
    config = cartpole()
    assert config.learner_class is WeightedPPOLearner
    config.validate()
    assert config.env_runner_cls is WeightedEnvRunner

    class Own(WeightedPPOLearner):
        pass

    assert cartpole().learners(learner_class=Own).learner_class is Own


@pytest.mark.parametrize(
    ("unit", "runners", "envs", "expected"),
    [("env_runner", 3, 4, 3), ("env", 3, 4, 12), ("env", 0, 5, 5), ("env_runner", 0, 5, 1)],
)
def test_workers(unit, runners, envs, expected):
    config = WeightedPPOConfig().training(merge_unit=unit)
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=envs)
    assert config.worker_layout.num_workers == expected


# Linear from 0.5 at step 0 to 0 at step 1000.
@pytest.mark.parametrize(
    ("min_weight", "steps", "expected"),
    [
        (None, 500, None),
        (0, 500, 0.0),
        (0.25, 0, 0.25),
        ([[0, 0.5], [1000, 0.0]], 0, 0.5),
        ([[0, 0.5], [1000, 0.0]], 250, 0.375),
        ([[0, 0.5], [1000, 0.0]], 5000, 0.0),
        (((0, 1), (10, 3)), 5, 2.0),
    ],
)
def test_the_minimum_weight_follows_its_schedule(min_weight, steps, expected):
    assert WeightedPPOConfig().training(min_weight=min_weight).min_weight_at(steps) == expected


def test_the_strategy_is_resolved_with_its_options():
    config = WeightedPPOConfig().training(merge_options={"direction": "low"})
    assert config.resolve_merge_strategy() == RewardWeighted(direction="low")
    own = LossWeighted(loss="value")
    config.training(merge_strategy=own, merge_options={})
    assert config.resolve_merge_strategy() is own


@pytest.mark.parametrize("strategy", ["average", "sum"])
def test_a_minimum_weight_that_is_ignored_gives_one_warning(strategy, caplog):
    config = cartpole().training(merge_strategy=strategy, min_weight=0.0625)
    with caplog.at_level(logging.WARNING, logger="rllib_weighted"):
        for _ in range(3):
            config.copy().validate()
    (record,) = [r for r in caplog.records if r.name.startswith("rllib_weighted")]
    message = record.getMessage()
    assert "`min_weight`=0.0625 is ignored" in message
    assert strategy in message


def test_a_minimum_weight_that_counts_gives_no_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="rllib_weighted"):
        cartpole().training(merge_strategy="loss_weighted", min_weight=0.0625).validate()
        cartpole().training(merge_strategy="sum").validate()
    assert [r for r in caplog.records if r.name.startswith("rllib_weighted")] == []


def test_evaluation_has_its_own_number_of_workers():
    config = (
        cartpole()
        .training(min_weight=0.1)
        .evaluation(evaluation_interval=1, evaluation_num_env_runners=1)
    )
    config.validate()
    evaluation = config.get_evaluation_config_object()
    evaluation.validate()  # one env runner, and a weighted strategy: nothing is merged there
    assert evaluation.worker_layout.num_workers == 1
    assert evaluation.min_weight == 0.1


def test_the_same_config_can_be_validated_again():
    config = cartpole()
    config.validate()
    state = {key: str(value) for key, value in config.get_state().items()}
    config.validate()
    assert {key: str(value) for key, value in config.get_state().items()} == state


def test_tune_spaces_are_taken_where_rllib_compares_at_once():
    space = tune.sample_from(lambda config: 4)
    config = WeightedPPOConfig().env_runners(num_envs_per_env_runner=space, num_env_runners=1)
    assert config.num_envs_per_env_runner is space
    assert config.num_env_runners == 1
    with pytest.raises(ValueError, match="`num_envs_per_env_runner` should be a whole number"):
        cartpole().env_runners(num_envs_per_env_runner="4").validate()


class Own(RewardWeighted):
    per_worker_parameters = True


class OwnByItsOlderName(RewardWeighted):
    own_parameters = True


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        *((name, False) for name in ("average", "sum", "reward_weighted", "loss_weighted")),
        *((name, True) for name in ("actor_average", "actor_sum")),
        *((strategy, True) for strategy in (ActorAverage(), ActorSum())),
        *((strategy, True) for strategy in (Own(), OwnByItsOlderName())),
    ],
    ids=str,
)
def test_parameters_per_worker_are_a_setting_and_else_what_the_strategy_says(strategy, expected):
    config = cartpole().training(merge_strategy=strategy)
    assert config.uses_per_worker_parameters is expected
    for chosen in (True, False):
        config.training(per_worker_parameters=chosen)
        assert config.uses_per_worker_parameters is chosen
        assert config.copy().uses_per_worker_parameters is chosen


def test_a_config_pickled_before_there_was_the_setting():
    config = cartpole().training(merge_strategy="actor_sum")
    del config.per_worker_parameters
    found = pickle.loads(pickle.dumps(config))
    assert "per_worker_parameters" not in vars(found)
    assert found.uses_per_worker_parameters
