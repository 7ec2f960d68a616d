import pytest
import typer

from studies import __main__ as command
from studies import page


def test_a_part_an_arm_or_a_task_that_there_is_not_is_named(tmp_path):
    with pytest.raises(typer.BadParameter, match="no part confrim; there are confirm"):
        command.main(["confrim"], report=True, results=tmp_path)
    with pytest.raises(typer.BadParameter, match="no arm avarage; there are R; R, normalised"):
        command.main(["confirm"], report=True, arm=["avarage"], results=tmp_path)
    with pytest.raises(typer.BadParameter, match="no task CartPole; there are LunarLander-v3"):
        command.main(["confirm"], report=True, task=["CartPole"], results=tmp_path)


def test_a_report_runs_nothing(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(page, "write", lambda parts, folder: written.append((list(parts), folder)))
    command.main(["confirm"], report=True, results=tmp_path)
    ((parts, folder),) = written
    assert folder == tmp_path
    assert "confirm" in [part.name for part in parts]
    assert list(tmp_path.iterdir()) == []
