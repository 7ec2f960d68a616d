"""Resident memory of a trial's process: many workers, and ten million parameters.

    python benchmarks/memory.py          five processes, one after the other

Each row trains some rounds on CartPole-v1 in a process of its own, which samples and learns by
itself (no env runners, no learners of their own): all that workers and parameters take lies there.
psutil reads the process's resident set before the algorithm is built and after every round; the
peak is the kernel's. Memory hardly depends on what else the machine does, so that it need not be
idle. What is taken beyond the start is the algorithm's; the imports come before it.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from machine import machine, machine_line
from rich.console import Console

HERE = Path(__file__).parent
MIB = 1024**2
WIDE = 3158  # Two such layers behind CartPole's 4 inputs: 10.0 million parameters, shared.
console = Console(stderr=True)


class Row(NamedTuple):
    """What is trained: by stock RLlib, if it has no strategy."""

    strategy: str | None
    num_workers: int
    hidden: int
    batch: int
    minibatch: int


ROWS = {
    "actor_average, 64 workers, 64-64": Row("actor_average", 64, 64, 4096, 512),
    "actor_average, 256 workers, 64-64": Row("actor_average", 256, 64, 4096, 512),
    "average, 1,024 workers, 64-64": Row("average", 1024, 64, 16384, 2048),
    "average, 8 workers, 10 M parameters": Row("average", 8, WIDE, 1024, 128),
    "stock RLlib, 8 environments, 10 M parameters": Row(None, 8, WIDE, 1024, 128),
}
*_, OURS_WIDE, STOCK_WIDE = ROWS


def make_config(row: Row) -> Any:
    """Returns a row's config; ours and stock RLlib's differ in nothing but the merge."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from rllib_weighted import WeightedPPOConfig

    config = PPOConfig()
    if row.strategy:
        config = WeightedPPOConfig().training(merge_strategy=row.strategy, merge_unit="env")
    return (
        config.environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=row.num_workers)
        .training(train_batch_size=row.batch, minibatch_size=row.minibatch, num_epochs=2)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[row.hidden, row.hidden]))
        .debugging(seed=0)
    )


def train(row: Row, rounds: int) -> dict[str, Any]:
    """Trains a row in this process; returns its memory in MiB."""
    import ray

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    config = make_config(row)
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    process = psutil.Process()
    start = process.memory_info().rss / MIB
    algorithm = config.build_algo()
    resident = []
    for _ in range(rounds):
        algorithm.train()
        resident.append(process.memory_info().rss / MIB)
    module = algorithm.get_module()
    found = {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "start_mib": start,
        "resident_mib": resident,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    algorithm.stop()
    ray.shutdown()
    return found


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Trains a row in a fresh process.

    Raises:
        typer.Exit: It failed; its output has been shown.
    """
    command = [sys.executable, __file__, "--row", name, "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stderr[-3000:], markup=False)
        console.print(f"{name} failed; its last lines are above.")
        raise typer.Exit(1)
    return {"row": name, **json.loads(done.stdout.splitlines()[-1])}


def report(records: list[dict[str, Any]]) -> str:
    """Returns the table as Markdown."""
    lines = [
        f"| {r['row']} | {r['parameters']:,} | {r['start_mib']:,.0f} | "
        f"{r['resident_mib'][0]:,.0f} | {r['resident_mib'][-1]:,.0f} | {r['peak_mib']:,.0f} |\n"
        for r in records
    ]
    last = {r["row"]: r["resident_mib"][-1] for r in records}
    ratio = ""
    if {OURS_WIDE, STOCK_WIDE} <= last.keys():
        ratio = (
            f"\nTen million parameters, resident memory of ours / stock RLlib's: "
            f"{last[OURS_WIDE] / last[STOCK_WIDE]:.2f} (wanted: at most 1.2).\n"
        )
    return (
        f"# Memory\n\n{machine_line()}\n\nMiB of the one process that samples and learns.\n\n"
        "| | parameters of a policy | before building | after the first round | "
        f"after the last | peak |\n|---|---|---|---|---|---|\n{''.join(lines)}{ratio}"
    )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each row.")] = 5,
    row: Annotated[str | None, typer.Option(help="Only this, in this process, as JSON.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = HERE / "results",
) -> None:
    """Measures, prints the table, and writes memory.md and memory.parquet."""
    if row is not None:
        if row not in ROWS:
            raise typer.BadParameter(f"found {row!r}; there are {', '.join(map(repr, ROWS))}")
        print(json.dumps(train(ROWS[row], rounds)))
        return
    records = []
    for name in ROWS:
        records.append(measure(name, rounds))
        console.print(f"{name}: {records[-1]['resident_mib'][-1]:,.0f} MiB")
    text = report(records)
    out.mkdir(parents=True, exist_ok=True)
    (out / "memory.md").write_text(text)
    table = pa.Table.from_pylist(records).replace_schema_metadata(machine())
    pq.write_table(table, out / "memory.parquet")
    print(text)


if __name__ == "__main__":
    typer.run(main)
