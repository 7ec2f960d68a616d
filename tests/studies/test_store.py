import pytest

from studies import store
from studies.design import Arm, Case, Experiment, Part
from tests.studies.made_up import EXPERIMENT, PART, TASK, row, runs


def test_what_is_appended_is_read_again(tmp_path):
    store.append("made_up", row("base", 1, 400), tmp_path)
    store.append("made_up", row("fast", 2, 2000), tmp_path)
    found = store.read("made_up", tmp_path)
    assert found["arm"].tolist() == ["base", "fast"]
    assert found["steps_to_threshold"].tolist()[0] == 400
    assert found["steps_to_threshold"].isna().tolist() == [False, True]
    assert found["score"][0].tolist() == [0.0, 1.0, 2.0]


def test_a_file_half_written_by_a_kill_does_no_harm(tmp_path):
    store.append("made_up", row("base", 1, 400), tmp_path)
    (tmp_path / "made_up.tmp").write_bytes(b"half")
    store.append("made_up", row("base", 2, 400), tmp_path)
    assert store.read("made_up", tmp_path)["seed"].tolist() == [1, 2]


def test_no_run_is_made_twice():
    done = runs(num_seeds=3)
    missing = store.outstanding(PART, done)
    assert len(missing) == 3 * 20 - 9
    assert missing[0] == Case("task", "base", 3)
    assert not {(case.arm, case.seed) for case in missing} & set(
        zip(done["arm"], done["seed"], strict=True)
    )


def test_runs_go_seed_by_seed():
    assert [(case.arm, case.seed) for case in PART.cases()][:4] == [
        ("base", 0),
        ("fast", 0),
        ("same", 0),
        ("base", 1),
    ]


@pytest.mark.parametrize(
    "arms",
    [
        (Arm("base"), Arm("fast", {"lr": 1.5}), Arm("same", {"lr": 2.0})),
        (Arm("base"), Arm("same", {"lr": 2.0})),
    ],
    ids=["changed", "gone"],
)
def test_an_arm_that_changed_after_its_runs_is_refused(arms):
    experiment = Experiment(TASK, arms, EXPERIMENT.seeds, ())
    changed = Part(PART.name, "", "", "", (experiment,))
    with pytest.raises(store.StudyError, match="fast on task is not what 2 of its runs"):
        store.outstanding(changed, runs(num_seeds=2))


def test_a_part_is_run_by_one_process(tmp_path):
    with store.held("made_up", tmp_path):
        with (
            pytest.raises(store.StudyError, match="another process is running made_up"),
            store.held("made_up", tmp_path),
        ):
            pass
        with store.held("other", tmp_path):
            pass
    with store.held("made_up", tmp_path):
        pass
