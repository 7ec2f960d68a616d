"""Environment steps per second of whole training loops: this package and others.

    make bench            all but CleanRL and Sample Factory, about an hour: benchmarks/results/
    make bench ARGS="--repeats 1 --environment CartPole-v1"
    make bench ARGS="--environment HalfCheetah-v5 --environment Pong-v5"
    CLEANRL=../cleanrl make bench ARGS="--contender average --contender cleanrl"
    SAMPLE_FACTORY_PYTHON=../sf/bin/python make bench ARGS="--contender 'sample factory'"

Same environment, networks, batch, minibatch, epochs and cores for all (see contenders.py). Every
run is a process of its own, after one another and in turn: a repeat runs each contender once, every
second repeat in reverse, so that what the machine does over an hour hits all alike. A ratio is
taken within a repeat; the table has medians over the repeats, with the lowest and highest. Leave
the machine alone meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from contenders import (
    CLEANRL,
    CLEANRL_ENVPOOL,
    CONTENDERS,
    FRAMES,
    ON_ENVPOOL,
    OURS,
    PEERS,
    PONG,
    RLLIB,
    SAMPLE_FACTORY,
    SB3_MANY,
    SB3_ONE,
    runs_on,
)
from machine import machine, machine_line
from rich.console import Console

ENVIRONMENTS = ("CartPole-v1", "LunarLander-v3", "BipedalWalker-v3")
ALL_ENVIRONMENTS = (*ENVIRONMENTS, "HalfCheetah-v5", PONG, FRAMES)
USUAL = tuple(name for name in CONTENDERS if name not in PEERS)
BEST, SB3 = "the faster backend", "sb3"
OTHERS = (RLLIB, SB3, CLEANRL, SAMPLE_FACTORY)
FASTEST = {BEST: ("average", ON_ENVPOOL), SB3: (SB3_ONE, SB3_MANY)}
WANTED = {
    ("average", RLLIB): (3.0, 2.5, 2.0),
    ("average", SB3): (1.2, 1.7, 1.7),
    (ON_ENVPOOL, "average"): (1.1, 1.25, 1.7, 1.3, 1.5),
    (BEST, RLLIB): (4.0, 3.8, 3.6, 2.5, 2.0),
}  # In the order of ALL_ENVIRONMENTS.
HERE = Path(__file__).parent
console = Console(stderr=True)


def run_one(contender: str, environment: str, repeat: int, seconds: float) -> dict[str, Any]:
    """Runs a contender in a fresh process; returns its figures.

    Raises:
        typer.Exit: It failed; its output has been shown.
    """
    command = [sys.executable, str(HERE / "contenders.py"), contender, environment]
    done = subprocess.run(
        [*command, "--seconds", str(seconds)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        console.print(done.stderr[-3000:], markup=False)
        console.print(f"{contender} on {environment} failed; its last lines are above.")
        raise typer.Exit(1)
    found = json.loads(done.stdout.splitlines()[-1])
    rounds = found["rounds"]
    steps, spent = (sum(column) for column in zip(*rounds, strict=True))
    return {
        "environment": environment,
        "contender": contender,
        "repeat": repeat,
        "steps_per_s": steps / spent,
        "round_s": spent / len(rounds),
        "rounds": len(rounds),
        "first_round_s": found["first_round_s"],
        "env_runner_mib": found.get("env_runner_mib"),
        "threads": found["threads"],
    }


def measure(
    environments: list[str], contenders: list[str], repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Runs everything in turn; yields one record per run."""
    for environment in environments:
        for repeat in range(repeats):
            order = contenders if repeat % 2 == 0 else contenders[::-1]
            for contender in (name for name in order if runs_on(name, environment)):
                record = run_one(contender, environment, repeat, seconds)
                console.print(
                    f"{environment}, repeat {repeat + 1} of {repeats}, {contender}: "
                    f"{record['steps_per_s']:,.0f} steps/s"
                )
                yield record


def of(records: list[dict[str, Any]], environment: str, contender: str) -> dict[int, float]:
    """Returns repeat -> steps per second; of several, those of the faster one in the median."""
    if contender in FASTEST:
        both = [of(records, environment, name) for name in FASTEST[contender]]
        return max(both, key=lambda found: median(found.values()) if found else 0.0)
    return {
        r["repeat"]: r["steps_per_s"]
        for r in records
        if (r["environment"], r["contender"]) == (environment, contender)
    }


def spread(values: list[float], digits: str) -> str:
    """Returns "median (lowest – highest)"."""
    if not values:
        return "–"
    low, middle, high = (format(f(values), digits) for f in (min, median, max))
    return f"{middle} ({low} – {high})"


def ratios(records: list[dict[str, Any]], environment: str, one: str, other: str) -> list[float]:
    """Returns steps/s of one over those of the other, repeat by repeat."""
    first, second = of(records, environment, one), of(records, environment, other)
    return [first[repeat] / second[repeat] for repeat in first if repeat in second]


def cell(records: list[dict[str, Any]], environment: str, one: str, other: str) -> str:
    """Returns the ratio of two contenders on an environment, and what was wanted."""
    found = spread(ratios(records, environment, one, other), ".2f")
    wanted = dict(zip(ALL_ENVIRONMENTS, WANTED.get((one, other), ()), strict=False))
    return f"{found}, wanted {wanted[environment]}" if environment in wanted else found


def report(records: list[dict[str, Any]], environments: list[str]) -> str:
    """Returns the tables as Markdown; without what was not run."""
    head = f"| | {' | '.join(environments)} |\n|---|{'---|' * len(environments)}\n"

    def table(rows: dict[str, list[str]]) -> str:
        kept = {name: cells for name, cells in rows.items() if any(c[0] != "–" for c in cells)}
        return head + "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in kept.items())

    speeds = {
        contender: [spread(list(of(records, e, contender).values()), ",.0f") for e in environments]
        for contender in CONTENDERS
    }
    pairs = [
        *((ours, peer) for ours in (*OURS, ON_ENVPOOL, BEST) for peer in OTHERS),
        (ON_ENVPOOL, "average"),
        (ON_ENVPOOL, CLEANRL_ENVPOOL),
    ]
    against = {
        f"{one} / {other}": [cell(records, e, one, other) for e in environments]
        for one, other in pairs
    }
    costs = {
        ours: [spread(ratios(records, e, "average", ours), ".3f") for e in environments]
        for ours in OURS[1:]
    }
    return (
        f"# Throughput\n\n{machine_line()}\n\nMedian (lowest – highest) over the repeats.\n\n"
        f"## Environment steps per second\n\n{table(speeds)}\n"
        f"## Ratios\n\n`{SB3}` is the faster of its two vector environments; {BEST} is that of "
        f"`average`.\n\n{table(against)}\n"
        f"## Time of a whole round, as a ratio to `average`\n\n{table(costs)}"
    )


def write(records: list[dict[str, Any]], environments: list[str], out: Path) -> str:
    """Writes throughput.md and throughput.parquet; returns the text."""
    text = report(records, environments)
    out.mkdir(parents=True, exist_ok=True)
    (out / "throughput.md").write_text(text)
    table = pa.Table.from_pylist(records).replace_schema_metadata(machine())
    pq.write_table(table, out / "throughput.parquet")
    return text


def main(
    repeats: Annotated[int, typer.Option(help="Runs of each contender on each environment.")] = 5,
    seconds: Annotated[float, typer.Option(help="How long to measure in each run.")] = 8.0,
    environment: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(ALL_ENVIRONMENTS)}.")
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(CONTENDERS)}.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = HERE / "results",
) -> None:
    """Measures, prints the tables, and writes throughput.md and throughput.parquet."""
    environments = environment or list(ENVIRONMENTS)
    unknown = set(contender or ()) - set(CONTENDERS) | set(environments) - set(ALL_ENVIRONMENTS)
    if unknown:
        raise typer.BadParameter(
            f"found {', '.join(sorted(unknown))}; there are "
            f"{', '.join((*CONTENDERS, *ALL_ENVIRONMENTS))}"
        )
    records: list[dict[str, Any]] = []
    text = ""
    for record in measure(environments, contender or list(USUAL), repeats, seconds):
        records.append(record)
        text = write(records, environments, out)  # What is done stays if the next one fails.
    print(text)


if __name__ == "__main__":
    typer.run(main)
