from __future__ import annotations

import subprocess
import sys


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rllib_weighted", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: rllib " in done.stdout
