"""Pong on EnvPool to a mean return of 15, a convolutional network on four 42 x 42 frames.

Shows images that stay bytes until the network reads them (`observation_scale`), in frames half as
wide and high as usual, and advantages that are normalised over the batch: points are rare, and
workers that have seen none are not to count as much as those that have. It needs the extra
`envpool`.

Run it with `rllib train file tuned_examples/pong.py`, or as a script; `--set seed=1` takes
another seed. It samples and learns in a single process, with two cores; on a single one, add
`--set num_cpus_for_main_process=1`.

The stop criterion is the mean over the last 100 training episodes of the exploring policy. Measured
up to it with Ray 2.60.0, torch 2.13.0 and Python 3.11, on a 2-core machine that other programs used
as well in the first minutes; the policy sampled with one thread there. Start-up not counted. One
seed:

    seed 1   3,473,075 steps   61.8 minutes   return 15.0
"""

from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("envpool:Pong-v5", env_config={"img_height": 42, "img_width": 42})
    .env_runners(num_env_runners=0, num_envs_per_env_runner=16)
    .training(
        merge_strategy="average",
        merge_unit="env",
        advantage_normalization="batch",
        train_batch_size=2048,
        minibatch_size=256,
        num_epochs=4,
        lr=[[0, 5e-4], [4_000_000, 1e-4]],
        gamma=0.99,
        lambda_=0.95,
        clip_param=0.1,
        entropy_coeff=0.01,
        vf_clip_param=1e4,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    .rl_module(
        model_config=DefaultModelConfig(
            conv_filters=[[16, 6, 3], [32, 4, 2], [32, 4, 2]],
            conv_activation="relu",
            head_fcnet_hiddens=[128],
            head_fcnet_activation="relu",
            vf_share_layers=True,
        ),
        observation_scale=1 / 255,
    )
    .resources(num_cpus_for_main_process=2)
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 15.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
