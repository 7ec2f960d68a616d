"""EnvPool as the vector environment: seeds, counters, numbers, the same world as gymnasium's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import envpool
import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.env_context import EnvContext
from scipy import stats

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.envs import OWN, TRUE_REWARD, env_problem
from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.sampling import envs
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.sampling.envpool import EnvPoolVectorEnv, has_channels_first

SEED = 11


def pool(env_id: str = "CartPole-v1", slots: Sequence[int] = (0, 1), **options: Any) -> Any:
    return EnvPoolVectorEnv(
        env_id,
        slots=slots,
        num_slots=8,
        seed=SEED,
        evaluation=False,
        num_threads=1,
        options=options,
    )


def config(env: str = "envpool:CartPole-v1", **env_runners: Any) -> WeightedPPOConfig:
    settings = {"num_env_runners": 0, "num_envs_per_env_runner": 3, **env_runners}
    return (
        WeightedPPOConfig()
        .environment(env)
        .env_runners(**settings)
        .training(merge_unit="env", train_batch_size=300, minibatch_size=60, num_epochs=1)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=SEED)
    )


def rollout(env: Any, actions: np.ndarray) -> list[np.ndarray]:
    return [env.reset()[0], *(env.step(action)[0] for action in actions)]


# Threads


@pytest.mark.parametrize(
    ("num_env_runners", "cpus", "expected"),
    [
        (0, {}, 1),
        (0, {"num_cpus_for_main_process": 3}, 3),
        (2, {"num_cpus_for_main_process": 3}, 1),
    ],
)
def test_it_steps_with_the_cpus_of_who_samples(
    monkeypatch: pytest.MonkeyPatch, num_env_runners: int, cpus: dict[str, int], expected: int
) -> None:
    made: list[int] = []
    monkeypatch.setattr(envs, "cores_at_hand", lambda: 16)
    monkeypatch.setattr(
        envs, "EnvPoolVectorEnv", lambda *_, num_threads, **options: made.append(num_threads)
    )
    monkeypatch.setattr(envs.EnvSeeds, "_write_counters", lambda self: None)
    settings = config(num_env_runners=num_env_runners).resources(**cpus)
    envs.EnvSeeds(settings, min(num_env_runners, 1), SEED).build(settings, EnvContext({}, 0))
    assert made == [expected]


# Seeds


def test_a_slots_stream_is_its_own_and_depends_on_nobody_else() -> None:
    actions = np.zeros((60, 2), int)
    first, again = rollout(pool(), actions), rollout(pool(), actions)
    shifted = rollout(pool(slots=(1, 2)), actions)
    for a, b, c in zip(first, again, shifted, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[1], c[0])
        assert not np.array_equal(a[0], a[1])


def test_episodes_of_a_stream_are_new_ones() -> None:
    env = pool()
    starts = [env.reset()[0] for _ in range(20)]
    assert len(np.unique(np.concatenate(starts), axis=0)) == 40
    assert env.get_attr(f"{OWN}num_resets") == (20, 20)


def test_a_restored_counter_goes_on_with_other_episodes() -> None:
    """Nothing of the past is repeated: neither what this pool has seen, nor another's beginning."""
    env = pool()
    before = [env.reset()[0] for _ in range(5)]
    env.set_attr(f"{OWN}num_resets", [3, 3])
    after = [env.reset()[0] for _ in range(5)]
    assert len(np.unique(np.concatenate(before + after), axis=0)) == 20
    other = pool()
    other.set_attr(f"{OWN}num_resets", [3, 3])
    np.testing.assert_array_equal(other.reset()[0], after[0])


def test_the_counters_that_it_has_itself_change_nothing() -> None:
    env, undisturbed = pool(), pool()
    for _ in range(3):
        np.testing.assert_array_equal(env.reset()[0], undisturbed.reset()[0])
        env.set_attr(f"{OWN}num_resets", list(env.get_attr(f"{OWN}num_resets")))
        env.set_attr(f"{OWN}root_seed", SEED)


def test_evaluation_has_seeds_of_its_own_per_version_of_the_weights() -> None:
    env = pool()
    training = env.reset()[0]
    env.set_attr(f"{OWN}evaluation", True)
    starts = []
    for version in (1, 2, 1):
        env.set_attr(f"{OWN}weights_version", version)
        env.set_attr(f"{OWN}num_evaluation_resets", 0)
        starts.append(env.reset()[0])
    np.testing.assert_array_equal(starts[0], starts[2])
    assert len(np.unique(np.concatenate([training, *starts[:2]]), axis=0)) == 6
    env.set_attr(f"{OWN}evaluation", False)
    assert env.get_attr(f"{OWN}num_resets") == (1, 1)


# The same world as gymnasium's


def test_cartpole_moves_as_gymnasiums_does() -> None:
    """Every transition, the last one of each episode included: same observation, reward, end."""
    env = pool()
    reference = gym.make("CartPole-v1").unwrapped
    reference.reset(seed=0)
    random = np.random.default_rng(0)
    obs, _ = env.reset()
    resets = np.zeros(2, bool)
    num_ends = 0
    for _ in range(400):
        actions = random.integers(2, size=2)
        following, rewards, terminateds, truncateds, _ = env.step(actions)
        for i in range(2):
            if resets[i]:
                assert (rewards[i], terminateds[i], truncateds[i]) == (0.0, False, False)
                assert np.abs(following[i]).max() <= 0.05  # A start.
                continue
            reference.state = obs[i].astype(np.float64)
            reference.steps_beyond_terminated = None
            wanted, reward, terminated, _, _ = reference.step(int(actions[i]))
            np.testing.assert_allclose(following[i], wanted, atol=1e-6)
            assert (rewards[i], terminateds[i]) == (reward, terminated)
        num_ends += int(terminateds.sum())
        obs, resets = following, terminateds | truncateds
    assert num_ends > 20


def test_a_time_limit_truncates() -> None:
    env = pool(max_episode_steps=5)
    env.reset()
    flags = [env.step(np.zeros(2, int))[2:4] for _ in range(6)]
    assert [bool(truncated.all()) for _, truncated in flags] == [False] * 4 + [True, False]
    assert not any(terminated.any() for terminated, _ in flags)


def returns_of(env: Any, num_episodes: int) -> list[float]:
    """Returns of episodes under random actions."""
    env.single_action_space.seed(0)
    env.reset(seed=SEED)
    sums, found = np.zeros(env.num_envs), []
    resets = np.zeros(env.num_envs, bool)
    while len(found) < num_episodes:
        actions = np.stack([env.single_action_space.sample() for _ in range(env.num_envs)])
        _, rewards, terminateds, truncateds, _ = env.step(actions)
        sums = np.where(resets, 0.0, sums + rewards)
        resets = terminateds | truncateds
        found += sums[resets].tolist()
    return found


@pytest.mark.parametrize(
    ("env_id", "num_envs"),
    [
        ("LunarLander-v3", 20),
        pytest.param("BipedalWalker-v3", 20, marks=pytest.mark.slow),
    ],
)
def test_returns_are_distributed_as_gymnasiums(env_id: str, num_envs: int) -> None:
    ours = returns_of(pool(env_id, slots=range(8)), 200)
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(env_id)] * num_envs)
    found = stats.ks_2samp(ours[:200], returns_of(envs, 200)[:200])
    # Fixed seeds: it does not change from run to run. 0.001 is passed by chance once in 1,000.
    assert found.pvalue > 0.001


def test_other_returns_would_be_noticed() -> None:
    ours = returns_of(pool("LunarLander-v3", slots=range(8)), 200)
    assert stats.ks_2samp(ours, [value + 60 for value in ours]).pvalue < 0.001


# Images


def test_images_get_their_channels_last() -> None:
    import envpool

    env = pool("Pong-v5")
    assert env.single_observation_space == gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    seeds = [env._seed_of(index) for index in range(2)]
    raw = envpool.make("Pong-v5", env_type="gymnasium", num_envs=2, seed=seeds)
    actions = np.random.default_rng(0).integers(6, size=(30, 2)).astype(np.int32)
    obs, expected = env.reset()[0], raw.reset()[0]
    for action in actions:
        np.testing.assert_array_equal(obs, np.moveaxis(expected, 1, -1))
        assert obs.flags.c_contiguous
        obs, expected = env.step(action)[0], raw.step(action)[0]
    assert not np.array_equal(obs[..., 0], obs[..., 3])


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), True),
        (gym.spaces.Box(0, 255, (3, 72, 96), np.uint8), True),
        (gym.spaces.Box(0, 255, (96, 96, 3), np.uint8), False),
        (gym.spaces.Box(0, 255, (72, 96, 4), np.uint8), False),
        (gym.spaces.Box(0, 255, (128,), np.uint8), False),
        (gym.spaces.Box(0, 1, (2, 12, 12), np.float32), False),
        (gym.spaces.Discrete(3), False),
    ],
)
def test_which_spaces_are_images_with_channels_first(space: gym.Space, expected: bool) -> None:
    assert has_channels_first(space) is expected


def test_atari_is_sampled_the_same_by_both_loops() -> None:
    made = config("envpool:Pong-v5", num_envs_per_env_runner=2).training(
        train_batch_size=24, minibatch_size=12
    )
    made.rl_module(model_config={"conv_filters": [[4, 8, 4], [8, 4, 4]]}, observation_scale=1 / 255)
    fast = WeightedEnvRunner(config=made)
    own = WeightedEnvRunner(config=made.copy(copy_frozen=False).env_runners(fast_sampling=False))
    own.set_state({"rl_module": fast.module.get_state(), "weights_seq_no": 1})
    for round in (1, 2):
        columns, episodes = sample(fast, round), sample(own, round)
        assert columns.columns is not None
        assert columns.columns.obs.dtype == np.uint8
        assert columns.columns.obs.shape[1:] == (84, 84, 4)
        for a, b in zip(columns.columns.to_episodes(), episodes.episodes, strict=True):
            np.testing.assert_array_equal(a.get_observations(), b.get_observations())
            np.testing.assert_array_equal(a.get_actions(), b.get_actions())
            np.testing.assert_array_equal(
                a.get_extra_model_outputs("action_dist_inputs"),
                b.get_extra_model_outputs("action_dist_inputs"),
            )


# Numbers


class Broken:
    """A pool that gives chosen numbers."""

    def __init__(self, obs: list[Any], rewards: list[float]) -> None:
        self._obs, self._rewards = obs, rewards

    def step(self, actions: np.ndarray) -> Any:
        no = np.zeros(2, bool)
        return np.array(self._obs, np.float32), np.array(self._rewards, np.float32), no, no, {}

    def close(self) -> None:
        pass


def test_numbers_that_are_not_finite_do_not_leave_it() -> None:
    env = pool("CartPole-v1")
    before, _ = env.reset()
    env._pool = Broken([[1, 2, 3, 4], [np.nan, 0, 0, 0]], [np.inf, 2.0])
    obs, rewards, _, _, infos = env.step(np.zeros(2, int))
    np.testing.assert_array_equal(obs, [[1, 2, 3, 4], before[1]])
    assert rewards.tolist() == [0.0, 2.0]
    assert infos[TRUE_REWARD][infos[f"_{TRUE_REWARD}"]].tolist() == [np.inf]
    assert env.get_attr(f"{OWN}invalid") == (
        "reward inf",
        "observation with NaN or infinite entries",
    )
    env.set_attr(f"{OWN}invalid", None)
    assert env.get_attr(f"{OWN}invalid") == (None, None)
    env.set_attr(f"{OWN}evaluation", True)
    assert env.step(np.zeros(2, int))[1].tolist() == [np.inf, 2.0]


def test_nobody_reaches_its_counters_by_chance() -> None:
    env = pool("CartPole-v1")
    with pytest.raises(AttributeError, match="no attribute 'evaluation'"):
        env.set_attr("evaluation", True)
    with pytest.raises(AttributeError, match="no attribute 'num_resets'"):
        env.get_attr("num_resets")


# In an env runner


def sample(runner: WeightedEnvRunner, round: int, **request: Any) -> SampleResult:
    result = runner.sample_round(
        SampleRequest(round, SEED, {}, {}, **{"takes_columns": True, **request})
    )
    assert result.error is None, result.error
    return result


@pytest.mark.parametrize("batch_mode", ["truncate_episodes", "complete_episodes"])
def test_the_fast_path_gives_what_rllibs_own_loop_gives(batch_mode: str) -> None:
    fast, own = (
        WeightedEnvRunner(config=config(batch_mode=batch_mode, fast_sampling=is_fast))
        for is_fast in (True, False)
    )
    own.set_state({"rl_module": fast.module.get_state(), "weights_seq_no": 1})
    for round in (1, 2, 3):
        columns, episodes = sample(fast, round), sample(own, round)
        assert columns.columns is not None
        assert columns.is_fast
        assert not episodes.is_fast
        assert columns.num_resets == episodes.num_resets
        assert columns.returns == episodes.returns
        for a, b in zip(columns.columns.to_episodes(), episodes.episodes, strict=True):
            np.testing.assert_array_equal(a.get_observations(), b.get_observations())
            np.testing.assert_array_equal(a.get_actions(), b.get_actions())
            np.testing.assert_array_equal(a.get_rewards(), b.get_rewards())
            assert (a.is_terminated, a.is_truncated) == (b.is_terminated, b.is_truncated)
            assert a.custom_data == b.custom_data
    fast.stop()
    own.stop()


def test_trains_the_same_twice_and_by_either_name(ray_session: None) -> None:
    found = []
    for env, backend in (
        ("envpool:CartPole-v1", "gymnasium"),
        ("envpool:CartPole-v1", "gymnasium"),
        ("CartPole-v1", "envpool"),
        ("CartPole-v1", "gymnasium"),
    ):
        algorithm = config(env, env_backend=backend).build_algo()
        result = [algorithm.train() for _ in range(2)][-1]
        state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
        found.append(np.concatenate([np.ravel(value) for value in state.values()]))
        assert result["merge"]["columns"] == 1.0
        algorithm.stop()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])  # Another world: its own random numbers.


@pytest.mark.slow
def test_continuous_actions_remote_env_runners_and_evaluation(ray_session: None) -> None:
    algorithm = (
        config("envpool:BipedalWalker-v3", num_env_runners=2, num_envs_per_env_runner=2)
        .evaluation(
            evaluation_interval=1,
            evaluation_duration=1,
            evaluation_config={"env_config": {"max_episode_steps": 30}},
        )
        .build_algo()
    )
    result = algorithm.train()
    algorithm.stop()
    assert result["num_env_steps_sampled_lifetime"] >= 300
    assert np.isfinite(result["evaluation"]["env_runners"]["episode_return_mean"])
    assert result["evaluation"]["env_runners"]["episode_len_mean"] <= 30


# Mistakes


def test_an_unknown_id_is_told_with_what_is_near() -> None:
    assert "did you mean 'LunarLander-v3'" in str(env_problem("envpool:LunarLandr-v3"))


def test_an_id_that_only_gymnasium_has() -> None:
    problem = str(env_problem("HalfCheetah-v2", "envpool"))
    assert "EnvPool has no environment 'HalfCheetah-v2'" in problem
    assert "leave `env_backend`" in problem


def test_a_class_is_none_of_envpools() -> None:
    assert "by their ids" in str(env_problem(gym.Env, "envpool"))


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("WalkerWalk-v1", "observes Dict("),
        ("Go9x9-v1", "is played by up to 2"),
    ],
)
def test_environments_that_envpool_has_and_nobody_here_can_train_in(env: str, says: str) -> None:
    assert says in str(env_problem(f"envpool:{env}"))


def test_an_environment_that_envpool_cannot_make_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_qt(env: str) -> None:
        raise ImportError("it requires the system Qt 5 runtime")

    monkeypatch.setattr(envpool, "make_spec", needs_qt)
    problem = str(env_problem("envpool:CartPole-v1"))
    assert problem == "EnvPool cannot make 'CartPole-v1' here: it requires the system Qt 5 runtime"


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problem = str(env_problem("envpool:CartPole-v1"))
    assert 'pip install "rllib-weighted[envpool]"' in problem


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"env_seeding": "fixed"}, '`env_seeding` should be "stream" with EnvPool'),
        ({"gym_env_vectorize_mode": "async"}, '`gym_env_vectorize_mode` should be "sync"'),
        ({"env_backend": "envpol"}, "did you mean 'envpool'"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_starts(
    settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        config(**settings).validate()
