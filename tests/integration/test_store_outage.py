"""An object store that is away, frozen or fails for a while, and one that refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from rllib_weighted.records import read_history
from tests.integration.test_s3 import FILE
from tests.proxy import Proxy, proxying
from tests.s3 import S3Server

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "rllib_weighted", "train", "file"]


@pytest.fixture
def proxy(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between the processes that this test starts and the store."""
    with proxying(s3_server.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where Ray writes; the names of its sockets are limited to some hundred characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


class Training:
    """A training in another process, and what it says."""

    def __init__(self, folder: Path, storage: str, *options: str) -> None:
        file = folder / "train_me.py"
        file.write_text(FILE)
        where = ["--storage-path", storage, "--name", "run", "--checkpoint-freq", "10"]
        self.process = subprocess.Popen(
            [*COMMAND, str(file), *where, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for_checkpoint(self, storage: str) -> None:
        wait_until(lambda: any("/checkpoint_" in path for path in files(storage)), self)

    def end(self, seconds: float = 200) -> int:
        code = self.process.wait(timeout=seconds)
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def wait_until(condition: Callable[[], bool], training: Training) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert training.process.poll() is None, training.output
        assert time.monotonic() < deadline, training.output
        time.sleep(0.3)


def files(uri: str) -> list[str]:
    filesystem, path = fs.FileSystem.from_uri(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
    return [info.path for info in filesystem.get_file_info(selector) if info.is_file]


def results(uri: str) -> list[int]:
    filesystem, _ = fs.FileSystem.from_uri(uri)
    (path,) = (path for path in files(uri) if path.endswith("/result.json"))
    lines = filesystem.open_input_stream(path).read().splitlines()
    return [json.loads(line)["training_iteration"] for line in lines]


def recorded(uri: str) -> list[int]:
    rows = read_history(uri).to_pydict()
    keys = list(zip(rows["round"], rows["worker"], strict=True))
    assert len(keys) == len(set(keys))
    return [round for round, worker in keys if worker == 0]


def test_outages_are_waited_for(s3_bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    storage = f"{s3_bucket}/results"
    training = Training(tmp_path, storage, "--stop", '{"training_iteration": 1000000}')
    training.wait_for_checkpoint(storage)
    for mode, seconds in (("away", 8), ("failing", 4), ("frozen", 4)):
        proxy.be(mode)
        time.sleep(seconds)
        assert training.process.poll() is None, training.output
        proxy.be("there")
        number = len(recorded(storage))
        wait_until(lambda before=number: len(recorded(storage)) > before, training)
    training.process.send_signal(signal.SIGTERM)
    assert training.end() == 143, training.output
    rounds = recorded(storage)
    assert rounds == list(range(1, len(rounds) + 1))
    assert results(storage) == rounds


def test_the_limit_ends_it_with_the_cause_and_it_can_be_resumed(
    s3_bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    storage = f"{s3_bucket}/results"
    stop = ["--stop", '{"training_iteration": 1000000}']
    training = Training(tmp_path, storage, *stop, "--storage-timeout", "2")
    training.wait_for_checkpoint(storage)
    time.sleep(3)
    proxy.be("away")
    began = time.monotonic()
    assert training.end() == 1, training.output
    assert time.monotonic() - began < 120
    proxy.be("there")
    assert "`storage_timeout_s`=2: " in training.output
    assert "--storage-timeout 2.0" in training.output  # In the line that resumes it.
    resumed = Training(tmp_path, storage, "--resume", "--stop", '{"training_iteration": 60}')
    assert resumed.end() == 0, resumed.output


def test_a_store_that_begins_to_refuse_ends_it_at_once(
    s3_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    storage = f"{s3_bucket}/results"
    training = Training(tmp_path, storage, "--stop", '{"training_iteration": 1000000}')
    training.wait_for_checkpoint(storage)
    with s3_server.refusing():
        began = time.monotonic()
        assert training.end() == 1, training.output
        assert time.monotonic() - began < 90
    assert "have the credentials changed, or run out?" in training.output
    assert "storage_timeout_s" not in training.output


def test_credentials_of_a_uri_are_in_no_file_and_no_message(
    s3_bucket: str,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray_folder: str,
) -> None:
    secret = "TheSecretOfThisTest"
    bucket = s3_bucket.removeprefix("s3://")
    options = f"endpoint_override={s3_server.endpoint}&region=us-east-1"
    storage = f"s3://Key:{secret}@{bucket}/results?{options}"
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("RAY_TMPDIR", ray_folder)
        for more in (["--stop", '{"training_iteration": 7}'], ["--resume", "--stop", "{}"]):
            training = Training(tmp_path, storage, *more)
            assert training.end() == 0, training.output
            assert secret not in training.output
    filesystem, path = fs.FileSystem.from_uri(s3_bucket)
    files = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    assert any("checkpoint_" in info.path for info in files)
    for info in files:
        if info.is_file:
            assert secret.encode() not in filesystem.open_input_file(info.path).read(), info.path
    logs = [path for path in Path(ray_folder).rglob("*") if path.is_file()]
    assert any(path.name == "gcs_server.out" for path in logs)
    for log in logs:
        assert secret.encode() not in log.read_bytes(), log
