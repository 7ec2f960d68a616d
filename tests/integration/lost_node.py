"""A cluster that loses a node in the middle of a round; run as a process of its own.

    python -m tests.integration.lost_node SCENARIO FOLDER

It prints what it saw as JSON, in its last line. A cluster cannot live beside `ray_session`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.cluster_utils import Cluster

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.records import read_history
from tests.sampling.envs import ScriptedEnv, written

PATIENCE_S = 120.0
THREAD = ThreadPoolExecutor(1)  # Trains; Ray's nodes want to be started in the main thread.


class PlacedEnv(ScriptedEnv):
    """Writes down on which node it is."""

    def __init__(self, context: Any = None) -> None:
        super().__init__(context)
        self._write("nodes", ray.get_runtime_context().get_node_id())


@contextlib.contextmanager
def cluster_of(head_cpus: int, second_cpus: int) -> Iterator[tuple[Cluster, Any]]:
    """A head and a second node, and this process as its driver."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(num_cpus=second_cpus)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def scripted(folder: Path, *, num_env_runners: int) -> WeightedPPOConfig:
    """Each env runner samples 20 steps in a round, four episodes in each of two environments."""
    config: WeightedPPOConfig = (
        WeightedPPOConfig()
        .environment(PlacedEnv, env_config={"folder": str(folder)})
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=2)
        .training(
            merge_unit="env", train_batch_size=20 * num_env_runners, minibatch_size=12, num_epochs=1
        )
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=1)
    )
    return config


def runners_on(node: Any, folder: Path) -> list[int]:
    """The env runners whose newest process is on a node."""
    places = written(folder, "nodes")
    return sorted({worker for (worker, _), ids in places.items() if ids[-1] == node.node_id})


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def lose(cluster: Cluster, node: Any, folder: Path, *, gracefully: bool) -> list[int]:
    """Removes a node while its env runners are in the middle of a round; returns these."""
    lost = runners_on(node, folder)
    for index in lost:
        (folder / f"block-{index}").touch()
    time.sleep(1)
    cluster.remove_node(node, allow_graceful=gracefully)
    for index in lost:
        (folder / f"block-{index}").unlink()
    return lost


def watched(algorithm: WeightedPPO) -> dict[str, Any]:
    """Trains a round; returns what it says of workers, and how long it took."""
    started = time.monotonic()
    result = algorithm.train()
    return {
        "round": algorithm.training_iteration,
        "num_dropped": result["merge"]["num_dropped"],
        "steps": result["env_runners"].get("num_env_steps_sampled", 0),
        "seconds": time.monotonic() - started,
        "num_resets": {
            str(k): v for k, v in algorithm.get_state()["weighted_ppo"]["num_resets"].items()
        },
    }


def lose_some(folder: Path, *, gracefully: bool) -> dict[str, Any]:
    """Two of three env runners are on the head; the third's node goes, and another one comes."""
    with cluster_of(2, 1) as (cluster, second):
        algorithm = scripted(folder, num_env_runners=3).build_algo()
        before = [watched(algorithm) for _ in range(2)]
        halved = THREAD.submit(watched, algorithm)
        lost = lose(cluster, second, folder, gracefully=gracefully)
        during = [halved.result(), *(watched(algorithm) for _ in range(5))]
        third = cluster.add_node(num_cpus=1)
        deadline = time.monotonic() + PATIENCE_S
        after = [watched(algorithm)]
        while after[-1]["num_dropped"] and time.monotonic() < deadline:
            time.sleep(0.2)
            after.append(watched(algorithm))
        after.append(watched(algorithm))
        on_third = runners_on(third, folder)
        algorithm.stop()
        return {
            "lost": lost,
            "on_third": on_third,
            "before": before,
            "during": during,
            "back": after[-2:],
            "history": read_history(algorithm.logdir).to_pylist(),
        }


def lose_all(folder: Path) -> dict[str, Any]:
    """The head has no CPU for env runners; the only node that has goes, and another one comes."""
    with cluster_of(0, 2) as (cluster, second):
        algorithm = scripted(folder, num_env_runners=2).build_algo()
        before = watched(algorithm)
        empty = THREAD.submit(watched, algorithm)
        lose(cluster, second, folder, gracefully=False)
        during = empty.result()
        waiting = THREAD.submit(watched, algorithm)
        cluster.add_node(num_cpus=2)
        after = waiting.result()
        algorithm.stop()
        return {"before": before, "during": during, "after": after}


def lose_in_a_trial(folder: Path) -> dict[str, Any]:
    """The algorithm is a trial on the head; one env runner's bundle of its placement group goes."""
    seen = {"dropped": False}

    def is_back(trial_id: str, result: dict[str, Any]) -> bool:
        seen["dropped"] |= result["merge"]["num_dropped"] > 0
        return seen["dropped"] and result["merge"]["num_dropped"] == 0

    with cluster_of(3, 1) as (cluster, second):
        tuner = tune.Tuner(
            WeightedPPO,
            param_space=scripted(folder, num_env_runners=2).resources(num_cpus_for_main_process=2),
            run_config=tune.RunConfig(
                storage_path=str(folder / "results"), stop=is_back, verbose=0
            ),
        )
        fitted = THREAD.submit(tuner.fit)
        wait_until(lambda: len(list(folder.glob("seeds-*-1-*.jsonl"))) == 2)
        lost = lose(cluster, second, folder, gracefully=False)
        third = cluster.add_node(num_cpus=1)
        results = fitted.result()
        return {
            "lost": lost,
            "on_third": runners_on(third, folder),
            "errors": [str(error) for error in results.errors],
            "history": read_history(str(folder / "results")).to_pylist(),
        }


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "killed": lambda folder: lose_some(folder, gracefully=False),
    "removed": lambda folder: lose_some(folder, gracefully=True),
    "all": lose_all,
    "trial": lose_in_a_trial,
}


def main() -> None:
    """Runs a scenario in a Ray that shares nothing with another one on this machine."""
    name, folder = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="lost-", ignore_cleanup_errors=True) as scratch:
        os.environ["RAY_TMPDIR"] = scratch
        saw = SCENARIOS[name](Path(folder))
    print(json.dumps(saw, default=float))


if __name__ == "__main__":
    main()
