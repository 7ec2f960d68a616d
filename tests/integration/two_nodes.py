"""A script: the same training within one process and over two nodes; see `test_two_nodes.py`.

A cluster of several nodes in the test process would be in the way of the Ray that all tests share.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_weighted import WeightedPPO, WeightedPPOConfig


def make_config(strategy: str) -> WeightedPPOConfig:
    return (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=2,
            num_cpus_per_env_runner=0.5,
            batch_mode="complete_episodes",
        )
        .training(
            merge_strategy=strategy,
            merge_unit="env",
            train_batch_size=160,
            minibatch_size=40,
            num_epochs=2,
            lr=1e-3,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=5)
    )


def node_of(actor: Any) -> str:
    return ray.get_runtime_context().get_node_id()


def train(config: WeightedPPOConfig) -> tuple[np.ndarray, list[set[str]]]:
    """Three rounds; returns the parameters, and the nodes of env runners and learners."""
    algorithm: WeightedPPO = config.build_algo()
    for _ in range(3):
        algorithm.train()
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    runners = algorithm.env_runner_group.foreach_env_runner(node_of, local_env_runner=False)
    learners = [r.get() for r in algorithm.learner_group.foreach_learner(node_of)]
    algorithm.stop()
    return np.concatenate([np.ravel(v) for v in state.values()]), [set(runners), set(learners)]


def main() -> None:
    slots = {"runner_slot": 1, "learner_slot": 1}  # One of each per node.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "resources": slots, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=2, resources=slots)
    ray.init(address=cluster.address, log_to_driver=False)
    found = {}
    for strategy in sys.argv[1:]:
        alone, _ = train(make_config(strategy))
        spread = make_config(strategy).learners(
            num_learners=2,
            num_cpus_per_learner=0.5,
            custom_resources_per_learner={"learner_slot": 1},
        )
        spread.env_runners(custom_resources_per_env_runner={"runner_slot": 1})
        parameters, nodes = train(spread)
        found[strategy] = {
            "error": float(np.abs(parameters - alone).max() / np.abs(alone).max()),
            "nodes": [len(names) for names in nodes],
        }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
