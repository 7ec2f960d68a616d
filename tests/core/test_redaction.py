"""Credentials do not get into texts."""

from __future__ import annotations

import pytest

from rllib_weighted.cli import Aborted, InputError, TrainingError
from rllib_weighted.core.redaction import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/results/run", "s3://bucket/results/run"),
        ("cannot open 's3://KEY:SEC/RET@bucket/x': no", "cannot open 's3://bucket/x': no"),
        ("s3://KEY:SE@CRET@bucket/x and s3://other/y", "s3://bucket/x and s3://other/y"),
        ("abfs://:SECRET@account.blob/x", "abfs://account.blob/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("s3://b/x?region=eu&secret_key=SECRET&scheme=http", "…key=…&scheme=http"),
        ("at http://127.0.0.1:9000/path", "at http://127.0.0.1:9000/path"),
    ],
)
def test_credentials_of_uris_are_left_out(text: str, shown: str) -> None:
    found = redact(text)
    assert "SECRET" not in found
    assert found.endswith(shown.removeprefix("…"))


def test_errors_of_the_command_show_none() -> None:
    text = "cannot write to s3://KEY:SECRET@bucket/x"
    for error in (InputError(text), TrainingError(text), Aborted(text, 130)):
        assert str(error) == "cannot write to s3://bucket/x"
