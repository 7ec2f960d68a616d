"""A part that is run by Tune, killed, and gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studies import store

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_part_goes_on_where_it_was(tmp_path):
    """Runs the parts' registry with a tiny part in it, in a process that is killed."""
    command = [sys.executable, str(Path(__file__).with_name("tiny_part.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 200
    while store.read("tiny", tmp_path).empty:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    early = store.read("tiny", tmp_path)
    assert 1 <= len(early) < 6
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)
    assert done.returncode == 0
    every = store.read("tiny", tmp_path)
    assert len(every) == 6
    assert not every.duplicated(["experiment", "arm", "seed"]).any()
    assert every["score"].tolist()[0].tolist() == early["score"].tolist()[0].tolist()
