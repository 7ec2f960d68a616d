"""Faults at random in sweeps on two simulated nodes; see `main`.

make chaos                              one sweep of six faults
make chaos ARGS="--hours 2"             as many as come
make chaos ARGS="--seed 7 --sweep 3"    a certain one again
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Annotated

import typer

from tests.chaos.faults import STORES, draw
from tests.chaos.running import disturb, undisturbed


def main(
    seed: Annotated[
        int | None, typer.Option(help="Of the faults; drawn if it is left out.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0, help="Begins sweeps for so long.")] = 0.0,
    sweep: Annotated[int | None, typer.Option(help="Only that one of the seed.")] = None,
    num_faults: Annotated[int, typer.Option("--faults", min=1, help="Of each sweep.")] = 6,
    patience: Annotated[float, typer.Option(help="Factor on all limits, on a busy machine.")] = 1.0,
    only: Annotated[str, typer.Option(help='Only faults like this: "kill learner".')] = "",
) -> None:
    """Runs sweeps through faults drawn at random, and checks what becomes of them."""
    seed = random.randrange(10**6) if seed is None else seed
    print(f"seed {seed}", flush=True)
    stores = [kind for kind in STORES if kind != "disk" or os.geteuid() == 0]  # Only root mounts.
    began = time.monotonic()
    expected = undisturbed(patience)
    print(f"the undisturbed sweep took {time.monotonic() - began:.0f} s", flush=True)
    number = sweep or 1
    faults = compared = 0
    problems: list[str] = []
    while True:
        kind = stores[number % len(stores)]
        print(f"sweep {number}, results on {kind}", flush=True)
        outcome = disturb(
            draw(f"{seed}-{number}", num_faults, kind, only), kind, expected, patience
        )
        faults, compared = faults + outcome.num_faults, compared + outcome.num_compared
        for problem in outcome.problems:
            problems.append(f"seed {seed}, sweep {number}: {problem}")
            print(f"  PROBLEM: {problem}", flush=True)
        number += 1
        if sweep is not None or time.monotonic() - began >= 3600 * hours:
            break
    minutes = (time.monotonic() - began) / 60
    print(
        f"seed {seed}: {faults} faults in {minutes:.0f} minutes, {compared} checkpoints compared, "
        f"{len(problems)} problems"
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    typer.run(main)
