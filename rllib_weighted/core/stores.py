"""Remote stores: how they are opened, what their errors mean, and what of a URI is secret."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from pyarrow import fs

from rllib_weighted._private import cluster_value, set_cluster_value
from rllib_weighted.core.redaction import redact

STALL_S = 10.0
"""Seconds without a byte after which a request counts as failed. pyarrow's default waits 100 for a
server that accepts connections and never answers."""

_S3_SWITCHES = ("allow_bucket_creation", "allow_bucket_deletion")
_S3_OPTIONS = ("endpoint_override", "region", "scheme", *_S3_SWITCHES)
_REFUSALS = (
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN"),
    *("INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT", "MISSING_AUTHENTICATION_TOKEN"),
    *("REQUEST_EXPIRED", "HTTP status 401", "HTTP status 403"),
)
_FINAL = re.compile(
    "|".join([*_REFUSALS, "NO_SUCH_BUCKET", "not found", "HTTP status 4(?!08|25|29)"])
    + "|denied|forbidden|unauthori[sz]ed|credential"
)

_secrets: dict[str, str] = {}  # Public location -> the URI with its credentials, in this process.


def is_refusal(error: OSError) -> bool:
    """Whether a store knows no such user, or grants it too little."""
    return any(code in str(error) for code in _REFUSALS)


def may_pass(error: OSError) -> bool:
    """Whether an error of a remote store may be gone in a moment: no answer, or its own failure."""
    lasting = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError)
    return not isinstance(error, (*lasting, IsADirectoryError)) and not _FINAL.search(str(error))


def open_uri(uri: str) -> fs.FileSystem:
    """Returns the file system of a URI.

    Args:
        uri: As pyarrow reads it. One without credentials takes those that `publish` left for it
            in the cluster, if there are any; else those of the environment count.

    Raises:
        OSError: The store does not answer, or refuses.
        ValueError: There is no such file system.
    """
    uri = _secrets.get(uri) or cluster_value(uri) or uri
    if urlsplit(uri).scheme == "s3" and set(dict(_query(uri))) <= set(_S3_OPTIONS):
        return s3_filesystem(uri)
    return fs.FileSystem.from_uri(uri)[0]


def public(uri: str) -> str:
    """Returns a URI that opens the same store and holds no credentials.

    The endpoint of this process's environment becomes part of it: it is for other processes.

    Raises:
        OSError: Amazon does not know the bucket.
    """
    parts = urlsplit(uri)
    options = dict(_query(uri))
    if parts.scheme == "s3" and (endpoint := _endpoint(options)):
        options["endpoint_override"] = endpoint
    elif parts.scheme == "s3" and "region" not in options:
        options["region"] = fs.resolve_s3_region(bucket(uri))  # Once, and not in every process.
    user, _, host = parts.netloc.rpartition("@")
    netloc = host if ":" in user else parts.netloc
    shown = urlunsplit((parts.scheme, netloc, parts.path, urlencode(options), ""))
    if netloc != parts.netloc:
        _secrets[shown] = uri
    return shown


def publish(shown: str) -> None:
    """Leaves the credentials of a public location in the cluster's memory, for `open_uri` there.

    In a pickle they would reach Tune's files, in a runtime environment Ray's logs.
    """
    if shown in _secrets:
        set_cluster_value(shown, _secrets[shown])


def s3_filesystem(uri: str, *, stall_s: float = STALL_S) -> fs.S3FileSystem:
    """Returns the file system of an S3 URI, one that gives up on a silent server.

    Args:
        uri: `s3://bucket/path`, with `?endpoint_override=`, `?region=` and `?scheme=` as pyarrow
            reads them. The environment gives what is not there: `AWS_ENDPOINT_URL`,
            `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` …
        stall_s: Seconds without a byte after which a request has failed.

    Raises:
        OSError: Amazon does not know the bucket.
    """
    parts, options = urlsplit(uri), dict(_query(uri))
    # pyarrow resolves endpoint and region only for file systems made from a URI.
    endpoint = _endpoint(options)
    return fs.S3FileSystem(
        access_key=unquote(parts.username) if parts.username else None,
        secret_key=unquote(parts.password or "") if parts.username else None,
        region=options.get("region") or (None if endpoint else fs.resolve_s3_region(bucket(uri))),
        scheme=options.get("scheme"),
        endpoint_override=endpoint,
        connect_timeout=stall_s,
        request_timeout=stall_s,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        background_writes=False,  # Its threads are those that `copy_files` waits in.
        **{name: options.get(name, "").lower() in ("1", "true") for name in _S3_SWITCHES},
    )


def bucket(uri: str) -> str:
    """Returns the bucket of an S3 URI."""
    return urlsplit(uri).netloc.rpartition("@")[2]


def explained(error: OSError, uri: str) -> str:
    """Returns what an error of an S3 store means, and what to do."""
    name, endpoint = bucket(uri), _endpoint(dict(_query(uri))) or "Amazon S3"
    detail = redact(re.sub(r" \(Request ID: \w+\)", "", str(error)))
    if re.search(r"[Bb]ucket '.*' not found", detail):
        return f"there is no bucket {name!r} at {endpoint}: create it, or name another one"
    if is_refusal(error):
        return (
            f"{endpoint} refuses access to the bucket {name!r}: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY should be those of a user who may list, read and write there. "
            f"It says: {detail}"
        )
    if "NETWORK_CONNECTION" in detail:
        return (
            f"no answer from {endpoint}: AWS_ENDPOINT_URL (or `?endpoint_override=` in the URI) "
            f"should be the address of an S3-compatible store. {detail}"
        )
    return f"cannot use the bucket {name!r} at {endpoint}: {detail}"


def _query(uri: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(uri).query)


def _endpoint(options: dict[str, Any]) -> str | None:
    from_environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return options.get("endpoint_override") or from_environment
