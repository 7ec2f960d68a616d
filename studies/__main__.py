"""Runs the study, or goes on with it, and draws its page.

make study                                  all parts, then the page
make study ARGS="confirm --hours 2"         one part, no longer than two hours
make study ARGS=--report                    only the page
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from studies import page, store
from studies.parts import PARTS


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Only draw the page.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    hours: Annotated[float | None, typer.Option(min=0, help="Hours for each part.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only arms of these names.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = store.HERE,
) -> None:
    """Makes the runs that are missing, part by part, and draws docs/study.md."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M")
    logging.getLogger("studies").setLevel(logging.INFO)
    if unknown := sorted(set(names or ()) - set(PARTS)):
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    chosen = [PARTS[name] for name in names or PARTS]
    known = {a.name for part in chosen for found in part.experiments for a in found.arms}
    if unknown := sorted(set(arm or ()) - known):
        raise typer.BadParameter(
            f"no arm {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    if not report:
        from studies.running import run

        for part in chosen:
            missing = run(
                part,
                processes=processes,
                hours=hours,
                arms=arm or (),
                folder=results.resolve(),
            )
            if missing:
                print(
                    f"{part.name}: {missing} runs are missing; the same command goes on with them"
                )
    page.write(PARTS.values(), results)


if __name__ == "__main__":
    typer.run(main)
