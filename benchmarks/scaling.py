"""How time grows with workers, batch, network and env runners, and where a cluster saturates.

    python benchmarks/scaling.py [--only workers --only network …] [--repeats 5]

    workers   learner's time per round against N = 2 … 256 workers, 4096 steps, 64-64
    batch     against the batch, 1024 … 65536 steps of 8 workers
    network   against the network, with 1 torch thread and 2, sizes of BipedalWalker
    sampling  environment steps per second against env runners of 8 sub-environments
    cluster   a round of up to 1,000 env runners, simulated from costs recorded here

Learner: minibatches of 256, 10 epochs, made-up rollouts, one process; a round is one `update`, with
advantages and all optimizer steps. Policy and value each have tanh networks of the size that is
named; parameters are those of both. Settings alternate within a repeat and turn round in every
second one; medians (lowest – highest) over the repeats, ratios within a repeat. Leave the machine
alone meanwhile: two torch threads that have to wait for a core take many times as long.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from cluster_costs import record_costs, sampling_speeds
from cluster_model import Network
from cluster_text import cluster_text
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
BATCHES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
NETWORKS = ((64, 64), (256, 256), (600, 600), (1024, 1024, 1024))
SECTIONS = ("workers", "batch", "network", "sampling", "cluster")
HERE = Path(__file__).parent
console = Console(stderr=True)
Records = list[dict[str, Any]]
Section = tuple[str, Records]


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
    """Returns "median (lowest – highest)"; a dash if there are none."""
    if not values:
        return "–"
    low, middle, high = (format(f(values), digits) for f in (min, median, max))
    return f"{middle} ({low} – {high})"


def values_of(records: Records, x: Any, series: str = "", name: str = "seconds") -> list[float]:
    """Returns a figure of all repeats of a setting, repeat after repeat."""
    return [r[name] for r in records if (r["x"], r["series"]) == (str(x), series)]


def ms(seconds: Sequence[float], digits: str = ".1f", per: float = 1.0) -> str:
    """Returns the spread in milliseconds, of a part if there are several in it."""
    return spread([1e3 * value / per for value in seconds], digits)


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def num_parameters(learner: Any) -> int:
    """Returns the parameters of policy and value network together."""
    (module,) = learner.module.values()
    return sum(p.numel() for p in module.parameters())


def updated(
    learner: Any, strategy: str, data: Any, num_workers: int, repeat: int
) -> dict[str, Any]:
    """Runs one round of the learner; returns its seconds and optimizer steps."""
    wall, cpu = update_seconds(learner, strategy, data, num_workers=num_workers, round=repeat + 1)
    steps = learner.take_update_result().num_steps
    return {"seconds": wall, "cpu_seconds": cpu, "optimizer_steps": steps}


def workers_section(repeats: int) -> Section:
    """Learner's time against the number of workers."""
    torch.set_num_threads(1)
    settings = [(n, s) for n in WORKERS for s in STRATEGIES if n <= 64 or s != "actor_average"]
    learners = {(n, s): make_learner(s, n, shares_layers=False) for n, s in settings}

    def run(setting: tuple[int, str], repeat: int) -> dict[str, Any]:
        num_workers, strategy = setting
        data = make_rollouts(num_workers, 4096, repeat)
        figures = updated(learners[setting], strategy, data, num_workers, repeat)
        return {"x": str(num_workers), "series": strategy, **figures}

    records = in_turn(settings, repeats, run)

    def table(cell: Callable[[int, str], str]) -> str:
        head = ["workers", *(f"`{s}`" for s in STRATEGIES)]
        return grid(head, [[n, *(cell(n, s) for s in STRATEGIES)] for n in WORKERS])

    def ratio(n: int, s: str) -> str:
        found, first = values_of(records, n, s), values_of(records, 2, s)
        return spread([a / b for a, b in zip(found, first, strict=bool(found))], ".2f")

    size = num_parameters(learners[2, "average"])
    text = (
        f"Rounds of 4096 steps, minibatches of 256, 10 epochs, 64-64 ({size:,} parameters; "
        "`actor_average` has as many for each worker), 1 torch thread."
    )
    wall = table(lambda n, s: ms(values_of(records, n, s)))
    cpu = table(lambda n, s: ms(values_of(records, n, s, "cpu_seconds")))
    parts = (("Milliseconds per round", wall), ("To the same strategy with N = 2", table(ratio)))
    tables = [f"{title}:\n\n{rows}" for title, rows in (*parts, ("CPU milliseconds", cpu))]
    return "\n\n".join([text, *tables]), records


def batch_section(repeats: int) -> Section:
    """Learner's time against the batch."""
    torch.set_num_threads(1)
    learner = make_learner("reward_weighted", 8, shares_layers=False)

    def run(batch: int, repeat: int) -> dict[str, Any]:
        data = make_rollouts(8, batch, repeat)
        return {
            "x": str(batch),
            "series": "",
            **updated(learner, "reward_weighted", data, 8, repeat),
        }

    records = in_turn(BATCHES, repeats, run)
    rows = []
    for batch in BATCHES:
        times, cpu = values_of(records, batch), values_of(records, batch, name="cpu_seconds")
        steps = values_of(records, batch, name="optimizer_steps")[0]
        per_sample = spread([1e6 * t / (10 * batch) for t in times], ".2f")
        rows.append([batch, steps, ms(times), ms(cpu), ms(times, ".3f", steps), per_sample])
    head = [
        "batch",
        "optimizer steps",
        "ms per round",
        "CPU ms per round",
        "ms per optimizer step",
        "µs per sample and epoch",
    ]
    text = (
        f"`reward_weighted`, 8 workers, minibatches of 256, 10 epochs, 64-64 "
        f"({num_parameters(learner):,} parameters), 1 torch thread."
    )
    return f"{text}\n\n{grid(head, rows)}", records


def network_section(repeats: int) -> Section:
    """Learner's time against the network's size and torch's threads."""
    spaces = {"observations": WIDE_OBSERVATIONS, "actions": WIDE_ACTIONS}
    learners = {
        h: make_learner("reward_weighted", 8, hiddens=h, shares_layers=False, **spaces)
        for h in NETWORKS
    }
    settings = [(hiddens, threads) for hiddens in NETWORKS for threads in (1, 2)]

    def run(setting: tuple[tuple[int, ...], int], repeat: int) -> dict[str, Any]:
        hiddens, threads = setting
        torch.set_num_threads(threads)
        data = make_rollouts(8, 4096, repeat, **spaces)
        figures = updated(learners[hiddens], "reward_weighted", data, 8, repeat)
        return {"x": "-".join(map(str, hiddens)), "series": str(threads), **figures}

    records = in_turn(settings, repeats, run)
    rows = []
    for hiddens in NETWORKS:
        name = "-".join(map(str, hiddens))
        one, two = (values_of(records, name, threads) for threads in ("1", "2"))
        steps = values_of(records, name, "1", "optimizer_steps")[0]
        gained = [a / b for a, b in zip(one, two, strict=True)]
        cells = [
            ms(times, digits, per)
            for digits, per in ((".0f", 1), (".2f", steps))
            for times in (one, two)
        ]
        rows.append([name, f"{num_parameters(learners[hiddens]):,}", *cells, spread(gained, ".2f")])
    titles = [
        f"{what}, {n}"
        for what in ("ms per round", "ms per optimizer step")
        for n in ("1 thread", "2 threads")
    ]
    text = (
        "`reward_weighted`, 8 workers, 4096 steps of 24 observed numbers and 4 continuous actions, "
        "minibatches of 256, 10 epochs."
    )
    head = ["network", "parameters", *titles, "1 thread / 2"]
    return f"{text}\n\n{grid(head, rows)}", records


def sampling_section(repeats: int) -> Section:
    """Environment steps per second against env runners."""
    records = sampling_speeds(repeats, log=console.print)
    environments = list(dict.fromkeys(r["series"] for r in records))
    rows = []
    for count in sorted({int(r["x"]) for r in records}):
        speeds = [values_of(records, count, name, "steps_per_s") for name in environments]
        label = count or "0 (in the algorithm's process)"
        rows.append([label, *(spread(each, ",.0f") for each in speeds)])
    cores = int(machine()["cores"])
    text = (
        "Environment steps per second on the fast path, 8 sub-environments each, rounds of 256 "
        f"vector steps, 1 torch thread in each process. There are {cores} cores: more than "
        f"{cores} env runners cannot help here."
    )
    return f"{text}\n\n{grid(['env runners', *environments], rows)}", records


def cluster_section(repeats: int, network: Network, learners: int) -> Section:
    """A simulated round against env runners."""
    costs, how = record_costs(repeats)
    text, records = cluster_text(costs, network, learners=learners)
    measured = [{"x": "", "series": f"cost: {n}", "value": v} for n, v in vars(costs).items()]
    return f"{how}\n\n{text}", measured + records


def write(out: Path, text: str, records: Records) -> None:
    """Writes scaling.md and, a row per setting and repeat, scaling.parquet."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.md").write_text(text + "\n")
    names = sorted({name for record in records for name in record})
    rows = [{name: record.get(name) for name in names} for record in records]
    table = pa.Table.from_pylist(rows)
    pq.write_table(
        table.replace_schema_metadata({**machine(), "command": command()}), out / "scaling.parquet"
    )


def command() -> str:
    """Returns the command line, as it can be repeated from the repository's root."""
    return shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SECTIONS)}.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each setting.")] = 5,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = HERE / "results",
    gbit: Annotated[float, typer.Option(help="Assumed: Gbit/s of a link.")] = 10.0,
    latency_ms: Annotated[float, typer.Option(help="Assumed: until a transfer flows.")] = 0.5,
    streams: Annotated[int, typer.Option(min=1, help="Assumed: transfers at a time.")] = 8,
    runners_per_node: Annotated[int, typer.Option(min=1, help="Assumed: on a machine.")] = 8,
    learners: Annotated[int, typer.Option(min=2, help="Learners of the simulated remedy.")] = 8,
) -> None:
    """Measures, prints the tables, and writes scaling.md and scaling.parquet."""
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"found {sorted(unknown)}; there are {', '.join(SECTIONS)}")
    network = Network(gbit * 1.25e8, latency_ms / 1e3, streams, runners_per_node)
    sections: dict[str, Callable[[], Section]] = {
        "workers": lambda: workers_section(repeats),
        "batch": lambda: batch_section(repeats),
        "network": lambda: network_section(repeats),
        "sampling": lambda: sampling_section(repeats),
        "cluster": lambda: cluster_section(repeats, network, learners),
    }
    text = [f"# Scaling\n\n{machine_line()}\n\n`{command()}`"]
    text.append("Median (lowest – highest) over the repeats.")
    records: Records = []
    for name in only or SECTIONS:
        console.print(f"Measuring: {name}")
        tables, found = sections[name]()
        text.append(f"## {name.capitalize()}\n\n{tables}")
        records += [{"section": name, "repeat": None, **record} for record in found]
    write(out, "\n\n".join(text), records)
    print("\n\n".join(text))


if __name__ == "__main__":
    typer.run(main)
