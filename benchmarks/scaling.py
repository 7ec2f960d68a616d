"""How time grows with workers, batch, network and env runners, and where a cluster saturates.

    python benchmarks/scaling.py [--only workers --only network …] [--repeats 5]

    workers   learner's time per round against N = 2 … 256 workers, 4096 steps, 64-64
    batch     against the batch, 1024 … 65536 steps of 8 workers
    network   against the network, with 1 torch thread and 2, sizes of BipedalWalker
    sampling  environment steps per second against env runners of 8 sub-environments
    cluster   a round of up to 1,000 env runners, simulated from costs recorded here

Learner: minibatches of 256, 10 epochs, made-up rollouts, one process. Settings alternate within a
repeat and turn round in every second one; medians (lowest – highest) over the repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from cluster_costs import record_costs, sampling_speeds
from cluster_model import PHASES, Setup, remedies, saturation, simulate
from machine import machine, machine_line
from rich.console import Console
from synthetic import (
    WIDE_ACTIONS,
    WIDE_OBSERVATIONS,
    make_learner,
    make_rollouts,
    update_seconds,
)

WORKERS = (2, 4, 8, 16, 32, 64, 128, 256)
STRATEGIES = ("average", "reward_weighted", "loss_weighted", "actor_average")
BATCHES = (1024, 4096, 16384, 65536)
NETWORKS = ((64, 64), (256, 256), (600, 600), (1024, 1024, 1024))
RUNNERS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
SECTIONS = ("workers", "batch", "network", "sampling", "cluster")
HERE = Path(__file__).parent
console = Console(stderr=True)
Records = list[dict[str, Any]]


def in_turn(
    settings: Sequence[Any], repeats: int, run: Callable[[Any, int], dict[str, Any]]
) -> Records:
    """Runs every setting once per repeat, after one round that is not counted."""
    records = []
    for repeat in range(repeats + 1):
        for setting in settings if repeat % 2 else reversed(settings):
            record = run(setting, repeat)
            if repeat:
                records.append({**record, "repeat": repeat})
    return records


def spread(values: Sequence[float], digits: str = ".1f") -> str:
    """Returns "median (lowest – highest)"."""
    low, middle, high = (format(f(values), digits) for f in (min, median, max))
    return f"{middle} ({low} – {high})"


def times_of(records: Records, x: Any, series: str = "") -> list[float]:
    """Returns the seconds of all repeats of a setting."""
    return [r["seconds"] for r in records if (r["x"], r["series"]) == (str(x), series)]


def workers_section(repeats: int) -> tuple[str, Records]:
    """Learner's time against the number of workers."""
    torch.set_num_threads(1)
    settings = [(n, s) for n in WORKERS for s in STRATEGIES if n <= 64 or s != "actor_average"]
    learners = {(n, s): make_learner(s, n) for n, s in settings}

    def run(setting: tuple[int, str], repeat: int) -> dict[str, Any]:
        num_workers, strategy = setting
        data = make_rollouts(num_workers, 4096, repeat)
        wall, cpu = update_seconds(
            learners[setting], strategy, data, num_workers=num_workers, round=repeat + 1
        )
        return {"x": str(num_workers), "series": strategy, "seconds": wall, "cpu_seconds": cpu}

    records = in_turn(settings, repeats, run)
    lines = [f"| workers | {' | '.join(f'`{s}`' for s in STRATEGIES)} | `average` / N = 2 |"]
    lines.append("|---" * (len(STRATEGIES) + 2) + "|")
    first = times_of(records, 2, "average")
    for n in WORKERS:
        found = [times_of(records, n, s) for s in STRATEGIES]
        cells = [spread([1e3 * t for t in times]) if times else "–" for times in found]
        ratios = [a / b for a, b in zip(found[0], first, strict=True)]
        lines.append(f"| {n} | {' | '.join(cells)} | {spread(ratios, '.2f')} |")
    return "Milliseconds per round of 4096 steps, 1 torch thread.\n\n" + "\n".join(lines), records


def batch_section(repeats: int) -> tuple[str, Records]:
    """Learner's time against the batch."""
    torch.set_num_threads(1)
    learner = make_learner("reward_weighted", 8)

    def run(batch: int, repeat: int) -> dict[str, Any]:
        data = make_rollouts(8, batch, repeat)
        wall, cpu = update_seconds(
            learner, "reward_weighted", data, num_workers=8, round=repeat + 1
        )
        return {"x": str(batch), "series": "", "seconds": wall, "cpu_seconds": cpu}

    records = in_turn(BATCHES, repeats, run)
    lines = [
        "| batch | ms per round | ms per optimizer step | µs per sample |",
        "|---|---|---|---|",
    ]
    for batch in BATCHES:
        times = times_of(records, batch)
        steps = 10 * (batch // 256)
        lines.append(
            f"| {batch} | {spread([1e3 * t for t in times])} "
            f"| {spread([1e3 * t / steps for t in times], '.3f')} "
            f"| {spread([1e6 * t / (10 * batch) for t in times], '.2f')} |"
        )
    return "`reward_weighted`, 8 workers, 64-64, 1 torch thread.\n\n" + "\n".join(lines), records


def network_section(repeats: int) -> tuple[str, Records]:
    """Learner's time against the network's size and torch's threads."""
    spaces = {"observations": WIDE_OBSERVATIONS, "actions": WIDE_ACTIONS}
    learners = {h: make_learner("reward_weighted", 8, hiddens=h, **spaces) for h in NETWORKS}
    settings = [(hiddens, threads) for hiddens in NETWORKS for threads in (1, 2)]

    def run(setting: tuple[tuple[int, ...], int], repeat: int) -> dict[str, Any]:
        hiddens, threads = setting
        torch.set_num_threads(threads)
        data = make_rollouts(8, 4096, repeat, **spaces)
        wall, cpu = update_seconds(
            learners[hiddens], "reward_weighted", data, num_workers=8, round=repeat + 1, epochs=2
        )
        name = "-".join(map(str, hiddens))
        return {"x": name, "series": f"{threads}", "seconds": wall, "cpu_seconds": cpu}

    records = in_turn(settings, min(repeats, 5), run)
    lines = ["| network | parameters | 1 thread | 2 threads | gained |", "|---|---|---|---|---|"]
    for hiddens in NETWORKS:
        name = "-".join(map(str, hiddens))
        (module,) = learners[hiddens].module.values()
        size = sum(p.numel() for p in module.parameters())
        one, two = (times_of(records, name, threads) for threads in ("1", "2"))
        gained = [a / b for a, b in zip(one, two, strict=True)]
        cells = [spread([1e3 * t / 32 for t in times], ".2f") for times in (one, two)]
        lines.append(f"| {name} | {size:,} | {' | '.join(cells)} | {spread(gained, '.2f')} |")
    text = (
        "Milliseconds per optimizer step of 256 rows; policy and value network of that size each."
    )
    return f"{text}\n\n" + "\n".join(lines), records


def sampling_section(repeats: int) -> tuple[str, Records]:
    """Environment steps per second against env runners."""
    records = sampling_speeds(repeats, log=console.print)
    environments = sorted({r["series"] for r in records}, reverse=True)
    counts = sorted({int(r["x"]) for r in records})
    lines = [
        f"| env runners | {' | '.join(environments)} |",
        "|---" * (len(environments) + 1) + "|",
    ]
    for count in counts:
        speeds = [
            [r["steps_per_s"] for r in records if (r["x"], r["series"]) == (str(count), name)]
            for name in environments
        ]
        label = "0 (in the algorithm's process)" if count == 0 else count
        lines.append(f"| {label} | {' | '.join(spread(each, ',.0f') for each in speeds)} |")
    cores = machine()["cores"]
    text = f"Environment steps per second, 8 sub-environments each; there are {cores} cores."
    return f"{text}\n\n" + "\n".join(lines), records


def cluster_section(repeats: int) -> tuple[str, Records]:
    """A simulated round against env runners."""
    costs, how = record_costs(repeats)
    records: Records = []
    text = [how]
    weak = Setup()
    strong = Setup(steps_per_runner=None)
    for title, setup in (
        (f"{weak.steps_per_runner} steps per env runner and round", weak),
        (f"{strong.batch:,} steps per round, shared out", strong),
    ):
        text += [f"\n### {title}\n", f"| env runners | {' | '.join(PHASES)} | steps/s |"]
        text.append("|---" * (len(PHASES) + 2) + "|")
        for count in RUNNERS:
            found = simulate(costs, setup, count)
            cells = [f"{found[phase]:.3f}" for phase in PHASES]
            text.append(f"| {count} | {' | '.join(cells)} | {found['steps_per_s']:,.0f} |")
            records += [
                {"x": str(count), "series": f"{title}: {name}", "seconds": found[name]}
                for name in PHASES
            ]
        text.append("\nWhere 90 % of the highest throughput up to 1,000 env runners is reached:\n")
        text += ["| | env runners | what takes longest there | steps/s |", "|---|---|---|---|"]
        for name, changed in remedies(setup).items():
            count, limit, speed = saturation(costs, changed, RUNNERS)
            text.append(f"| {name} | {count} | {limit} | {speed:,.0f} |")
    return "\n".join(text), records


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SECTIONS)}.")] = None,
    repeats: Annotated[int, typer.Option(help="Repeats of each setting.")] = 5,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = HERE / "results",
) -> None:
    """Measures, prints the tables, and writes scaling.md and scaling.parquet."""
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"found {sorted(unknown)}; there are {', '.join(SECTIONS)}")
    text, records = [f"# Scaling\n\n{machine_line()}"], []
    for name in only or SECTIONS:
        console.print(f"Measuring: {name}")
        table, found = globals()[f"{name}_section"](repeats)
        text.append(f"## {name.capitalize()}\n\n{table}")
        records += [{"section": name, "repeat": None, **record} for record in found]
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.md").write_text("\n\n".join(text) + "\n")
    names = sorted({name for record in records for name in record})
    rows = [{name: record.get(name) for name in names} for record in records]
    table = pa.Table.from_pylist(rows).replace_schema_metadata(machine())
    pq.write_table(table, out / "scaling.parquet")
    print("\n\n".join(text))


if __name__ == "__main__":
    typer.run(main)
