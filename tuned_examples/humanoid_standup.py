"""HumanoidStandup-v4 to a mean return of 110,000 on EnvPool, merged from eight workers by rewards.

Shows rewards of about a hundred a step, scaled for the learner alone (`ScaleRewards`): what is
reported is in the environment's unit. It needs the extra `envpool`.

Run it with `rllib train file tuned_examples/humanoid_standup.py`, or as a script; `--set seed=1`
takes another seed. It samples and learns in a single process.

The stop criterion is the mean over the last 100 training episodes of the exploring policy. Measured
up to it with Ray 2.60.0, torch 2.13.0 and Python 3.11 on one core of a 2-core machine, whose other
core another training used; start-up not counted:

    seed 1     172,032 steps   3.9 minutes   return 112,785
    seed 2     393,216 steps   9.5 minutes   return 111,371
    seed 3     274,432 steps   4.7 minutes   return 112,934

The greedy policies of seeds 1 and 3 then come to 132,000 and 146,000 in gymnasium's
HumanoidStandup-v4, means of five episodes.
"""

from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import ScaleRewards, WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("envpool:HumanoidStandup-v4")
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
        lr=3e-4,
        gamma=0.99,
        lambda_=0.92,
        clip_param=0.2,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    .learners(
        learner_connector=lambda observation_space, action_space: ScaleRewards(0.001),
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], free_log_std=True))
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 110_000.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
