"""What all tests share: a home of their own, one thread, and one Ray for those that ask for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.s3 import S3Server, serving

_home = tempfile.TemporaryDirectory(prefix="rllib-weighted-tests-", ignore_cleanup_errors=True)
_user_home = os.path.expanduser("~")

# Before anything imports Ray: it reads these once, and its workers inherit them.
os.environ["HOME"] = _home.name  # Ray writes ~/ray_results and ~/.ray.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"  # A repeated line would hide behind "[repeated 3x]".
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # Ray's choice of tomorrow; today's warns.
os.environ.pop("RAY_ADDRESS", None)  # Never join a cluster that happens to run here.
os.environ.pop("PYTHONWARNINGS", None)  # Warnings are errors in this process, not in Ray's workers.


def pytest_unconfigure() -> None:
    _home.cleanup()


@pytest.fixture(scope="session")
def user_home() -> str:
    """The home folder outside the tests, for tools whose settings lie there (pip)."""
    return _user_home


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums come out the same on every machine, and tests leave the other cores alone."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the whole run. The CPUs are logical: eight workers fit on a small machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=256 * 1024**2,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3-compatible store on loopback for the whole run."""
    with serving() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket, for which this process and its children have the credentials.

    The workers of `ray_session` were started before and have not: use a Ray in a subprocess.
    """
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()
