"""Versions of what a report was made with."""

from __future__ import annotations

import importlib.metadata
import platform

from rllib_weighted.report.views import View

_DISTRIBUTIONS = ("rllib-weighted", "ray", "torch", "gymnasium", "numpy", "scipy", "matplotlib")


def versions_view() -> View:
    """Returns the versions that are installed where the report is made.

    They are read from the installation's metadata: nothing is imported.
    """
    rows = []
    for name in _DISTRIBUTIONS:
        try:
            rows.append([name, importlib.metadata.version(name)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([name, "not installed"])
    rows.append(["Python", platform.python_version()])
    rows.append(["machine", platform.platform()])
    return View("Made with", ["what", "version"], rows, num_texts=2)
