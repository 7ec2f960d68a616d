"""What is quoted of the errors of others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rllib_weighted.cli.failures import no_space, root_cause


def test_root_cause_is_the_first_of_a_chain() -> None:
    chain = (
        "Traceback (most recent call last):\n  \x1b[36mFile\x1b[39m 'a'\nValueError: the cause\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "RuntimeError\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "AttributeError: a consequence\n"
    )
    assert root_cause(chain, 2) == "  File 'a'\nValueError: the cause"


def test_of_a_full_disk_its_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cause = "Traceback …\nOSError: [Errno 28] No space left on device"
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        (line,) = no_space(cause, [str(tmp_path), "/elsewhere"])
        assert f"no space    {tmp_path}, /elsewhere: make room" in line
    assert "the disk of a path above" in no_space(cause, [str(tmp_path), "bucket/on/s3"])[0]
    assert no_space("OSError: [Errno 5] Input/output error", [str(tmp_path)]) == []
