"""On what a measurement was taken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import date

_PACKAGES = ("ray", "torch", "gymnasium", "stable-baselines3", "numpy", "rllib-weighted")


def machine() -> dict[str, str]:
    """Returns what the machine is and which versions are installed, name -> value."""
    with open("/proc/cpuinfo") as lines:
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    with open("/proc/meminfo") as lines:
        memory = int(next(lines).split()[1]) / 1024**2
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": date.today().isoformat(),
        "processor": models[0] if models else "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "Python": platform.python_version(),
        **versions,
    }


def machine_line() -> str:
    """Returns the same as one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())
