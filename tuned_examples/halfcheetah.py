"""HalfCheetah-v4 to a mean return of 3000 on EnvPool, merged from eight workers by their rewards.

Shows `CautiousPPOCatalog`, whose policies start with small movements: from RLlib's own start the
same settings came to 1,777 in 1,003,520 steps (seed 1). It needs the extra `envpool`.

Run it with `rllib train file tuned_examples/halfcheetah.py`, or as a script; `--set seed=1` takes
another seed. It samples and learns in a single process.

The stop criterion is the mean over the last 100 training episodes of the exploring policy, or a
million steps. Measured up to it with Ray 2.60.0, torch 2.13.0 and Python 3.11, on a 2-core machine
that some thirty other processes used as well, so that the minutes are an upper bound; start-up not
counted. One seed:

    seed 1     520,192 steps   10.8 minutes   return 3,010
"""

from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import CautiousPPOCatalog, ScaleRewards, WeightedPPOConfig

config = (
    WeightedPPOConfig()
    .environment("envpool:HalfCheetah-v4")
    .env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=8,
        env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
    )
    .training(
        merge_strategy="reward_weighted",
        merge_unit="env",
        train_batch_size=4096,
        minibatch_size=128,
        num_epochs=10,
        lr=[[0, 3e-4], [1_000_000, 3e-5]],
        gamma=0.98,
        lambda_=0.92,
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
    .rl_module(
        rl_module_spec=RLModuleSpec(
            catalog_class=CautiousPPOCatalog,
            model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], free_log_std=True),
        )
    )
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 3000.0, "num_env_steps_sampled_lifetime": 1_000_000}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
