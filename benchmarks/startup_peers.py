"""What startup.py measures beside this package: stock RLlib, or its imports alone.

    python benchmarks/startup_peers.py rllib | imports

`rllib` trains what tuned_examples/cartpole.py trains, without this package; `imports` keeps two Ray
actors that have imported RLlib's env runner and do nothing. Both go on until they are stopped.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import ray  # noqa: E402


def train() -> None:
    from ray import tune
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4, num_cpus_per_env_runner=0.5)
        .training(
            train_batch_size_per_learner=1024,
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
    start_ray()
    tune.Tuner("PPO", param_space=config, run_config=tune.RunConfig(verbose=0)).fit()


def import_only() -> None:
    @ray.remote(num_cpus=0.5)
    class Imports:
        def load(self) -> None:
            import ray.rllib.env.single_agent_env_runner  # noqa: F401

    start_ray()
    actors = [Imports.remote() for _ in range(2)]
    ray.get([actor.load.remote() for actor in actors])
    trial = Path.home() / "ray_results" / "imports" / "trial"
    trial.mkdir(parents=True)
    (trial / "result.json").write_text("{}\n")  # The sign that startup.py waits for.
    while True:
        time.sleep(1)


def start_ray() -> None:
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


if __name__ == "__main__":
    import_only() if sys.argv[1] == "imports" else train()
