"""A writer that is killed for good, and one that writes while another process's thread reads."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rllib_weighted.records
from rllib_weighted.records import HISTORY_DIR, MergeHistory, read_history
from rllib_weighted.records.schema import TEMPORARY_PREFIX
from tests.records.helpers import append_rounds, local_history, names_in, rounds_of

ROOT = Path(__file__).parents[2]

# The package's own __init__ imports Ray; the records must do without, and start fast here.
WITHOUT_RAY = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
package = types.ModuleType("rllib_weighted")
package.__path__ = [{str(ROOT / "rllib_weighted")!r}]
sys.modules["rllib_weighted"] = package
import rllib_weighted.records
"""

DIE = """
import os, signal
from pyarrow import fs
from rllib_weighted.records import MergeHistory, WorkerRecord

class Deadly(fs.LocalFileSystem):
    num_writes = 0

    def open_output_stream(self, path, **kwargs):
        self.num_writes += 1
        stream = super().open_output_stream(path, **kwargs)
        if self.num_writes == 3 and sys.argv[2] == "write":
            stream.write(b"PAR1" + bytes(50))
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return stream

    def move(self, source, target):
        if self.num_writes == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        super().move(source, target)

history = MergeHistory(Deadly(), sys.argv[1], trial_id="a", flush_seconds=0)
for number in range(1, 10):
    record = WorkerRecord(0, 1, 0, 7, 1.0, 1.0, 1.0, 0.5, 20.0, 1, False)
    history.append(number, number * 100, [record])
"""


def test_records_import_neither_ray_nor_torch() -> None:
    code = f"{WITHOUT_RAY}\nprint(sorted({{'ray', 'torch', 'gymnasium'}} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "[]"
    assert Path(rllib_weighted.records.__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("moment", ["write", "move"])
def test_a_killed_writer_leaves_whole_files(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / HISTORY_DIR
    command = [sys.executable, "-c", WITHOUT_RAY + DIE, str(folder), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [name.startswith(TEMPORARY_PREFIX) for name in names_in(folder)] == [True, False, False]
    assert rounds_of(read_history(folder)) == [1, 2]

    resumed = local_history(folder)
    resumed.truncate(1)
    append_rounds(resumed, [2, 3], num_workers=1)
    resumed.close()
    assert rounds_of(read_history(folder)) == [1, 2, 3]
    assert len(names_in(folder)) == 2


def test_a_reader_never_meets_a_torn_file_or_a_row_twice(tmp_path: Path) -> None:
    def write_with_restores(history: MergeHistory) -> None:
        for start in range(0, 60, 6):
            append_rounds(history, range(start, start + 9))
            history.flush()
            history.truncate(start + 5)

    writer = threading.Thread(target=write_with_restores, args=[local_history(tmp_path)])
    writer.start()
    num_reads = 0
    while writer.is_alive() or num_reads == 0:
        rounds = rounds_of(read_history(tmp_path))  # a warning would be an error
        assert rounds == list(range(len(rounds)))
        num_reads += 1
    writer.join()
    assert rounds_of(read_history(tmp_path)) == list(range(60))
