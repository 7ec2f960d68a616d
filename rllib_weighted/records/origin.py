"""What a history was recorded with: versions and machine, in each file's metadata."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform

import pyarrow.parquet as pq

from rllib_weighted.records.reading import UNREADABLE, HistoryFolder

ORIGIN_KEY = "rllib_weighted.origin"
"""Key in a file's metadata of what it was recorded with, as JSON."""

_DISTRIBUTIONS = ("rllib-weighted", "ray", "torch", "gymnasium", "numpy")


@functools.cache
def origin() -> dict[str, str]:
    """Return the versions of the packages that matter for a result, of Python, and the machine.

    They are read from the installation's metadata: nothing is imported.
    """
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {
        **found,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": str(os.cpu_count()),
    }


def read_origin(folder: HistoryFolder) -> dict[str, str]:
    """Return what the newest readable file of a history was recorded with; {} if none says so."""
    for path in reversed(folder.files):
        try:
            with folder.filesystem.open_input_file(path) as source:
                text = (pq.read_schema(source).metadata or {}).get(ORIGIN_KEY.encode())
            found = json.loads(text) if text is not None else {}
        except UNREADABLE:
            continue
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
    return {}
