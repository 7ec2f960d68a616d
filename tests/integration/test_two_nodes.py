"""Workers and learners on two nodes of a cluster do what one process does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STRATEGIES = ["reward_weighted", "loss_weighted", "actor_average"]


@pytest.mark.slow
def test_two_nodes_do_what_one_process_does():
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.two_nodes", *STRATEGIES],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == STRATEGIES
    for strategy, values in found.items():
        assert values["nodes"] == [2, 2], strategy  # Env runners and learners on both.
        assert values["error"] <= 1e-5, strategy
