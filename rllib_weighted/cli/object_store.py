"""Whether an S3-compatible store can be used: asked before anything starts, and quickly."""

from __future__ import annotations

import os
import re
import secrets
from urllib.parse import parse_qs, unquote, urlsplit

from rllib_weighted.cli.errors import InputError

_AMAZON = "Amazon S3"
_PROBE = "_rllib_write_test"
_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN")
# pyarrow's own would wait 100 seconds for an endpoint that takes connections and never answers.
_TIMEOUT_S = 5
_MAX_ATTEMPTS = 2


def check_store(uri: str, *, writes: bool) -> None:
    """Asks for a bucket, and for what is to be done in it.

    Args:
        uri: `s3://bucket/path`, with `?endpoint_override=`, `?region=` and `?scheme=` as pyarrow
            reads them. The environment gives what is not there: `AWS_ENDPOINT_URL`,
            `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` …
        writes: Whether it must be possible to write there, too.

    Raises:
        InputError: The bucket is missing, the store refuses, or does not answer.
    """
    from pyarrow import fs

    parts = urlsplit(uri)
    credentials, _, bucket = parts.netloc.rpartition("@")
    path = bucket + parts.path.rstrip("/")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    options: dict[str, str] = {
        key: query[key] for key in ("endpoint_override", "region", "scheme") if key in query
    }
    # pyarrow looks for endpoint and region of a URI by itself, not for a file system made by hand.
    endpoint = _endpoint(query)
    if endpoint:
        options["endpoint_override"] = endpoint
    if credentials:
        key, _, secret = credentials.partition(":")
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    try:
        if not endpoint and "region" not in options:
            options["region"] = fs.resolve_s3_region(bucket)
        filesystem = fs.S3FileSystem(
            **options,
            connect_timeout=_TIMEOUT_S,
            request_timeout=_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
        )
        exists = filesystem.get_file_info(bucket).type != fs.FileType.NotFound
        if exists:
            filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if exists and writes:
            probe = f"{path}/{_PROBE}_{secrets.token_hex(4)}"
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"can be removed")
            filesystem.delete_file(probe)
    except OSError as error:
        raise InputError(_explained(error, bucket, endpoint or _AMAZON)) from None
    if not exists:
        raise InputError(_missing(bucket, endpoint or _AMAZON))


def _endpoint(query: dict[str, str]) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    from_environment = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return query.get("endpoint_override") or from_environment


def _missing(bucket: str, endpoint: str) -> str:
    return f"there is no bucket {bucket!r} at {endpoint}: create it, or name another one"


def _explained(error: OSError, bucket: str, endpoint: str) -> str:
    detail = re.sub(r" \(Request ID: \w+\)", "", str(error))
    if any(code in detail for code in _REFUSALS):
        return (
            f"{endpoint} refuses access to the bucket {bucket!r}: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY should be those of a user who may list, read and write there. "
            f"It says: {detail}"
        )
    if re.search(r"[Bb]ucket '.*' not found", detail):
        return _missing(bucket, endpoint)
    if "NETWORK_CONNECTION" in detail:
        return (
            f"no answer from {endpoint}: AWS_ENDPOINT_URL (or `?endpoint_override=` in the URI) "
            f"should be the address of an S3-compatible store. {detail}"
        )
    return f"cannot use the bucket {bucket!r} at {endpoint}: {detail}"
