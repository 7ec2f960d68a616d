"""What is said of a store that cannot be used, before anything starts."""

from __future__ import annotations

import socket
import time

import pytest
from pyarrow import fs

from rllib_weighted.cli import InputError
from rllib_weighted.cli.storage import check_store, child, locate, make_storage
from tests.s3 import S3Server


def test_a_bucket_that_can_be_used_is_left_as_it_was(s3_bucket: str) -> None:
    check_store(f"{s3_bucket}/results", writes=True)
    filesystem, bucket = fs.FileSystem.from_uri(s3_bucket)
    files = filesystem.get_file_info(fs.FileSelector(bucket, recursive=True))
    assert [info.path for info in files if info.is_file] == []


def test_the_uri_may_name_endpoint_and_credentials(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_server.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = s3_bucket.removeprefix("s3://")
    uri = (
        f"s3://key:secret@{bucket}/results?endpoint_override={s3_server.endpoint}&region=us-east-1"
    )
    check_store(uri, writes=True)
    make_storage(uri)
    assert locate(uri, f"{bucket}/results/run/trial") == child(uri, "run", "trial")


@pytest.mark.parametrize("writes", [False, True])
def test_a_missing_bucket(s3_bucket: str, s3_server: S3Server, writes: bool) -> None:
    message = f"no bucket 'absent' at {s3_server.endpoint}: create it, or name another one"
    with pytest.raises(InputError, match=message):
        check_store("s3://absent/results", writes=writes)


@pytest.mark.parametrize("writes", [False, True])
def test_refused_credentials(s3_bucket: str, s3_server: S3Server, writes: bool) -> None:
    message = rf"{s3_server.endpoint} refuses access to .*: AWS_ACCESS_KEY_ID and AWS_SECRET"
    with s3_server.refusing(), pytest.raises(InputError, match=message):
        check_store(f"{s3_bucket}/results", writes=writes)
    check_store(f"{s3_bucket}/results", writes=writes)  # Negative control.


def test_the_region_of_a_bucket_at_amazon_is_asked_for(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve_s3_region(bucket: str) -> str:
        raise OSError(f"Bucket '{bucket}' not found")

    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(fs, "resolve_s3_region", resolve_s3_region)
    with pytest.raises(InputError, match="no bucket 'absent' at Amazon S3: create it"):
        check_store("s3://absent/results", writes=False)


def test_nobody_there(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"no answer from http://127\.0\.0\.1:9: AWS_ENDPOINT"):
        check_store(s3_bucket, writes=False)


@pytest.mark.slow
def test_somebody_there_who_never_answers(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        started = time.monotonic()
        with pytest.raises(InputError, match=f"no answer from {endpoint}"):
            check_store(s3_bucket, writes=False)
    assert time.monotonic() - started < 30
