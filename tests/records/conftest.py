from __future__ import annotations

from pathlib import Path

import pytest

from tests.records.helpers import write_trial


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two trials, of three and of two rounds, among files that are none of our business."""
    root = tmp_path / "experiment"
    write_trial(root / "trial_1_b", "b", range(1, 4))
    write_trial(root / "trial_2_a", "a", range(1, 3))
    (root / "trial_1_b" / "result.json").write_text("{}")
    (root / "trial_1_b" / "rounds.parquet").write_text("not in a history folder")
    return root
