"""An S3-compatible store on loopback: moto's server, as a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

from pyarrow import fs

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "no-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_OPEN_TO_ALL = 10**9  # Requests that are not checked.


@dataclass(frozen=True)
class S3Server:
    """A running store.

    Args:
        endpoint: Its address.
    """

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in order to use the store."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}

    def new_bucket(self) -> str:
        """Makes a bucket; returns its URI."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        with mock.patch.dict(os.environ, self.environment):
            filesystem, path = fs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")
            filesystem.create_dir(path)
        return f"s3://{name}"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Inside the block the store checks credentials, and knows none."""
        self._check_after(0)
        try:
            yield
        finally:
            self._check_after(_OPEN_TO_ALL)

    def _check_after(self, num_requests: int) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth",
            data=str(num_requests).encode(),
            headers={"Content-Type": "text/plain"},
        )
        with urllib.request.urlopen(request, timeout=30):
            pass


@contextlib.contextmanager
def serving() -> Iterator[S3Server]:
    """Runs a store inside the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(server, process)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "moto's server did not start: is its port taken?"
        try:
            server._check_after(_OPEN_TO_ALL)
            return
        except OSError:
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.1)
