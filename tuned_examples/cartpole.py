"""CartPole-v1 to a mean return of 475, merged from eight workers by their rewards.

The smallest complete example: returns differ much between workers while they learn (an episode
that falls early against one that balances to the end), so the weights have something to work on.

Run it with `rllib train file tuned_examples/cartpole.py`, or as a script; `--set seed=1` takes
another seed. Two env-runner processes with four environments each, and the learner in the trial's
own process: together they count as 2 CPUs.

The stop criterion is the mean over the last 100 training episodes of the exploring policy. (RLlib's
own `env_runners/episode_return_mean` has only the last round's.) Measured up to it with Ray 2.60.0,
torch 2.13.0 and Python 3.11, on a 2-core machine that had other work besides, so that the minutes
are an upper bound; start-up not counted:

    seed 1     140,733 steps    0.4 minutes   return 475.6
    seed 2     146,890 steps    0.8 minutes   return 476.0
    seed 3     210,523 steps    1.2 minutes   return 481.7
"""

from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=2, num_envs_per_env_runner=4, num_cpus_per_env_runner=0.5)
    .training(
        merge_strategy="reward_weighted",
        merge_unit="env",
        train_batch_size=1024,
        minibatch_size=256,
        num_epochs=10,
        lr=[[0, 1e-3], [150_000, 1e-4]],
        gamma=0.98,
        lambda_=0.9,
        clip_param=0.2,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 475.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
