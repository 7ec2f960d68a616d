"""LunarLander-v3 to a mean return of 200 with a network of a million parameters.

What `lunarlander.py` does, with layers of 1024 and 1024 in place of 64 and 64 and smaller steps.

Run it with `rllib train file tuned_examples/lunarlander_large.py`, or as a script; `--set seed=1`
takes another seed. It samples and learns in a single process.

The stop criterion is the mean over the last 100 training episodes of the exploring policy. Measured
up to it with Ray 2.60.0, torch 2.13.0 and Python 3.11, on a 2-core machine that some thirty other
processes used as well, so that the minutes are an upper bound; start-up not counted. One seed:

    seed 1     442,551 steps   41.7 minutes   return 203.6
"""

from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import ScaleRewards, WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("LunarLander-v3")
    .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
    .training(
        merge_strategy="reward_weighted",
        merge_unit="env",
        train_batch_size=8192,
        minibatch_size=512,
        num_epochs=6,
        lr=2e-4,
        gamma=0.999,
        lambda_=0.98,
        clip_param=0.2,
        entropy_coeff=0.01,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    .learners(
        learner_connector=lambda observation_space, action_space: ScaleRewards(0.05),
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[1024, 1024]))
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 200.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
