"""What `ci/cluster_job.sh` checks: where the package was imported from, and what a run left behind.

cluster_check.py imports              in a job: our code comes from the uploaded folder, everywhere
cluster_check.py rounds FOLDER N      the only trial of an experiment has come to round N
cluster_check.py results FOLDER [N]   results, checkpoint and history are there, all of N rounds
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

UPLOADED = "runtime_resources"  # The folder of each node into which Ray unpacks uploads.


def check_imports() -> None:
    """Fails if the driver, or a worker on any node, imports the package from elsewhere."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init()
    files = {"driver": package_file()}
    for node in ray.nodes():
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(package_file).options(scheduling_strategy=here)
        files[f"node {node['NodeID'][:8]}"] = ray.get(task.remote())
    for place, file in files.items():
        print(f"{place}: {file}")
    assert len(files) == 3, "there should be two nodes"
    assert all(UPLOADED in Path(file).parts for file in files.values())


def package_file() -> str:
    """Returns the file from which this process imports the package."""
    import rllib_weighted

    return str(rllib_weighted.__file__)


def trial_of(experiment: Path) -> Path:
    """Returns the folder of an experiment's only trial."""
    (log,) = experiment.glob("*/result.json")
    return log.parent


def rounds_of(trial: Path) -> list[int]:
    """Returns the rounds in a trial's results."""
    lines = (trial / "result.json").read_text().splitlines()
    return [json.loads(line)["training_iteration"] for line in lines]


def check_results(experiment: Path, num_rounds: int | None) -> None:
    """Fails if results, merge history and last checkpoint are not of the same rounds, from 1 on."""
    from rllib_weighted.cli.evaluate import evaluate_checkpoint
    from rllib_weighted.records import read_history

    trial = trial_of(experiment)
    rounds = rounds_of(trial)
    last = max(rounds) if num_rounds is None else num_rounds
    assert rounds == list(range(1, last + 1)), rounds
    history = read_history(str(experiment)).to_pylist()
    # One that was stopped may have begun another round, which it forgets when it is resumed.
    assert [(row["round"], row["worker"]) for row in history if row["round"] <= last] == [
        (round_, worker) for round_ in rounds for worker in range(8)
    ]
    assert not any(row["dropped"] for row in history)
    checkpoints = sorted(trial.glob("checkpoint_*"))
    assert round_of(checkpoints[-1]) == last
    played = evaluate_checkpoint(checkpoints[-1], episodes=1)
    print(f"{last} rounds, {len(checkpoints)} checkpoints, one played: {played.return_mean:g}")


def round_of(checkpoint: Path) -> int:
    """Returns the round after which a checkpoint was written."""
    import ray.cloudpickle as pickle

    state = pickle.loads((checkpoint / "algorithm_state.pkl").read_bytes())
    return int(state["training_iteration"])


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "imports":
        check_imports()
    elif command == "rounds":
        sys.exit(max(rounds_of(trial_of(Path(arguments[0])))) < int(arguments[1]))
    else:
        check_results(Path(arguments[0]), int(arguments[1]) if arguments[1:] else None)
