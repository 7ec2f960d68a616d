from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.examples.rl_modules.classes.tiny_atari_cnn_rlm import TinyAtariCNN
from ray.rllib.utils.metrics import (
    ENV_STEP_TIMER,
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    RLMODULE_INFERENCE_TIMER,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.messages import SampleResult
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.sampling.fast_sampler import (
    COLUMN_SAMPLING,
    FAST_SAMPLING,
    why_not_column_sampling,
    why_not_fast_sampling,
)
from tests.sampling.envs import ImageEnv, ScriptedEnv
from tests.sampling.helpers import make_config, make_runner, sample

_COUNTS = (
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    EPISODE_RETURN_MEAN,
    EPISODE_LEN_MEAN,
)


def _filter(env: Any = None, spaces: Any = None, device: Any = None) -> MeanStdFilter:
    return MeanStdFilter()


def _pendulum(**env_runners: Any) -> WeightedPPOConfig:
    config = make_config("Pendulum-v1", **env_runners)
    return config.environment(env_config={"max_episode_steps": 17})


def _scripted(space: str, **env_runners: Any) -> WeightedPPOConfig:
    config = make_config(ScriptedEnv, **env_runners)
    return config.environment(env_config={"space": space, "length": [1, 7]})


def _images(**env_runners: Any) -> Callable[..., WeightedPPOConfig]:
    env_config = env_runners

    def make(**env_runners: Any) -> WeightedPPOConfig:
        return make_config(ImageEnv, **env_runners).environment(env_config=env_config)

    return make


def _clipped(config: WeightedPPOConfig, *, clip: bool) -> WeightedPPOConfig:
    return config.environment(normalize_actions=False, clip_actions=clip)


_CONFIGS: dict[str, Callable[..., WeightedPPOConfig]] = {
    "cartpole": lambda **kw: make_config("CartPole-v1", **kw),
    "pendulum": _pendulum,
    "pendulum-clip": lambda **kw: _clipped(_pendulum(**kw), clip=True),
    "pendulum-raw": lambda **kw: _clipped(_pendulum(**kw), clip=False),
    "infos-and-1-step-episodes": lambda **kw: _scripted("box", **kw),
    "float64": lambda **kw: _scripted("float64", **kw),
    "images": _images(),
    "float-images": _images(dtype="float32"),
    "bytes": _images(shape=[6]),
    "scaled-bytes": lambda **kw: _images(shape=[6])(**kw).rl_module(observation_scale=1 / 255),
    "int64": _images(shape=[6], dtype="int64"),
    "start": _images(shape=[6], actions=gym.spaces.Discrete(3, start=-5)),
    "int8-actions": _images(shape=[6], actions=gym.spaces.Discrete(3, dtype=np.int8)),
    "int32-actions": _images(shape=[6], actions=gym.spaces.Discrete(3, dtype=np.int32)),
}


def _assert_same(fast: SampleResult, own: SampleResult) -> None:
    assert len(fast.episodes) == len(own.episodes) > 0
    ids: dict[str, str] = {}
    for ours, theirs in zip(fast.episodes, own.episodes, strict=True):
        assert ids.setdefault(ours.id_, theirs.id_) == theirs.id_
        _assert_same_episode(ours, theirs)
    assert len(set(ids.values())) == len(ids)
    assert fast.returns == own.returns
    assert fast.num_resets == own.num_resets
    assert fast.invalid == own.invalid
    assert str(fast.connector_states) == str(own.connector_states)
    assert _counts(fast) == _approx(_counts(own))


def _assert_same_episode(ours: SingleAgentEpisode, theirs: SingleAgentEpisode) -> None:
    for name in ("observations", "actions", "rewards"):
        a, b = getattr(ours, f"get_{name}")(), getattr(theirs, f"get_{name}")()
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name
    assert ours.extra_model_outputs.keys() == theirs.extra_model_outputs.keys()
    for key in ours.extra_model_outputs:
        a, b = ours.get_extra_model_outputs(key), theirs.get_extra_model_outputs(key)
        np.testing.assert_array_equal(a, b, err_msg=key)
        assert a.dtype == b.dtype, key
    assert list(ours.get_infos()) == list(theirs.get_infos())
    for name in ("t", "t_started", "is_terminated", "is_truncated", "is_numpy", "agent_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.custom_data == theirs.custom_data
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space


def _approx(counts: dict[str, Any]) -> Any:
    return pytest.approx(counts, rel=1e-12, nan_ok=True)  # Chunks add up in another order.


def _counts(rollouts: SampleResult) -> dict[str, Any]:
    logger = MetricsLogger(root=True)
    logger.aggregate([rollouts.metrics])
    return {name: logger.peek(name, default=None) for name in _COUNTS}


_CASES = [
    *itertools.product(["cartpole", "pendulum"], [False, True], ["truncate", "complete"]),
    ("pendulum-clip", False, "truncate"),
    ("pendulum-raw", False, "complete"),
    ("infos-and-1-step-episodes", True, "truncate"),
    ("infos-and-1-step-episodes", False, "complete"),
    ("float64", False, "truncate"),
    ("float64", True, "complete"),
    ("images", False, "truncate"),
    ("images", False, "complete"),
    ("float-images", False, "truncate"),
    ("bytes", False, "complete"),
    ("int64", True, "truncate"),
    ("scaled-bytes", False, "truncate"),
    ("int64", False, "truncate"),
    ("start", False, "truncate"),
    ("int8-actions", False, "complete"),
    ("int32-actions", False, "truncate"),
]


@pytest.mark.parametrize(("name", "with_filter", "mode"), _CASES)
def test_both_loops_sample_the_same_bits(name: str, with_filter: bool, mode: str) -> None:
    connectors = {"env_to_module_connector": _filter} if with_filter else {}
    config = _CONFIGS[name](batch_mode=f"{mode}_episodes", **connectors)
    fast, own = make_runner(config), make_runner(config)
    own.__dict__["fast_sampler"] = None
    seen = []
    for round_ in (1, 2, 3):
        rollouts = sample(fast, round_)
        _assert_same(rollouts, sample(own, round_))
        seen += [episode.get_actions().tolist() for episode in rollouts.episodes]
    assert fast.fast_sampler is not None
    assert any(actions != seen[0] for actions in seen)


def test_the_comparison_sees_a_different_stream() -> None:
    # Negative control: one round later, other random numbers.
    fast, own = make_runner(make_config()), make_runner(make_config())
    own.__dict__["fast_sampler"] = None
    with pytest.raises(AssertionError):
        _assert_same(sample(fast, 1), sample(own, 2))


def test_ongoing_chunks_do_not_pile_up() -> None:
    runner = make_runner(_scripted("box", batch_mode="complete_episodes"))
    for round_ in range(1, 6):
        sample(runner, round_)
    assert runner.fast_sampler is not None
    assert len(runner._ongoing_episodes_for_metrics) <= 2  # One of each sub-environment.


# When RLlib's own loop is needed


class _Callbacks(RLlibCallback):
    def on_episode_step(self, **kwargs: Any) -> None:
        pass


class _OtherCallbacks(RLlibCallback):
    def on_train_result(self, **kwargs: Any) -> None:
        pass

    def on_sample_end(self, **kwargs: Any) -> None:
        pass


class _Spaces(gym.Env):
    """An environment of given spaces, for what is never stepped."""

    def __init__(self, context: dict[str, Any]) -> None:
        box = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = context.get("obs", box)
        self.action_space = context.get("act", gym.spaces.Discrete(2))


class _OwnConnector(ConnectorV2):
    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return batch


def _own_connector(env: Any, spaces: Any, device: Any = None) -> ConnectorV2:
    return _OwnConnector(None, None)


def _spaces(**spaces: gym.Space) -> WeightedPPOConfig:
    config = _spaces_config(**spaces)
    if "obs" in spaces:
        config.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations()
        )
    return config


def _custom_module() -> WeightedPPOConfig:
    config = _spaces_config(obs=gym.spaces.Box(-1, 1, (42, 42, 4), np.float32))
    return config.rl_module(rl_module_spec=RLModuleSpec(module_class=TinyAtariCNN))


def _spaces_config(**spaces: gym.Space) -> WeightedPPOConfig:
    return make_config(_Spaces).environment(env_config=spaces)


def _evaluates() -> WeightedPPOConfig:
    config = make_config()
    config.in_evaluation = True
    return config


_TUPLE = gym.spaces.Tuple([gym.spaces.Discrete(2)] * 2)
_SLOW: dict[str, tuple[Callable[[], WeightedPPOConfig], str]] = {
    "evaluation": (_evaluates, "it evaluates"),
    "switched off": (lambda: make_config(fast_sampling=False), "`fast_sampling`=False"),
    "custom": (_custom_module, "the module is a custom or a recurrent one"),
    "asynchronous": (
        lambda: make_config(gym_env_vectorize_mode="async"),
        "the vector environment is not a synchronous one",
    ),
    "recurrent": (
        lambda: make_config().rl_module(model_config={"use_lstm": True, "lstm_cell_size": 4}),
        "the module is a custom or a recurrent one",
    ),
    "observations": (
        lambda: _spaces(obs=_TUPLE),
        "the observation space is not a Box",
    ),
    "actions": (
        lambda: _spaces(act=gym.spaces.MultiDiscrete([2, 2])),
        "the action space is neither Box nor Discrete",
    ),
    "module-to-env": (
        lambda: make_config(module_to_env_connector=_own_connector),
        "custom module-to-env connectors",
    ),
    "env-to-module": (
        lambda: make_config(env_to_module_connector=_own_connector),
        "custom env-to-module connectors",
    ),
    "restarts": (
        lambda: make_config().fault_tolerance(restart_failed_sub_environments=True),
        "`restart_failed_sub_environments`",
    ),
    "explore": (lambda: make_config(explore=False), "`explore`=False"),
    "lists": (
        lambda: make_config(episodes_to_numpy=False),
        "`episodes_to_numpy`=False",
    ),
    "callbacks class": (
        lambda: make_config().callbacks(_Callbacks),
        "the callback `on_episode_step`",
    ),
    "callbacks function": (
        lambda: make_config().callbacks(on_episode_end=lambda **kwargs: None),
        "the callback `on_episode_end`",
    ),
}


@pytest.mark.parametrize("name", _SLOW)
def test_what_needs_rllibs_own_loop(name: str) -> None:
    make, reason = _SLOW[name]
    runner = make_runner(make())
    try:
        assert why_not_fast_sampling(runner) == reason
        assert runner.fast_sampler is None
    finally:
        runner.stop()


@pytest.mark.parametrize("batch_mode", ["truncate_episodes", "complete_episodes"])
def test_without_exploration_actions_are_the_modes(batch_mode: str) -> None:
    runner = make_runner(make_config(explore=False, batch_mode=batch_mode))
    for episode in sample(runner).episodes:
        logits = episode.get_extra_model_outputs("action_dist_inputs")
        np.testing.assert_array_equal(episode.get_actions(), logits.argmax(axis=-1))


class _OverridesSample(WeightedEnvRunner):
    def sample(self, **kwargs: Any) -> Any:
        return super().sample(**kwargs)


class _OverridesNothing(_OverridesSample):
    pass


class _OverridesNoHook(WeightedEnvRunner):
    def stop(self) -> None:
        super().stop()


_EPISODES: dict[str, tuple[Callable[[], WeightedEnvRunner], str]] = {
    "a subclass": (
        lambda: make_runner(make_config(), cls=_OverridesNothing),
        "_OverridesSample overrides `sample`",
    ),
    "a callback": (
        lambda: make_runner(make_config().callbacks(_OtherCallbacks)),
        "the callback `on_sample_end`",
    ),
}


@pytest.mark.parametrize("name", _EPISODES)
def test_what_needs_episodes(name: str) -> None:
    make, reason = _EPISODES[name]
    assert why_not_column_sampling(make()) == reason


@pytest.mark.parametrize("cls", [WeightedEnvRunner, _OverridesNoHook])
def test_what_does_not_need_episodes(cls: type) -> None:
    assert why_not_column_sampling(make_runner(make_config(), cls=cls)) is None


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("cls", "reason"),
    [(_OverridesNoHook, None), (_OverridesSample, "_OverridesSample overrides `sample`")],
)
def test_in_an_actor_only_the_users_own_overrides_count(cls: type, reason: str | None) -> None:
    # Ray makes a subclass of an actor's class and wraps all methods for tracing.
    config = make_config(num_env_runners=1)
    config.env_runner_cls = cls
    config.validate()
    actor = ray.remote(num_cpus=0.1)(cls).remote(config=config, worker_index=1, num_workers=1)
    try:
        assert ray.get(actor.apply.remote(why_not_column_sampling)) == reason
    finally:
        ray.kill(actor)


def _violated(requirements: Any, runner: WeightedEnvRunner) -> str | None:
    """What the first requirement that is not met needs."""
    try:
        return next((row.needs for row in requirements if row.reason(runner) is not None), None)
    finally:
        runner.stop()


def test_every_requirement_is_violated_by_some_case() -> None:
    found = {_violated(FAST_SAMPLING, make_runner(make())) for make, _ in _SLOW.values()}
    assert found == {row.needs for row in FAST_SAMPLING}
    found = {_violated(COLUMN_SAMPLING, make()) for make, _ in _EPISODES.values()}
    assert found == {row.needs for row in COLUMN_SAMPLING}


@pytest.mark.parametrize(
    "make",
    [
        make_config,
        lambda: make_config().callbacks(_OtherCallbacks),
        lambda: make_config(env_to_module_connector=_filter),
        lambda: make_config("Pendulum-v1"),
        _images(),
        _images(actions=gym.spaces.Discrete(3, start=1)),
    ],
)
def test_what_does_not(make: Callable[[], WeightedPPOConfig]) -> None:
    assert why_not_fast_sampling(make_runner(make())) is None


def test_the_default_pipeline_is_the_one_the_fast_path_stands_in_for() -> None:
    # Canary: a further default connector of RLlib's would be left out by the fast path.
    runner = make_runner(make_config())
    names = [type(piece).__name__ for piece in runner._env_to_module.connectors]
    assert names == [
        "AddObservationsFromEpisodesToBatch",
        "AddTimeDimToBatchAndZeroPad",
        "AddStatesFromEpisodesToBatch",
        "BatchIndividualItems",
        "NumpyToTensor",
    ]
    names = [type(piece).__name__ for piece in runner._module_to_env.connectors]
    assert names == [
        "GetActions",
        "TensorToNumpy",
        "UnBatchToIndividualItems",
        "RemoveSingleTsTimeRankFromBatch",
        "NormalizeAndClipActions",
        "ListifyDataForVectorEnv",
    ]


def test_images_stay_bytes() -> None:
    episodes = sample(make_runner(_CONFIGS["images"]())).episodes
    assert {episode.get_observations().dtype for episode in episodes} == {np.dtype(np.uint8)}


# Metrics


class _Reshaping(RLlibCallback):
    def on_sample_end(self, *, samples: Any, **kwargs: Any) -> None:
        for episode in samples:
            episode.rewards.data = episode.rewards.data * 10


@pytest.mark.parametrize("mode", ["truncate", "complete"])
def test_rewards_that_a_callback_changes_are_in_the_metrics(mode: str) -> None:
    config = _CONFIGS["infos-and-1-step-episodes"](batch_mode=f"{mode}_episodes")
    plain = make_runner(config)
    changed = make_runner(config.copy().callbacks(_Reshaping))
    for round_ in (1, 2, 3):
        rollouts, tenfold = sample(plain, round_), sample(changed, round_)
        assert changed.fast_sampler is not None
        for worker, returns in rollouts.returns.items():
            assert tenfold.returns[worker] == pytest.approx([value * 10 for value in returns])
        before, after = _counts(rollouts), _counts(tenfold)
        # In whole episodes, those that the round leaves out are counted too, as they were.
        if mode == "truncate":
            before[EPISODE_RETURN_MEAN] *= 10
            assert after == _approx(before)
        else:
            assert after[EPISODE_RETURN_MEAN] > 5 * before[EPISODE_RETURN_MEAN]


class _Slow(ScriptedEnv):
    """Takes 4 ms for a step."""

    def step(self, action: Any) -> Any:
        time.sleep(0.004)
        return super().step(action)


@pytest.mark.parametrize("mode", ["truncate", "complete"])
@pytest.mark.parametrize("takes_columns", [False, True])
def test_episodes_have_their_duration_and_steps_their_times(mode: str, takes_columns: bool) -> None:
    config = make_config(_Slow, batch_mode=f"{mode}_episodes")
    runner = make_runner(config.environment(env_config={"length": [5, 5]}))
    for round_ in (1, 2):
        result = sample(runner, round_, takes_columns=takes_columns)
    logger = MetricsLogger(root=True)
    logger.aggregate([result.metrics])
    # 5 steps of 2 environments, 8 ms for each.
    assert 0.04 <= logger.peek("episode_duration_sec_mean") < 0.4
    assert 0.006 < logger.peek(ENV_STEP_TIMER) < 0.1  # One step in six is a reset.
    assert 0 < logger.peek(RLMODULE_INFERENCE_TIMER) < 0.1


def test_only_the_times_of_connectors_are_missing_among_the_metrics() -> None:
    fast, own = make_runner(make_config()), make_runner(make_config(fast_sampling=False))
    found, expected = (sample(runner, 2).metrics for runner in (fast, own))
    missing = {key for key in expected if key not in found}
    assert missing == {
        "env_to_module_connector",
        "module_to_env_connector",
        "env_to_module_sum_episodes_length_in",
        "env_to_module_sum_episodes_length_out",
    }
    assert not found.keys() - expected.keys()


# Changing loops


def test_sampling_by_episodes_in_between_starts_new_episodes() -> None:
    runner = make_runner(_scripted("box"))
    first = sample(runner, 1)
    (open_,) = [e for e in first.episodes if not e.is_done]
    evaluated = runner.sample(num_episodes=2)
    assert all(episode.is_done for episode in evaluated)
    second = sample(runner, 2)
    assert open_.id_ not in {episode.id_ for episode in second.episodes}
    assert all(len(e) == e.t for e in second.episodes)  # All from their beginnings.
    assert isinstance(runner, WeightedEnvRunner)
