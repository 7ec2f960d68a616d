"""A rollout as columns is the same rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_weighted.core.messages import SampleResult
from rllib_weighted.core.workers import ENV_INDEX_KEY
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from tests.sampling.envs import ScriptedEnv
from tests.sampling.helpers import make_config, make_runner, sample
from tests.sampling.test_fast_sampler import _CASES, _CONFIGS, _counts, _filter


def _assert_same(ours: SampleResult, theirs: SampleResult) -> None:
    assert ours.columns is not None
    assert theirs.columns is None
    assert ours.episodes == []
    episodes = ours.columns.to_episodes()
    assert len(episodes) == len(theirs.episodes) > 0
    ids: dict[str, str] = {}
    for a, b in zip(episodes, theirs.episodes, strict=True):
        assert ids.setdefault(a.id_, b.id_) == b.id_
        for name in ("observations", "actions", "rewards"):
            x, y = getattr(a, f"get_{name}")(), getattr(b, f"get_{name}")()
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype, name
        assert a.extra_model_outputs.keys() == b.extra_model_outputs.keys()
        for key in a.extra_model_outputs:
            x, y = a.get_extra_model_outputs(key), b.get_extra_model_outputs(key)
            np.testing.assert_array_equal(x, y, err_msg=key)
            assert x.dtype == y.dtype, key
        for name in ("t", "t_started", "is_terminated", "is_truncated", "custom_data"):
            assert getattr(a, name) == getattr(b, name), name
    assert ours.returns == theirs.returns
    assert ours.num_resets == theirs.num_resets
    assert ours.invalid == theirs.invalid
    assert str(ours.connector_states) == str(theirs.connector_states)
    assert _counts(ours) == pytest.approx(_counts(theirs), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(("name", "with_filter", "mode"), _CASES)
def test_columns_hold_what_rllibs_own_loop_samples(name: str, with_filter: bool, mode: str) -> None:
    connectors = {"env_to_module_connector": _filter} if with_filter else {}
    config = _CONFIGS[name](batch_mode=f"{mode}_episodes", **connectors)
    ours = make_runner(config)
    theirs = make_runner(config.copy(copy_frozen=False).env_runners(fast_sampling=False))
    assert theirs.fast_sampler is None
    for round_ in (1, 2, 3):
        _assert_same(sample(ours, round_, takes_columns=True), sample(theirs, round_))


def test_the_comparison_sees_another_round() -> None:
    # Negative control: other random numbers.
    with pytest.raises(AssertionError):
        _assert_same(
            sample(make_runner(make_config()), 2, takes_columns=True),
            sample(make_runner(make_config()), 1),
        )


def test_rounds_as_episodes_and_as_columns_go_on_with_each_other() -> None:
    config = make_config(ScriptedEnv).environment(env_config={"length": [3, 7]})
    mixed, own = make_runner(config), make_runner(config.copy().env_runners(fast_sampling=False))
    for round_ in range(1, 7):
        ours = sample(mixed, round_, takes_columns=round_ % 2 == 0)
        theirs = sample(own, round_)
        if round_ % 2 == 0:
            _assert_same(ours, theirs)
        else:
            lengths = [[len(e) for e in rollouts.episodes] for rollouts in (ours, theirs)]
            assert lengths[0] == lengths[1]
            assert ours.returns == theirs.returns


class _Faulty(ScriptedEnv):
    """Gives a bad reward and, two steps later, a bad observation in sub-environment 1."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._is_bad = context.vector_index == 1
        self._count = 0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        self._count += 1
        if self._is_bad and self._count == 4:
            reward = float("inf")
        if self._is_bad and self._count in (2, 6):
            obs = np.full_like(obs, np.nan)
        return obs, reward, *rest


@pytest.mark.parametrize("with_filter", [False, True])
def test_bad_numbers_stay_with_their_worker(with_filter: bool) -> None:
    connectors = {"env_to_module_connector": _filter} if with_filter else {}
    config = make_config(_Faulty, **connectors)
    config.environment(env_config={"space": "box", "length": [5, 5]})
    ours, theirs = make_runner(config), make_runner(config.copy().env_runners(fast_sampling=False))
    for round_ in (1, 2):
        rollouts = sample(ours, round_, takes_columns=True)
        _assert_same(rollouts, sample(theirs, round_))
        assert rollouts.invalid.keys() == ({1} if round_ == 1 else set())
        assert rollouts.columns is not None
        assert np.isfinite(rollouts.columns.obs).all()


class _NoReward(ScriptedEnv):
    """Forgets the reward of one step in sub-environment 0."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        forgets = self.vector_index == 0 and self.t == 2
        return obs, None if forgets else reward, *rest


@pytest.mark.parametrize("fast_sampling", [True, False])
def test_a_reward_of_none_is_named_as_what_it_is(fast_sampling: bool) -> None:
    runner = make_runner(make_config(_NoReward, fast_sampling=fast_sampling))
    result = sample(runner, takes_columns=True)
    assert result.invalid == {0: "sub-environment 0: reward None"}
    assert np.isfinite([r for returns in result.returns.values() for r in returns]).all()


# Who needs episodes


class _Callbacks(RLlibCallback):
    def on_sample_end(self, *, samples: Any, **kwargs: Any) -> None:
        assert all(ENV_INDEX_KEY in episode.custom_data for episode in samples)


class _OwnRunner(WeightedEnvRunner):
    def sample(self, **kwargs: Any) -> Any:
        return [episode for episode in super().sample(**kwargs) if len(episode) > 1]


@pytest.mark.parametrize("batch_mode", ["truncate_episodes", "complete_episodes"])
def test_whoever_looks_at_episodes_gets_them(batch_mode: str) -> None:
    config = make_config(batch_mode=batch_mode)
    with_callback = make_runner(config.copy().callbacks(_Callbacks))
    for runner in (with_callback, make_runner(config, cls=_OwnRunner)):
        rollouts = sample(runner, takes_columns=True)
        assert rollouts.columns is None
        assert rollouts.is_fast
        assert rollouts.episodes


def test_the_public_sample_returns_episodes() -> None:
    runner = make_runner(make_config())
    assert sample(runner, 1, takes_columns=True).columns is not None
    assert {type(episode).__name__ for episode in runner.sample(num_timesteps=10)} == {
        "SingleAgentEpisode"
    }
