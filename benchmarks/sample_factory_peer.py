"""Sample Factory's APPO with the settings of all contenders; prints "STEPS n" after each round.

    PYTHON benchmarks/sample_factory_peer.py ENVIRONMENT NUM_ENVS BATCH MINIBATCH EPOCHS FOLDER

Runs with a Python of its own: Sample Factory 2.1 wants gymnasium below 1.0, which this package does
not run with. Two workers of half the environments each sample while it learns, as is its way.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner


class Reporter(AlgoObserver):
    """Says how many steps have been learned from."""

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        """Prints a line."""
        print(f"STEPS {sum(runner.env_steps.values())}", flush=True)


def make(full_env_name: str, cfg: Any = None, env_config: Any = None, render_mode: Any = None):
    """Returns gymnasium's environment."""
    return gym.make(full_env_name, render_mode=render_mode)


def arguments(
    environment: str, num_envs: int, batch: int, minibatch: int, epochs: int, folder: str
) -> list[str]:
    """Returns Sample Factory's options."""
    num_workers = 2
    options = {
        "algo": "APPO",
        "env": environment,
        "experiment": "peer",
        "train_dir": folder,
        "device": "cpu",
        "num_workers": num_workers,
        "num_envs_per_worker": num_envs // num_workers,
        "worker_num_splits": 2,
        "rollout": batch // num_envs,
        "recurrence": 1,
        "batch_size": minibatch,
        "num_batches_per_epoch": batch // minibatch,
        "num_epochs": epochs,
        "use_rnn": False,
        "encoder_mlp_layers": [64, 64],
        "nonlinearity": "tanh",
        "actor_critic_share_weights": False,
        "normalize_input": False,
        "learning_rate": 3e-4,
        "ppo_clip_ratio": 0.2,
        "max_grad_norm": 0.5,
        "value_loss_coeff": 0.5,
        "exploration_loss_coeff": 0.0,
        "adaptive_stddev": False,
        "train_for_env_steps": 10**9,
        "seed": 0,
    }
    return [
        text
        for key, value in options.items()
        for text in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]


def main() -> None:
    """Trains until it is killed."""
    environment, *numbers, folder = sys.argv[1:]
    register_env(environment, make)
    argv = arguments(environment, *map(int, numbers), folder)
    parser, _ = parse_sf_args(argv)
    _, runner = make_runner(parse_full_cfg(parser, argv))
    runner.register_observer(Reporter())
    runner.init()
    runner.run()


if __name__ == "__main__":
    main()
