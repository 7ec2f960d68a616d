from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.seeding import environment_seed
from rllib_weighted.core.workers import ENV_INDEX_KEY, WORKER_KEY
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from tests.sampling.envs import INF, NAN, ScriptedEnv, written
from tests.sampling.helpers import SEED, make_config, make_runner, sample


def _scripted(env_config: dict[str, Any] | None = None, **env_runners: Any) -> WeightedPPOConfig:
    return make_config(ScriptedEnv, **env_runners).environment(env_config=env_config or {})


def _slow(runner: WeightedEnvRunner) -> WeightedEnvRunner:
    runner.__dict__["fast_sampler"] = None
    return runner


def _seeds(rollouts: SampleResult) -> list[int]:
    """The seeds of the episodes that began in the round, as the environment got them."""
    return [e.get_infos(0)["seed"] for e in rollouts.episodes if e.t_started == 0]


def _expected(slot: int, *counters: int, num_slots: int = 2, evaluation: bool = False) -> int:
    return environment_seed(
        SEED, slot=slot, num_slots=num_slots, evaluation=evaluation, counters=counters
    )


def _steps(episodes: list[SingleAgentEpisode]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for episode in episodes:
        counts[episode.custom_data[WORKER_KEY]] += len(episode)
    return counts


@pytest.fixture(params=["fast", "own loop"])
def prepare(request: pytest.FixtureRequest) -> Any:
    """Puts an env runner on one of the two loops."""
    return _slow if request.param == "own loop" else lambda runner: runner


# Identity


@pytest.mark.parametrize("unit", ["env", "env_runner"])
def test_every_episode_carries_its_worker(prepare: Any, unit: str) -> None:
    config = _scripted(num_env_runners=3).training(merge_unit=unit)
    runner = prepare(make_runner(config, worker_index=2))
    for round_ in (1, 2):
        episodes = sample(runner, round_).episodes
        assert {e.custom_data[ENV_INDEX_KEY] for e in episodes} == {0, 1}
        for episode in episodes:
            index = episode.custom_data[ENV_INDEX_KEY]
            assert episode.custom_data[WORKER_KEY] == (2 + index if unit == "env" else 1)


def test_an_env_runner_without_an_index_is_the_local_one() -> None:
    rollouts = sample(make_runner(_scripted(), worker_index=None))
    assert rollouts.env_runner == 0
    assert _steps(rollouts.episodes).keys() == {0, 1}


def test_a_users_env_runner_may_change_what_is_sampled() -> None:
    class OwnRunner(WeightedEnvRunner):
        def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
            episodes = super().sample(**kwargs)
            return [e for e in episodes if e.custom_data[WORKER_KEY] == 1]

    assert _steps(sample(make_runner(_scripted(), cls=OwnRunner)).episodes).keys() == {1}


# How much


@pytest.mark.parametrize(("num_runners", "batch"), [(1, 41), (2, 40), (3, 43)])
def test_every_env_runner_owes_the_same_and_together_the_batch(
    num_runners: int, batch: int
) -> None:
    config = _scripted(num_env_runners=num_runners).training(train_batch_size=batch)
    owed = {
        make_runner(config, worker_index=index)._steps_per_env()
        for index in range(1, num_runners + 1)
    }
    assert len(owed) == 1
    slots = 2 * num_runners
    assert batch <= owed.pop() * slots < batch + slots


def test_a_fragment_length_is_multiplied_until_it_fills_the_batch() -> None:
    # 40 steps from 2 sub-environments in fragments of 7: 14, 28, 42 -> three fragments each.
    assert make_runner(_scripted(rollout_fragment_length=7))._steps_per_env() == 21


def test_truncated_rounds_have_the_steps_that_are_owed(prepare: Any) -> None:
    runner = prepare(make_runner(_scripted({"length": [1, 3]})))
    for round_ in (1, 2, 3):
        steps = _steps(sample(runner, round_).episodes)
        assert 40 <= steps.total() <= 41  # The last vector step may bring one too many.
        assert min(steps.values()) > 0


def test_complete_episodes_give_every_sub_environment_its_quota_of_whole_ones(
    prepare: Any,
) -> None:
    config = _scripted({"length": [3, 25]}, batch_mode="complete_episodes")
    runner = prepare(make_runner(config))
    for round_ in (1, 2, 3):
        episodes = sample(runner, round_).episodes
        # 20 steps are owed: 7 episodes of 3, or one of 25, longer than a chunk.
        assert _steps(episodes) == {0: 21, 1: 25}
        assert all(e.is_terminated and e.t_started == 0 for e in episodes)
        (longest,) = [e for e in episodes if len(e) == 25]
        assert longest.get_observations()[:, 0].tolist() == list(range(26))


# Returns


def test_returns_add_up_over_chunks(prepare: Any) -> None:
    # 20 steps each and round, rewards 1 and -2 in step 2. Of 30 steps: the first ends in round 2.
    runner = prepare(make_runner(_scripted({"length": [30, 8], "rewards": {2: -2.0}})))
    returns = [sample(runner, round_).returns for round_ in (1, 2)]
    assert 0 not in returns[0]
    assert returns[1][0] == [27.0]  # 29 * 1 - 2
    assert {r for by_worker in returns for r in by_worker[1]} == {5.0}  # 7 * 1 - 2


def test_an_env_runner_as_worker_has_the_returns_of_all_its_sub_environments() -> None:
    config = _scripted({"length": [4, 8]}).training(merge_unit="env_runner")
    config.training(merge_strategy="average")
    assert set(sample(make_runner(config)).returns[0]) == {4.0, 8.0}


# Bad numbers


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"rewards": {2: NAN}}, "sub-environment 1: reward nan"),
        ({"rewards": {2: -INF}}, "sub-environment 1: reward -inf"),
        ({"observations": {2: NAN}}, "sub-environment 1: observation with NaN or infinite"),
        ({"observations": {0: INF}}, "sub-environment 1: observation with NaN or infinite"),
    ],
)
def test_a_fault_is_named_and_stays_with_its_worker(
    prepare: Any, fault: dict[str, Any], text: str
) -> None:
    config = _scripted(
        {**fault, "only": [[0, 1]]},
        env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
    )
    runner = prepare(make_runner(config))
    rollouts = sample(runner)
    assert list(rollouts.invalid) == [1]
    assert rollouts.invalid[1].startswith(text)
    assert set(rollouts.returns) == {0}  # The faulty worker's are unknown.
    assert set(rollouts.returns[0]) == {5.0}
    for episode in rollouts.episodes:
        assert np.isfinite(episode.get_observations()).all()
        assert np.isfinite(episode.get_rewards()).all()
    (filter_,) = rollouts.connector_states["env_to_module_connector"].values()
    assert rollouts.connector_states  # Finite, else it would have been left out.
    assert filter_[None]["running_stats"][0]["num_pushes"] > 40


def test_a_worker_is_sound_again_when_its_numbers_are() -> None:
    runner = make_runner(_scripted({"length": 30, "rewards": {15: NAN}, "only": [[0, 1]]}))
    assert list(sample(runner, 1).invalid) == [1]
    second = sample(runner, 2)
    assert second.invalid == {}
    assert second.returns == {0: [30.0]}  # That of worker 1 began with an unknown reward.


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_metrics_show_the_returns_that_the_environment_gave(
    prepare: Any, mode: str, value: float
) -> None:
    """As stock RLlib's do; the rollouts themselves hold 0."""
    config = _scripted({"length": 13, "rewards": {2: value}}, batch_mode=mode)
    runner = prepare(make_runner(config.training(train_batch_size=20)))
    found = []
    for round_ in range(1, 5):  # Truncated, episodes of 13 steps end in every second round of 10.
        result = sample(runner, round_, {0: round_ * 9, 1: round_ * 9}, takes_columns=True)
        if "episode_return_mean" in result.metrics:
            found.append(result.metrics["episode_return_mean"].peek())
        rewards = [r for e in result.episodes for r in e.get_rewards()]
        if result.columns is not None:
            rewards += result.columns.steps["rewards"].tolist()
        assert np.isfinite(rewards).all()
    assert len(found) >= 2
    np.testing.assert_equal(found, [value] * len(found))
    assert not runner._nonfinite


def test_in_evaluation_the_episodes_hold_the_environments_rewards() -> None:
    runner = make_runner(_scripted({"rewards": {5: -INF}}))
    assert [e.get_return() for e in runner.sample(num_episodes=2)] == [-INF, -INF]
    assert runner.get_metrics()["episode_return_mean"].peek() == -INF
    result = sample(runner)  # Training again: 0 instead.
    assert {e.get_return() for e in result.episodes if e.is_done} == {4.0}


# Exceptions


def test_an_exception_comes_back_and_the_next_round_works(prepare: Any, tmp_path: Path) -> None:
    runner = prepare(make_runner(_scripted({"folder": str(tmp_path)})))
    first = sample(runner, 1)
    (tmp_path / "raise-0").touch()
    failed = runner.sample_round(SampleRequest(2, SEED, {}, first.num_resets))
    assert failed.error is not None
    assert "the scripted environment was told to raise" in failed.error
    assert failed.episodes == []
    (tmp_path / "raise-0").unlink()
    third = sample(runner, 3, first.num_resets)
    assert _steps(third.episodes).total() >= 40
    assert all(len(e) == e.t for e in third.episodes)  # No episode of before goes on.
    assert not {e.id_ for e in third.episodes} & {e.id_ for e in first.episodes}
    seeds = [seed for own in written(tmp_path, "seeds").values() for seed in own]
    assert len(seeds) == len(set(seeds))


class _Interrupted(ScriptedEnv):
    """Raises what it is told to at a step of any of its episodes."""

    raises: BaseException | None = None
    steps_left = 0

    def step(self, action: Any) -> Any:
        if self.raises is not None:
            type(self).steps_left -= 1
            if self.steps_left < 0:
                error, type(self).raises = self.raises, None
                raise error
        return super().step(action)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("broken")])
@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_whatever_is_raised_half_a_rollout_is_forgotten(
    prepare: Any, error: BaseException, mode: str
) -> None:
    config = make_config(_Interrupted, batch_mode=mode).environment(env_config={"length": 10})
    runner = prepare(make_runner(config.training(train_batch_size=30)))  # 15 steps of each.
    first = sample(runner, 1)
    _Interrupted.raises, _Interrupted.steps_left = error, 13
    if isinstance(error, Exception):
        assert runner.sample_round(SampleRequest(2, SEED, {}, first.num_resets)).error
    else:
        with pytest.raises(type(error)):
            runner.sample_round(SampleRequest(2, SEED, {}, first.num_resets))
    second = sample(runner, 2, first.num_resets)
    assert {e.t_started for e in second.episodes} == {0}
    assert {len(e) for e in second.episodes if e.is_done} == {10}
    assert second.metrics["episode_len_mean"].peek() == 10
    steps = sum(len(e) for e in second.episodes)
    assert second.metrics["num_env_steps_sampled"].peek() == (
        steps if mode == "truncate_episodes" else pytest.approx(steps, abs=2 * 16)
    )
    assert not set(_seeds(first)) & set(_seeds(second))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_interrupted_evaluation_is_forgotten_too(
    vectorization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _scripted({"length": 10}, gym_env_vectorize_mode=vectorization)
    runner = make_runner(config)
    interrupted = runner.env

    def interrupt(actions: Any) -> None:
        raise KeyboardInterrupt

    try:
        monkeypatch.setattr(runner.env, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.sample(num_episodes=2)
        episodes = runner.sample(num_episodes=2)
        assert [len(e) for e in episodes] == [10, 10]
        assert runner.env is not interrupted
    finally:
        runner.stop()


def test_an_environment_that_cannot_be_rebuilt_is_tried_again() -> None:
    states = {"broken": False}

    class Fragile(ScriptedEnv):
        def __init__(self, context: Any) -> None:
            if states["broken"]:
                raise OSError("no display")
            super().__init__(context)

        def step(self, action: Any) -> Any:
            if states["broken"]:
                raise OSError("lost the display")
            return super().step(action)

    runner = make_runner(make_config(Fragile))
    first = sample(runner, 1)
    states["broken"] = True
    for round_, message in ((2, "lost the display"), (3, "no display"), (4, "no display")):
        error = runner.sample_round(SampleRequest(round_, SEED, {}, {})).error
        assert error is not None
        assert message in error
    states["broken"] = False
    again = sample(runner, 5, first.num_resets)
    assert not set(_seeds(first)) & set(_seeds(again))


@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")  # gymnasium's log goes there.
def test_an_asynchronous_environment_survives_an_exception(tmp_path: Path) -> None:
    config = _scripted({"folder": str(tmp_path)}, gym_env_vectorize_mode="async")
    runner = make_runner(config)
    try:
        assert _steps(sample(runner, 1).episodes).keys() == {0, 1}
        (tmp_path / "raise-0").touch()
        error = runner.sample_round(SampleRequest(2, SEED, {}, {})).error
        assert error is not None
        assert "told to raise" in error
        (tmp_path / "raise-0").unlink()
        assert _steps(sample(runner, 3).episodes).keys() == {0, 1}
    finally:
        runner.stop()


# Random streams


def test_seeds_are_those_of_the_counters(prepare: Any) -> None:
    config = _scripted({"length": [2, 3]}, num_env_runners=2)
    runner = prepare(make_runner(config, worker_index=2))
    rollouts = sample(runner, num_resets={2: 10, 3: 20, 0: 99})
    by_index: dict[int, list[int]] = {0: [], 1: []}
    for episode in rollouts.episodes:
        by_index[episode.custom_data[ENV_INDEX_KEY]].append(episode.get_infos(0)["seed"])
    for index, (slot, start) in enumerate([(2, 10), (3, 20)]):
        seeds = by_index[index]
        assert seeds == [_expected(slot, start + k, num_slots=4) for k in range(len(seeds))]
        assert rollouts.num_resets[slot] >= start + len(seeds)
    assert rollouts.num_resets.keys() == {2, 3}


def test_fixed_seeding_gives_every_sub_environment_one_seed() -> None:
    runner = make_runner(_scripted(env_seeding="fixed"))
    seeds = _seeds(sample(runner, 1)) + _seeds(sample(runner, 2))
    assert len(seeds) > 4
    assert set(seeds) == {_expected(0, 0), _expected(1, 0)}


def _assert_same(ours: SampleResult, theirs: SampleResult) -> None:
    assert len(ours.episodes) == len(theirs.episodes)
    for a, b in zip(ours.episodes, theirs.episodes, strict=True):
        np.testing.assert_array_equal(a.get_observations(), b.get_observations())
        np.testing.assert_array_equal(a.get_actions(), b.get_actions())
        assert list(a.get_infos()) == list(b.get_infos())


def test_a_restarted_env_runner_goes_on_where_the_other_stopped(prepare: Any) -> None:
    config = _scripted(batch_mode="complete_episodes")
    first = prepare(make_runner(config))
    sample(first, 1)
    counters = sample(first, 2).num_resets
    restarted = prepare(make_runner(config))
    _assert_same(sample(first, 3, counters), sample(restarted, 3, counters))


def test_stock_env_runners_replay_their_past() -> None:
    # Negative control for the comparison: without the counters, the past comes again.
    config = _scripted(batch_mode="complete_episodes")
    first = make_runner(config)
    past = sample(first, 1)
    _assert_same(sample(make_runner(config), 1), past)
    with pytest.raises(AssertionError):
        _assert_same(sample(first, 2), past)


def test_counters_go_on_after_a_round_that_the_algorithm_did_not_get() -> None:
    runner = make_runner(_scripted())
    lost = sample(runner, 1)
    later = sample(runner, 2, {0: 0, 1: 0})
    assert not set(_seeds(lost)) & set(_seeds(later))


def test_a_restored_run_takes_its_counters_and_new_episodes() -> None:
    config = _scripted({"length": 30})
    runner, fresh = make_runner(config), make_runner(config)
    sample(runner, 1)
    sample(runner, 2)
    restored = sample(runner, 2, {0: 1, 1: 1}, restore_id="restored")
    assert _seeds(restored)[:2] == [_expected(0, 1), _expected(1, 1)]
    _assert_same(restored, sample(fresh, 2, {0: 1, 1: 1}, restore_id="restored"))


def test_env_runners_and_seeds_differ() -> None:
    config = _scripted(num_env_runners=2)
    first, second = (sample(make_runner(config, worker_index=i)) for i in (1, 2))
    assert not set(_seeds(first)) & set(_seeds(second))
    actions = [np.concatenate([e.get_actions() for e in r.episodes]) for r in (first, second)]
    assert not np.array_equal(*actions)
    other = make_runner(config, worker_index=1).sample_round(SampleRequest(1, SEED + 1, {}, {}))
    assert not set(_seeds(first)) & set(_seeds(other))


def test_the_requests_root_seed_counts_and_not_the_configs() -> None:
    config = _scripted().debugging(seed=None)
    _assert_same(sample(make_runner(config)), sample(make_runner(config)))


def test_sampling_leaves_the_process_random_state_alone() -> None:
    runner = make_runner(_scripted())
    sample(runner, 1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    sample(runner, 2)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


# Evaluation


def _evaluation_runner() -> WeightedEnvRunner:
    config = _scripted()
    config.in_evaluation = True
    return make_runner(config)


def _evaluated(runner: WeightedEnvRunner, version: int) -> list[int]:
    runner._weights_seq_no = version
    return [e.get_infos(0)["seed"] for e in runner.sample(num_episodes=3)]


def test_evaluation_has_own_seeds_by_version_of_the_weights() -> None:
    runner = _evaluation_runner()
    seeds = {version: _evaluated(runner, version) for version in (1, 2)}
    assert sorted(seeds[1]) == sorted(
        [_expected(i, 1, 0, evaluation=True) for i in (0, 1)]
        + [_expected(0, 1, 1, evaluation=True)]
    )
    assert not set(seeds[1]) & set(seeds[2])
    assert all(seed % 2 for own in seeds.values() for seed in own)
    assert _evaluated(_evaluation_runner(), 2) == seeds[2]  # Whatever came before.


def test_evaluating_the_same_weights_again_takes_other_episodes() -> None:
    runner = _evaluation_runner()
    assert not set(_evaluated(runner, 1)) & set(_evaluated(runner, 1))


def test_a_training_env_runner_evaluates_on_evaluation_seeds() -> None:
    config = _scripted(batch_mode="complete_episodes")
    runner, undisturbed = make_runner(config), make_runner(config)
    training = _seeds(sample(runner, 1)) + _seeds(sample(undisturbed, 1))
    evaluation = _evaluated(runner, 5)
    runner._weights_seq_no = 0
    assert all(seed % 2 for seed in evaluation)
    assert not set(training) & set(evaluation)
    _assert_same(sample(runner, 2), sample(undisturbed, 2))


# Callbacks


class _Recorder(RLlibCallback):
    ended: list[tuple[int, float, int]] = []  # noqa: RUF012

    def on_episode_end(self, *, episode: Any, **kwargs: Any) -> None:
        self.ended.append((len(episode), episode.get_return(), episode.custom_data[WORKER_KEY]))


@pytest.fixture
def ended() -> Iterator[list[tuple[int, float, int]]]:
    _Recorder.ended.clear()
    yield _Recorder.ended
    _Recorder.ended.clear()


def test_callbacks_see_whole_episodes_with_complete_episodes(
    ended: list[tuple[int, float, int]],
) -> None:
    config = _scripted({"length": [3, 45]}, batch_mode="complete_episodes").callbacks(_Recorder)
    runner = make_runner(config)
    assert runner.fast_sampler is None
    for round_ in (1, 2):
        assert _steps(sample(runner, round_).episodes) == {0: 21, 1: 45}
    assert set(ended) == {(3, 3.0, 0), (45, 45.0, 1)}


def test_callbacks_see_the_last_chunk_and_those_before_with_truncated_episodes(
    ended: list[tuple[int, float, int]],
) -> None:
    runner = make_runner(_scripted({"length": 30}).callbacks(_Recorder))
    sample(runner, 1)
    sample(runner, 2)
    assert ended == [(10, 10.0, 0), (10, 10.0, 1)]


def test_callbacks_and_the_environment_get_the_context() -> None:
    contexts: list[Any] = []
    config = _scripted({"length": 4}, num_env_runners=2).callbacks(
        on_environment_created=lambda env_context, **kwargs: contexts.append(env_context)
    )
    runner = make_runner(config, worker_index=2)
    assert [context.worker_index for context in contexts] == [2]
    envs = runner.env.unwrapped.envs
    assert [env.unwrapped.vector_index for env in envs] == [0, 1]
    assert [env.unwrapped.length for env in envs] == [4, 4]


# Vectorisation


def test_asynchronous_environments_sample_what_synchronous_ones_do() -> None:
    rollouts = []
    for mode in ("sync", "async"):
        runner = _slow(make_runner(_scripted(gym_env_vectorize_mode=mode)))
        try:
            rollouts.append([sample(runner, round_) for round_ in (1, 2)])
        finally:
            runner.stop()
    for sync, asynchronous in zip(*rollouts, strict=True):
        _assert_same(sync, asynchronous)
        assert sync.num_resets == asynchronous.num_resets


def test_vector_entry_points_are_seeded_by_whole_resets() -> None:
    config = make_config(gym_env_vectorize_mode="vector_entry_point")
    first, same = make_runner(config), make_runner(config)
    assert type(first.env.unwrapped) is not gym.vector.SyncVectorEnv
    rollouts = sample(first)
    _assert_same(rollouts, sample(same))
    assert rollouts.num_resets == {0: 1, 1: 1}
    assert _steps(rollouts.episodes).keys() == {0, 1}
    other = sample(make_runner(config), num_resets={0: 1, 1: 1})
    starts = [r.episodes[0].get_observations(0).tolist() for r in (rollouts, other)]
    assert starts[0] != starts[1]


# Requests


def test_a_state_without_weights_leaves_their_number_alone() -> None:
    runner = make_runner(_scripted())
    runner._weights_seq_no = 5
    runner.set_state({WEIGHTS_SEQ_NO: 6})
    assert runner._weights_seq_no == 5


@pytest.mark.parametrize("version", [5, 4])
def test_a_request_brings_its_weights_whatever_their_number(version: int) -> None:
    # RLlib takes newer ones only. A restored checkpoint's may be older, or others of this number.
    runner = make_runner(_scripted())
    runner._weights_seq_no = 5
    weights = {k: v + 1 for k, v in runner.module.get_state().items()}
    result = runner.sample_round(
        SampleRequest(1, SEED, {COMPONENT_RL_MODULE: weights, WEIGHTS_SEQ_NO: version}, {})
    )
    assert result.error is None
    for key, value in runner.module.get_state().items():
        np.testing.assert_array_equal(value, weights[key])
    (numbers,) = {
        tuple(np.unique(e.get_extra_model_outputs(WEIGHTS_SEQ_NO))) for e in result.episodes
    }
    assert numbers == (version,)
