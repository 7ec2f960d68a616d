"""Hours of short rounds: nothing may grow. Run as `python -m tests.chaos.soak`, or `make soak`.

After `--warm-up` minutes and at the end, memory and descriptors of the driver, the env runners and
the learners, and what lies in the object store, are compared: medians over `WINDOW` of the run.
Memory is that of a process's own (resident, without what it shares): the object store's pages
count in every process that has ever read them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

import psutil  # Ray brings it along, and makes it importable. isort: skip

from rllib_weighted import WeightedPPO, WeightedPPOConfig

GROWTH = 0.01  # What may be added between the two comparisons.
FEW_DESCRIPTORS = 2  # One more of a hundred is more than that share: a connection that comes back.
WINDOW = 0.05
SAVE_EVERY = 1000  # Rounds.
Sample = dict[str, float]


def make_config(seed: int) -> WeightedPPOConfig:
    """Two env runners and two learners, and rounds of some ten milliseconds."""
    config: WeightedPPOConfig = (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5)
        .learners(num_learners=2, num_cpus_per_learner=0.5)
        .training(merge_unit="env", train_batch_size=64, minibatch_size=32, num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=seed)
    )
    return config


def processes(algorithm: WeightedPPO) -> dict[str, psutil.Process]:
    """Returns the processes of an algorithm by name."""
    runners = algorithm.env_runner_group.foreach_env_runner(
        lambda _: os.getpid(), local_env_runner=False
    )
    learners = [answer.get() for answer in algorithm.learner_group.foreach_learner(own_pid)]
    pids = {"driver": os.getpid()}
    pids |= {f"env runner {k}": pid for k, pid in enumerate(runners, 1)}
    pids |= {f"learner {k}": pid for k, pid in enumerate(learners, 1)}
    return {name: psutil.Process(pid) for name, pid in pids.items()}


def own_pid(_: Any) -> int:
    return os.getpid()


def object_store_bytes() -> float:
    """Returns how many bytes lie in the object store of this machine."""
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    stats = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    )
    return float(stats.store_stats.object_store_bytes_used)


def measured(watched: dict[str, psutil.Process]) -> Sample:
    """Returns figure -> value: of each process, and of the object store."""
    found = {"object store, bytes": object_store_bytes()}
    for name, process in watched.items():
        memory = process.memory_info()
        found[f"{name}, own memory, MB"] = (memory.rss - memory.shared) / 1e6
        found[f"{name}, resident memory, MB"] = memory.rss / 1e6
        found[f"{name}, descriptors"] = float(process.num_fds())
        found[f"{name}, threads"] = float(process.num_threads())
    return found


def watch(algorithm: WeightedPPO, minutes: float, every_s: float) -> Iterator[tuple[float, Sample]]:
    """Trains for so long; yields minutes since the start and what was measured then."""
    watched = processes(algorithm)
    began = due = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        while (now := time.monotonic()) - began < 60 * minutes:
            algorithm.train()
            if algorithm.rounds_done % SAVE_EVERY == 0:
                algorithm.save_to_path(folder)
            if now >= due:
                due += every_s
                rounds = {"rounds": float(algorithm.rounds_done)}
                yield (now - began) / 60, rounds | measured(watched)


def windows(
    samples: list[tuple[float, Sample]], warm_up: float
) -> tuple[list[Sample], list[Sample]]:
    """Returns what was measured after the warm-up, and at the end."""
    length = WINDOW * samples[-1][0]
    first = [sample for minute, sample in samples if warm_up <= minute <= warm_up + length]
    last = [sample for minute, sample in samples if minute >= samples[-1][0] - length]
    return first, last


def growth(first: list[Sample], last: list[Sample]) -> dict[str, tuple[float, float, bool]]:
    """Returns figure -> what it was, what it is, and whether it has grown too much."""
    found = {}
    for figure in first[0]:
        was, now = (statistics.median(s[figure] for s in window) for window in (first, last))
        slack = GROWTH * was
        if figure.endswith(("descriptors", "threads")):
            slack = max(slack, FEW_DESCRIPTORS)
        if figure.startswith("object store"):
            slack = max(slack, 2**20)  # What is under way at that moment.
        is_judged = figure != "rounds" and "resident" not in figure
        found[figure] = was, now, is_judged and now - was > slack
    return found


def report(compared: dict[str, tuple[float, float, bool]]) -> str:
    """Returns a table of the figures."""
    lines = [f"{'':34} {'after warm-up':>14} {'at the end':>14} {'change':>8}"]
    for figure, (was, now, grows) in compared.items():
        change = f"{(now - was) / was:+.1%}" if was else f"{now - was:+g}"
        lines.append(f"{figure:34} {was:14,.1f} {now:14,.1f} {change:>8}{'  GROWS' * grows}")
    return "\n".join(lines)


def main(
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 120.0,
    warm_up: Annotated[float, typer.Option(help="Minutes before the first comparison.")] = 10.0,
    every: Annotated[float, typer.Option(help="Seconds between two measurements.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 1,
    samples: Annotated[Path | None, typer.Option(help="Writes all there, as JSON lines.")] = None,
) -> None:
    """Trains short rounds for hours, and fails if something has grown meanwhile."""
    if warm_up >= minutes * (1 - WINDOW):
        raise typer.BadParameter(f"--warm-up {warm_up:g} is not well below --minutes {minutes:g}")
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 * 2**20,
    )
    algorithm = make_config(seed).build_algo()
    taken: list[tuple[float, Sample]] = []
    for minute, sample in watch(algorithm, minutes, every):
        taken.append((minute, sample))
        if samples is not None:
            with samples.open("a") as stream:
                stream.write(json.dumps({"minute": minute, **sample}) + "\n")
    algorithm.stop()
    ray.shutdown()
    compared = growth(*windows(taken, warm_up))
    print(f"{taken[-1][0]:.0f} minutes, {taken[-1][1]['rounds']:,.0f} rounds\n{report(compared)}")
    sys.exit(any(grows for _, _, grows in compared.values()))


if __name__ == "__main__":
    typer.run(main)
