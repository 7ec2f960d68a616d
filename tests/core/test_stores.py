"""Remote stores: what is passed on to other processes, and what an error of theirs means."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pyarrow import fs

from rllib_weighted.core import stores
from rllib_weighted.core.durable import DurableFileSystem

SECRET = "TheSecret"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The cluster's memory; another process would have no other."""
    memory: dict[str, str] = {}
    monkeypatch.setattr(stores, "set_cluster_value", memory.__setitem__)
    monkeypatch.setattr(stores, "cluster_value", memory.get)
    monkeypatch.setattr(stores, "_secrets", {})
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    return memory


def test_credentials_reach_other_processes_through_the_clusters_memory_alone(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://Key:{SECRET}@bucket/results?endpoint_override=http://127.0.0.1:9&region=eu"
    location = stores.public(uri)
    pickled = pickle.dumps(DurableFileSystem(stores.open_uri(uri), 5, location))
    assert SECRET.encode() not in pickled
    assert cluster == {location: uri}
    assert SECRET not in location
    monkeypatch.setattr(stores, "_secrets", {})  # Another process.
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(fs, "S3FileSystem", lambda **options: opened.append(options) or NoStore())
    there = pickle.loads(pickled)
    assert (there.timeout_s, there.location) == (5, location)
    assert (opened[0]["access_key"], opened[0]["secret_key"]) == ("Key", SECRET)
    assert opened[0]["endpoint_override"] == "http://127.0.0.1:9"
    assert opened[0]["region"] == "eu"


class NoStore(fs.SubTreeFileSystem):
    def __init__(self) -> None:
        super().__init__("/nowhere", fs.LocalFileSystem())


def test_without_credentials_in_it_the_environment_counts(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    location = stores.public("s3://bucket/results")
    assert location == "s3://bucket/results?endpoint_override=http%3A%2F%2F127.0.0.1%3A9"
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(fs, "S3FileSystem", lambda **options: opened.append(options) or NoStore())
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    stores.open_uri(location)
    assert (opened[0]["access_key"], opened[0]["secret_key"]) == (None, None)
    assert opened[0]["endpoint_override"] == "http://127.0.0.1:9"
    assert cluster == {}


def test_the_region_at_amazon_is_asked_for_once(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fs, "resolve_s3_region", lambda name: asked.append(name) or "eu-west-1")
    location = stores.public("s3://bucket/results")
    stores.open_uri(location)
    assert (location, asked) == ("s3://bucket/results?region=eu-west-1", ["bucket"])


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28", True),
        ("AWS Error UNKNOWN (HTTP status 500) during PutObject operation", True),
        ("AWS Error SLOW_DOWN during PutObject operation", True),
        ("AWS Error UNKNOWN (HTTP status 429) during PutObject operation", True),
        ("AWS Error UNKNOWN (HTTP status 403) during PutObject operation", False),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation", False),
        ("google::cloud::Status(PERMISSION_DENIED: Permission denied)", False),
        ("[Errno 2] Path does not exist", True),
    ],
)
def test_which_errors_may_pass(error: str, passes: bool) -> None:
    assert stores.may_pass(OSError(error)) == passes
    assert not stores.may_pass(FileNotFoundError(error))
