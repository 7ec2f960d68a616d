"""Results on an S3-compatible store are reported as those on a disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pyarrow import fs

from rllib_weighted.report import (
    ReportError,
    comparisons,
    final_returns,
    load_results,
    weight_curves,
)
from tests.cli.test_main import rllib
from tests.report.helpers import write_sweep


@pytest.fixture
def places(tmp_path: Path, s3_bucket: str) -> tuple[Path, str]:
    """The same sweep on a disk and in a bucket."""
    local = write_sweep(tmp_path / "results")
    store, path = fs.FileSystem.from_uri(f"{s3_bucket}/sweeps/results")
    fs.copy_files(str(local), path, destination_filesystem=store)
    return local, f"{s3_bucket}/sweeps/results"


def test_a_sweep_in_a_bucket_gives_the_same_tables(places: tuple[Path, str]) -> None:
    disk, bucket = (load_results([str(place)]) for place in places)
    assert len(bucket.runs) == 9
    assert not bucket.problems
    for table in (final_returns, comparisons, weight_curves):
        expected = table(disk)
        assert len(expected)
        pd.testing.assert_frame_equal(table(bucket), expected)


def test_the_command_reports_from_a_bucket(places: tuple[Path, str], tmp_path: Path) -> None:
    result = rllib("report", places[1], "--threshold", "80", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "3 of 3" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    missing = s3_bucket.replace("s3://", "s3://no-such-")
    with pytest.raises(ReportError, match="no-such-"):
        load_results([missing])
