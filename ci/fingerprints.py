"""Prints a hash of the parameters after each of three rounds, for every strategy and several paths.

    python ci/fingerprints.py > before.txt      # on the commit before a change
    python ci/fingerprints.py | diff before.txt -

A change that should not change results leaves every line as it is. The hashes hold for one machine
and one set of versions: another processor or PyTorch rounds differently. An argument selects the
runs whose name contains it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from typing import Any

import numpy as np
import ray
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import ScaleRewards, WeightedPPO, WeightedPPOConfig

STRATEGIES = ("average", "sum", "reward_weighted", "loss_weighted", "actor_average", "actor_sum")
ENVIRONMENTS = ("CartPole-v1", "BipedalWalker-v3")
ROUNDS = 3

# Name -> what differs from the plain run of `reward_weighted`.
VARIANTS: dict[str, dict[str, Any]] = {
    "low, softmax, normalised": {
        "strategy": "loss_weighted",
        "options": {"direction": "low", "transform": "softmax", "normalize": True},
    },
    "policy loss of the round": {
        "strategy": "loss_weighted",
        "options": {"loss": "policy", "scope": "round"},
    },
    "random shares": {"options": {"transform": "random"}},
    "min_weight 0, top_k": {"options": {"transform": "top_k", "top_k": 2}, "min_weight": 0.0},
    "batch normalisation": {"training": {"advantage_normalization": "batch"}},
    "KL loss, entropy, clip by norm": {
        "training": {"use_kl_loss": True, "entropy_coeff": 0.01, "grad_clip_by": "norm"}
    },
    "clip by value": {"training": {"grad_clip_by": "value", "grad_clip": 0.001}},
    "autograd": {"learners": {"fast_learner": False}},
    "autograd, actor_average": {"strategy": "actor_average", "learners": {"fast_learner": False}},
    "episodes": {"env_runners": {"fast_sampling": False}},
    "complete episodes": {"env_runners": {"batch_mode": "complete_episodes"}},
    "fixed seeds": {"env_runners": {"env_seeding": "fixed"}},
    "filter": {"env_runners": {"env_to_module_connector": lambda *args: MeanStdFilter()}},
    "scaled rewards": {"training": {"learner_connector": lambda *args: ScaleRewards(0.1)}},
    "env runners as workers": {"unit": "env_runner", "env_runners": {"num_env_runners": 2}},
    "two env runners, two learners": {
        "env_runners": {"num_env_runners": 2, "num_envs_per_env_runner": 2},
        "learners": {"num_learners": 2},
    },
    "actor_average, two learners": {
        "strategy": "actor_average",
        "env_runners": {"num_env_runners": 2, "num_envs_per_env_runner": 2},
        "learners": {"num_learners": 2},
    },
    "LSTM": {"model": {"use_lstm": True, "max_seq_len": 8, "lstm_cell_size": 16}},
}


def make_config(
    environment: str,
    strategy: str = "reward_weighted",
    *,
    unit: str = "env",
    options: dict[str, Any] | None = None,
    min_weight: float | None = None,
    env_runners: dict[str, Any] | None = None,
    learners: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> WeightedPPOConfig:
    """A small config with four workers in one process, if nothing else is said."""
    return (
        WeightedPPOConfig()
        .environment(environment)
        .env_runners(**{"num_env_runners": 0, "num_envs_per_env_runner": 4, **(env_runners or {})})
        .learners(**(learners or {}))
        .training(
            **{
                "merge_strategy": strategy,
                "merge_options": options or {},
                "min_weight": min_weight,
                "merge_unit": unit,
                "train_batch_size": 512,
                "minibatch_size": 128,
                "num_epochs": 3,
                "lr": 1e-3,
                "use_kl_loss": False,
                "vf_clip_param": 1e4,
                "grad_clip": 0.5,
                "grad_clip_by": "global_norm",
                **(training or {}),
            }
        )
        .rl_module(model_config=DefaultModelConfig(**{"fcnet_hiddens": [32, 32], **(model or {})}))
        .debugging(seed=7)
    )


def parameters(algorithm: WeightedPPO) -> dict[str, np.ndarray]:
    """All parameters by name: those of the policy, and the workers' own where they have some."""
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    own = algorithm.learner_group.per_worker_parameters() or {}
    return {**state, **{f"own {name}": array for name, array in own.items()}}


def digest(algorithm: WeightedPPO, result: dict[str, Any]) -> str:
    """Hash of the parameters and of the merge's metrics."""
    found = hashlib.sha256()
    for name, array in sorted(parameters(algorithm).items()):
        found.update(name.encode() + np.ascontiguousarray(array).tobytes())
    merge = json.dumps(result["merge"], sort_keys=True, default=float)
    return f"{found.hexdigest()[:16]} {hashlib.sha256(merge.encode()).hexdigest()[:8]}"


def fingerprint(config: WeightedPPOConfig) -> str:
    """The digests after each round, on one line."""
    algorithm = config.build_algo()
    try:
        return "  ".join(digest(algorithm, algorithm.train()) for _ in range(ROUNDS))
    finally:
        algorithm.stop()


def main() -> None:
    """Prints a line per run."""
    logging.getLogger("rllib_weighted").setLevel(logging.ERROR)
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False, configure_logging=False)
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for environment in ENVIRONMENTS:
        plain = {strategy: {"strategy": strategy} for strategy in STRATEGIES}
        for name, settings in {**plain, **VARIANTS}.items():
            if only in name:
                line = fingerprint(make_config(environment, **settings))
                print(f"{environment:17} {name:32} {line}", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
