"""LunarLander-v3 to a mean return of 200, merged from eight workers by their rewards.

Shows `ScaleRewards`: the learner sees returns of about 10 in place of 200; metrics, the stop
criterion and the merge's signals keep the plain ones.

Run it with `rllib train file tuned_examples/lunarlander.py`, or as a script; `--set seed=1` takes
another seed. Two env-runner processes with four environments each, and the learner in the trial's
own process: together they count as 2 CPUs.

The stop criterion is the mean over the last 100 training episodes of the exploring policy. (RLlib's
own `env_runners/episode_return_mean` has only the last round's.) Measured up to it with Ray 2.60.0,
torch 2.13.0 and Python 3.11, on a 2-core machine that had other work besides, so that the minutes
are an upper bound; start-up not counted:

    seed 1     393,342 steps    2.1 minutes   return 214.2
    seed 2     368,755 steps    0.9 minutes   return 210.8
    seed 3     450,709 steps    0.8 minutes   return 218.2
"""

from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import ScaleRewards, WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("LunarLander-v3")
    .env_runners(num_env_runners=2, num_envs_per_env_runner=4, num_cpus_per_env_runner=0.5)
    .training(
        merge_strategy="reward_weighted",
        merge_unit="env",
        train_batch_size=8192,
        minibatch_size=256,
        num_epochs=6,
        lr=5e-4,
        gamma=0.999,
        lambda_=0.98,
        clip_param=0.2,
        entropy_coeff=0.01,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
        learner_connector=lambda observation_space, action_space: ScaleRewards(0.05),
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 200.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
