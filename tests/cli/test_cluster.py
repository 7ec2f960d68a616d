"""Ray's messages stay off the screen."""

from __future__ import annotations

import subprocess
import sys

IMPORTED_LATER = """
import logging
from rllib_weighted.cli.cluster import quiet_ray
with quiet_ray(verbose=False):
    import ray.rllib
    assert not logging.getLogger("ray").isEnabledFor(logging.WARNING)
    assert not logging.getLogger("ray.rllib").isEnabledFor(logging.WARNING)
assert logging.getLogger("ray.rllib").isEnabledFor(logging.WARNING)
"""


def test_rllib_is_quiet_also_where_it_had_not_been_imported() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED_LATER], check=True, timeout=300)
