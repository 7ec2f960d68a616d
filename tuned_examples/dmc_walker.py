"""walker-walk of DeepMind Control, through Shimmy, to a mean return of 600.

Shows an environment whose observations are a dict, and a wrapper that repeats actions: a step is
one decision, two steps of DeepMind Control. It needs the extra `dmc`; without a screen, set
`MUJOCO_GL=disabled`.

Run it with `rllib train file tuned_examples/dmc_walker.py`, or as a script; `--set seed=1` takes
another seed. It samples and learns in a single process.

The stop criterion is the mean over the last 100 training episodes of the exploring policy. Measured
up to it with Ray 2.60.0, torch 2.13.0 and Python 3.11, on a 2-core machine that other trainings
used as well, so that the minutes are an upper bound; start-up not counted:

    seed 1     311,296 steps    8.1 minutes   return 600.1
    seed 2     417,792 steps   13.4 minutes   return 604.2
    seed 3     405,504 steps   15.3 minutes   return 603.0
"""

from typing import Any

import gymnasium as gym
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune import register_env

from rllib_weighted import ScaleRewards, WeightedPPOConfig


class RepeatedActions(gym.Wrapper):
    """Takes every action twice."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns what the last of both steps did, and the sum of their rewards."""
        total = 0.0
        for _ in range(2):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def make_walker(env_config: dict) -> gym.Env:
    """Returns the environment, its dict of observations as one row of 24 numbers."""
    env = gym.make("shimmy:dm_control/walker-walk-v0", **env_config)
    return RepeatedActions(gym.wrappers.FlattenObservation(env))


register_env("walker-walk", make_walker)

config = (
    WeightedPPOConfig()
    .environment("walker-walk")
    .env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=8,
        env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
    )
    .training(
        merge_strategy="reward_weighted",
        merge_unit="env",
        train_batch_size=4096,
        minibatch_size=256,
        num_epochs=10,
        lr=[[0, 3e-4], [4_000_000, 5e-5]],
        gamma=0.99,
        lambda_=0.95,
        clip_param=0.2,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    .learners(
        learner_connector=lambda observation_space, action_space: ScaleRewards(0.1),
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[256, 256], free_log_std=True))
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 600.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
