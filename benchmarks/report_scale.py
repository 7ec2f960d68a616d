"""Time and memory of `rllib report` on many generated trials.

    python benchmarks/report_scale.py --folder NEW [--trials 10000] [--rounds 1000] [--keep]

Each trial has what Tune and the merge history write: `params.json`, a `progress.csv` with as many
columns as a real run's, and a merge history in several files. Twenty arms: two strategies with
nine minimum weights each, and `average` and `sum`. The report runs in a process of its own;
printed is a row for a Markdown table with its wall time, its CPU time (which other work on the
machine hardly changes) and its peak resident memory. About 2.7 MB of disk per trial at 1,000 rounds
and 8 workers; the trees are removed unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rllib_weighted.records.schema import HISTORY_DIR, SCHEMA, file_name

WEIGHTS = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
ARMS = [
    ("average", None),
    ("sum", None),
    *((name, m) for name in ("reward_weighted", "loss_weighted") for m in WEIGHTS),
]
STEPS = 1024  # per round
NUM_FILLERS = 110  # columns of a real run that the report does not read
FILES_PER_TRIAL = 4


def write_trial(root: Path, number: int, num_rounds: int, num_workers: int) -> None:
    strategy, min_weight = ARMS[number % len(ARMS)]
    seed = number // len(ARMS)
    rng = np.random.default_rng([seed, number % len(ARMS)])
    trial_id = f"{number:08x}"
    folder = root / f"WeightedPPO_CartPole-v1_{trial_id}"
    folder.mkdir(parents=True)
    params = {
        "env": "CartPole-v1",
        "merge_strategy": strategy,
        "min_weight": min_weight,
        "merge_options": {},
        "merge_unit": "env",
        "num_env_runners": 2,
        "num_envs_per_env_runner": num_workers // 2,
        "seed": seed,
        **{f"setting_{index}": index for index in range(150)},
    }
    (folder / "params.json").write_text(json.dumps(params))
    speed = rng.lognormal(np.log(num_rounds / 4), 0.3)
    progress = 1 - np.exp(-np.arange(1, num_rounds + 1) / speed)
    returns = 20 + 460 * progress + rng.normal(0, 8, num_rounds)
    write_progress(folder, trial_id, returns, rng)
    write_history(folder / HISTORY_DIR, trial_id, returns, num_workers, rng)


def write_progress(
    folder: Path, trial_id: str, returns: np.ndarray, rng: np.random.Generator
) -> None:
    fillers = [f"learners/default_policy/filler_{index}" for index in range(NUM_FILLERS)]
    names = ["training_iteration", "num_env_steps_sampled_lifetime", "done", "trial_id", "hostname"]
    names += ["date", "time_total_s", *fillers, "merge/episode_return_mean"]
    values = ",".join(f"{value:.17g}" for value in rng.random(NUM_FILLERS))
    seconds = np.cumsum(rng.uniform(0.9, 1.1, returns.size))
    last = returns.size - 1
    rows = [
        f"{index + 1},{STEPS * (index + 1)}.0,{index == last},{trial_id},vm,2026-11-25_07-11-39,"
        f"{second:.12f},{values},{value:.12f}"
        for index, (second, value) in enumerate(
            zip(seconds.tolist(), returns.tolist(), strict=True)
        )
    ]
    (folder / "progress.csv").write_text("\r\n".join([",".join(names), *rows, ""]))


def write_history(
    folder: Path, trial_id: str, returns: np.ndarray, num_workers: int, rng: np.random.Generator
) -> None:
    folder.mkdir()
    num_rounds = returns.size
    shape = (num_rounds, num_workers)
    signals = np.maximum(returns[:, None] + rng.normal(0, 40, shape), 1.0)
    shares = signals / signals.sum(axis=1, keepdims=True)
    workers = np.tile(np.arange(num_workers, dtype=np.int32), num_rounds)
    rounds = np.repeat(np.arange(1, num_rounds + 1), num_workers)
    columns = {
        "trial_id": pa.DictionaryArray.from_arrays(np.zeros(rounds.size, np.int32), [trial_id]),
        "round": rounds,
        "env_steps": STEPS * rounds,
        "worker": workers,
        "env_runner": workers // 4 + 1,
        "env_index": workers % 4,
        "seed": workers.astype(np.int64) * 7919,
        "signal": signals.ravel(),
        "share": shares.ravel(),
        "weight": shares.ravel() + 1 / num_workers,
        "loss": rng.normal(size=rounds.size),
        "episode_return": signals.ravel(),
        "num_episodes": rng.integers(0, 5, rounds.size).astype(np.int32),
        "dropped": rng.random(rounds.size) < 1e-4,
        "drift": pa.nulls(rounds.size),
    }
    table = pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)
    for part in np.array_split(np.arange(1, num_rounds + 1), FILES_PER_TRIAL):
        first, last = int(part[0]), int(part[-1])
        rows = table.slice((first - 1) * num_workers, len(part) * num_workers)
        path = folder / file_name(first, last)
        pq.write_table(rows, path, compression="zstd", write_page_checksum=True)


def measure(results: Path, out: Path) -> tuple[float, float, float]:
    """Returns wall time and CPU time in seconds, and peak resident memory in GiB, of one report."""
    command = [sys.executable, "-m", "rllib_weighted.cli.main", "report", str(results)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([*command, "--threshold", "400", "--out", str(out)], check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, after.ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the trees")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the trees where they are")
    arguments = parser.parse_args()
    results = arguments.folder / "results"
    try:
        if not results.exists():
            tasks = [
                (results, number, arguments.rounds, arguments.workers)
                for number in range(arguments.trials)
            ]
            with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
                pool.starmap(write_trial, tasks, chunksize=20)
        # Generating is over: what follows is the report's own time.
        found = [measure(results, arguments.folder / "report") for _ in range(arguments.repeats)]
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)
    walls = " and ".join(f"{wall:.0f} s" for wall, _, _ in found)
    cpus = " and ".join(f"{cpu:.0f} s" for _, cpu, _ in found)
    memory = max(memory for _, _, memory in found)
    print("| trials x rounds x workers | wall time | CPU time | peak memory | machine |")
    print("|---|---|---|---|---|")
    print(
        f"| {arguments.trials:,} x {arguments.rounds:,} x {arguments.workers} | {walls} | {cpus} | "
        f"{memory:.2f} GiB | {os.cpu_count()} cores, Python {platform.python_version()} |"
    )


if __name__ == "__main__":
    main()
