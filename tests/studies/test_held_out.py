import gymnasium as gym
import numpy as np
import torch

from studies.held_out import greedy_returns


class Countdown(gym.Env):
    """Ends after a number of steps that the seed decides; pays the action."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, action_space):
        self.action_space = action_space
        self.seeds, self.closed = [], False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.left = 1 + seed // 2 % 3
        return np.full(1, 0.5, np.float32), {}

    def step(self, action):
        assert self.left > 0, "stepped after its end"
        self.left -= 1
        return np.full(1, 0.5, np.float32), float(np.sum(action)), self.left == 0, False, {}

    def close(self):
        self.closed = True


class Module:
    """Wants the second of three discrete actions; or the mean 0.5 of [-2, 2]."""

    def __init__(self, outputs):
        self.outputs, self.seen = outputs, []

    def forward_inference(self, batch):
        self.seen.append(batch["obs"].numpy())
        return {"action_dist_inputs": torch.tensor([self.outputs] * len(batch["obs"]))}


def test_every_environment_plays_one_episode_greedily_on_its_own_odd_seed():
    environments = [Countdown(gym.spaces.Discrete(3)) for _ in range(3)]
    returns = greedy_returns(Module([0.0, 2.0, 1.0]), environments)
    seeds = [env.seeds for env in environments]
    assert [len(found) for found in seeds] == [1, 1, 1]
    assert all(found[0] % 2 == 1 for found in seeds)  # Training's are even.
    assert returns == [1.0 + found[0] // 2 % 3 for found in seeds]
    assert all(env.closed for env in environments)


def test_continuous_actions_are_the_means_in_the_units_of_the_space():
    environments = [Countdown(gym.spaces.Box(-2.0, 2.0, (1,)))]
    steps = 1 + (2**30 + 1) // 2 % 3
    assert greedy_returns(Module([0.5, -1.0]), environments) == [1.0 * steps]


def test_the_policy_sees_filtered_observations():
    module = Module([0.0, 1.0, 0.0])
    greedy_returns(module, [Countdown(gym.spaces.Discrete(3))], lambda rows: rows * 4.0)
    assert module.seen[0].tolist() == [[2.0]]
