import gymnasium as gym
import numpy as np
import pytest

from studies import envs


def test_a_stronger_engine_goes_faster_and_only_the_goal_pays():
    speeds = []
    for force in (0.001, 0.003):
        env = envs.sparse_mountain_car(force)
        env.reset(seed=1)
        obs, reward, *_ = env.step(2)
        speeds.append(obs[1])
        assert reward == 0.0
    assert speeds[1] - speeds[0] == pytest.approx(0.002, abs=1e-6)
    env.reset(seed=1)
    obs, rewards, over = env.reset(seed=1)[0], [], False
    while not over:  # With the motion: the strong engine is soon at the top.
        obs, reward, ended, cut, info = env.step(2 if obs[1] >= 0 else 0)
        rewards.append(reward)
        over = ended or cut
    assert rewards[-1] == 1.0
    assert sum(rewards) == 1.0
    assert info["is_success"] is True


def play(env):
    """Returns what is seen and earned in eight steps from one seed."""
    first, _ = env.reset(seed=5)
    steps = [env.step(index % 2) for index in range(8)]
    return [first, *(step[0] for step in steps)], [step[1] for step in steps]


@pytest.mark.parametrize(
    ("create", "env_id"),
    [(envs.noisy_cart_pole, "CartPole-v1"), (envs.noisy_lunar_lander, "LunarLander-v3")],
)
def test_noise_is_on_the_rewards_only_and_the_same_for_a_seed(create, env_id):
    noisy, plain = create(2.0), create()
    seen, rewards = play(noisy)
    again, same = play(noisy)
    clean, true = play(plain)
    assert true == play(gym.make(env_id))[1]
    assert rewards == same
    assert 0.5 < np.std(np.subtract(rewards, true)) < 4
    np.testing.assert_array_equal(seen, clean)
    np.testing.assert_array_equal(seen, again)


def test_noise_is_on_the_sensors_only_and_the_same_for_a_seed():
    seen, rewards = play(envs.noisy_sensors_cart_pole(0.3))
    again, _ = play(envs.noisy_sensors_cart_pole(0.3))
    clean, ones = play(envs.noisy_sensors_cart_pole())
    assert rewards == ones == [1.0] * 8
    assert seen[0].dtype == clean[0].dtype
    np.testing.assert_array_equal(seen, again)
    noise = np.subtract(seen, clean)
    assert np.abs(noise).min() > 0
    assert np.std(noise) == pytest.approx(0.3, rel=0.5)


def test_gravity_and_wind_are_set():
    lander = envs.lunar_lander(gravity=-6.0, wind=10.0).unwrapped
    assert (lander.gravity, lander.enable_wind, lander.wind_power) == (-6.0, True, 10.0)
    assert lander.turbulence_power == 1.0
    assert envs.lunar_lander().unwrapped.enable_wind is False


@pytest.mark.parametrize(
    ("env", "continuous"), [("study/LunarLander", False), ("BipedalWalker-v3", True)]
)
def test_which_actions_are_continuous(env, continuous):
    assert envs.has_continuous_actions(env) is continuous
