"""Runs the study, or goes on with it, and draws its page.

make study                                  all parts, then the page
make study ARGS="confirm --hours 2"         one part, no longer than two hours
make study ARGS=--report                    only the page
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
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
    task: Annotated[list[str] | None, typer.Option(help="Only tasks of these names.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = store.HERE,
) -> None:
    """Makes the runs that are missing, part by part, and draws docs/study.md."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M")
    logging.getLogger("studies").setLevel(logging.INFO)
    if unknown := sorted(set(names or ()) - set(PARTS)):
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    chosen = [PARTS[name] for name in names or PARTS]
    _check("arm", arm, (a.name for part in chosen for e in part.experiments for a in e.arms))
    _check("task", task, (e.name for part in chosen for e in part.experiments))
    if not report:
        from studies.running import run

        for part in chosen:
            missing = run(
                part,
                processes=processes,
                hours=hours,
                arms=arm or (),
                tasks=task or (),
                folder=results.resolve(),
            )
            if missing:
                print(
                    f"{part.name}: {missing} runs are missing; the same command goes on with them"
                )
    page.write(PARTS.values(), results)


def _check(what: str, given: list[str] | None, known: Iterable[str]) -> None:
    if unknown := sorted(set(given or ()) - (there := set(known))):
        raise typer.BadParameter(
            f"no {what} {', '.join(unknown)}; there are {'; '.join(sorted(there))}"
        )


if __name__ == "__main__":
    typer.run(main)
