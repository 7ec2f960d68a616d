import pandas as pd

from studies import page, store
from tests.studies.made_up import EXPERIMENT, PART, row, runs


def written(table, tmp_path):
    for record in table.to_dict("records"):
        found = record["steps_to_threshold"]
        record["steps_to_threshold"] = None if pd.isna(found) else int(found)
        store.append("made_up", record, tmp_path)
    page.write([PART], tmp_path, tmp_path / "study.md")
    return (tmp_path / "study.md").read_text()


def test_the_page_says_what_is_faster_and_what_is_open(tmp_path):
    text = written(runs(), tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| fast | base | **1.")]
    assert len(lines) == 1
    assert "| better |" in lines[0]
    same = next(line for line in text.splitlines() if line.startswith("| same | base | **"))
    assert "| open |" in same
    assert "60 of 60 runs" in text
    assert "Not complete" not in text
    assert (tmp_path / "study" / page.figure_name(PART, EXPERIMENT)).stat().st_size > 1000


def test_an_unfinished_part_says_so(tmp_path):
    text = written(runs(num_seeds=3), tmp_path)
    assert "9 of 60 runs are done" in text
    assert "Not complete: only what has all its pairs is a conclusion" in text


def test_a_single_run_has_a_page(tmp_path):
    text = written(pd.DataFrame([row("base", 0, 400)]), tmp_path)
    assert "1 of 60 runs" in text


def test_a_page_without_any_runs(tmp_path):
    page.write([PART], tmp_path, tmp_path / "study.md")
    text = (tmp_path / "study.md").read_text()
    assert "## Made up" not in text
    assert "| `made_up`: Made up | 60 | task (3 arms, 20 seeds) |" in text
