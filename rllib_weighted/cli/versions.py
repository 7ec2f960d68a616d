"""Versions of what matters for a result; the verb `version`."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = {
    "rllib_weighted": "rllib-weighted",
    "ray": "ray",
    "torch": "torch",
    "gymnasium": "gymnasium",
}


def versions() -> dict[str, str]:
    """Returns the versions of this package, Ray, PyTorch, Gymnasium and Python.

    They are read from the installation's metadata: nothing is imported.
    """
    found = {}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version()}
