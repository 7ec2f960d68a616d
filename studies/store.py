"""A part's results: one compact Parquet file, rewritten whole and renamed after every run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from studies.design import Case, Part, digest

HERE = Path(__file__).parent / "results"

SCHEMA = pa.schema(
    {
        "experiment": pa.string(),
        "arm": pa.string(),
        "seed": pa.int32(),
        "digest": pa.string(),
        "commit": pa.string(),
        "seconds": pa.float32(),
        "num_steps": pa.int32(),
        "steps_to_threshold": pa.int32(),  # null: not reached within num_steps
        "mean_score": pa.float32(),  # over the whole run
        "final_score": pa.float32(),  # over its last tenth
        "env_steps": pa.list_(pa.int32()),
        "score": pa.list_(pa.float32()),
        "worst": pa.list_(pa.float32()),  # of the workers; empty where they do not differ
        "held_out": pa.list_(pa.float32()),  # mean return in each held-out context
        "diagnostics": pa.string(),  # JSON: means over the run; null without
    }
)


class StudyError(Exception):
    """The results and the pre-registration do not fit each other, or another run holds them."""


def path_of(part: str, folder: Path = HERE) -> Path:
    """Returns the file of a part's results."""
    return folder / f"{part}.parquet"


def read(part: str, folder: Path = HERE) -> pd.DataFrame:
    """Returns the runs of a part that are done, a row each; see `SCHEMA`."""
    path = path_of(part, folder)
    table = pq.read_table(path, schema=SCHEMA) if path.exists() else SCHEMA.empty_table()
    return table.to_pandas()


def append(part: str, row: Mapping[str, Any], folder: Path = HERE) -> None:
    """Adds a run. A kill at any moment leaves the file as it was, or with the run."""
    path = path_of(part, folder)
    folder.mkdir(parents=True, exist_ok=True)
    new = pa.Table.from_pylist([dict(row)], schema=SCHEMA)
    if path.exists():
        new = pa.concat_tables([pq.read_table(path, schema=SCHEMA), new])
    half_written = path.with_suffix(".tmp")
    pq.write_table(new.combine_chunks(), half_written, compression="zstd")
    os.replace(half_written, path)


@contextmanager
def held(part: str, folder: Path = HERE) -> Iterator[None]:
    """Keeps other processes from running the same part meanwhile.

    Raises:
        StudyError: Another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{part}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"another process is running {part} into {folder}") from None
        yield


def outstanding(part: Part, done: pd.DataFrame) -> list[Case]:
    """Returns the runs that are not done yet, in order.

    Raises:
        StudyError: An arm or its task has changed since its first run.
    """
    for (name, arm, found), runs in done.groupby(["experiment", "arm", "digest"]):
        try:
            experiment = part.experiment(name)
            wanted = digest(experiment.task, experiment.arm(arm))
        except KeyError:
            wanted = "none"
        if wanted != found:
            raise StudyError(
                f"{part.name}: {arm} on {name} is not what {len(runs)} of its runs were made with "
                f"(digest {wanted}, found {found}): what is pre-registered stays; give a changed "
                "arm or task a new name"
            )
    have = set(zip(done["experiment"], done["arm"], done["seed"], strict=True))
    return [case for case in part.cases() if (case.experiment, case.arm, case.seed) not in have]
