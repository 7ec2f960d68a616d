"""HumanoidStandup-v4 to a mean return of 110,000 on EnvPool, merged by rewards.

It needs the extra `envpool`.
"""

from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import CautiousPPOCatalog, ScaleRewards, WeightedPPOConfig

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
        learner_connector=lambda observation_space, action_space: ScaleRewards(0.001),
    )
    .rl_module(
        rl_module_spec=RLModuleSpec(
            catalog_class=CautiousPPOCatalog,
            model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], free_log_std=True),
        )
    )
    .debugging(seed=0)
)

stop = {"merge/episode_return_mean": 110_000.0}

if __name__ == "__main__":
    from rllib_weighted.cli import train_file_main

    train_file_main(__file__)
