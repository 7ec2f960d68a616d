from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR
from rllib_weighted.records.origin import origin
from rllib_weighted.report import ReportError, load_results
from tests.report.helpers import HELD_OUT, METRIC, STEPS, STOCK, write_sweep, write_trial


def test_a_sweep(tmp_path: Path) -> None:
    results = load_results(write_sweep(tmp_path))
    assert len(results.runs) == 9
    assert results.metric == METRIC
    assert results.problems == []
    weighted = ["reward_weighted, m=0.5", "reward_weighted, m=1"]
    assert list(results.arms["arm"]) == ["average", *weighted]
    row = results.runs.iloc[0]
    assert (row["arm"], row["seed"], row["num_rounds"]) == ("average", 1, 20)
    assert (row["env_steps"], row["time_s"]) == (20 * STEPS, 40.0)
    assert row["finished"]
    assert row["counts"]
    assert row["has_weights"]
    assert row["source"] == "progress.csv"
    assert row["host"] == "machine"
    assert len(results.progress) == 9 * 20
    assert results.weights.groupby("run").size().tolist() == [20] * 9


def test_the_final_return_is_the_mean_over_the_last_tenth(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [0.0] * 18 + [4.0, 6.0])
    assert load_results(tmp_path).runs["final"].item() == 5.0


def test_held_out_returns_come_from_the_results(tmp_path: Path) -> None:
    held_out = {10: 1.0, 19: 50.0, 20: 30.0}  # Round 19 only repeats another's.
    write_trial(tmp_path / "t1", [0.0] * 20, held_out=held_out, evaluation_interval=10)
    assert load_results(tmp_path).runs["held_out"].item() == 30.0


def test_held_out_returns_come_from_the_table_if_it_has_them(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [0.0] * 20, evaluation_interval=1)
    file = tmp_path / "t1" / "progress.csv"
    table = pd.read_csv(file)
    table[HELD_OUT] = [float(i) for i in range(20)]
    table.to_csv(file, index=False)
    (tmp_path / "t1" / "result.json").unlink()
    assert load_results(tmp_path).runs["held_out"].item() == 18.5  # rounds 19 and 20


def test_without_evaluation_the_large_file_is_not_opened(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    (tmp_path / "t1" / "result.json").write_bytes(b"\xff" * 100)
    results = load_results(tmp_path)
    assert math.isnan(results.runs["held_out"].item())
    assert results.problems == []


def test_stock_ppo_is_compared_by_what_both_have(tmp_path: Path) -> None:
    write_trial(tmp_path / "WeightedPPO_1")
    write_trial(tmp_path / "PPO_1", stock=True)
    results = load_results(tmp_path)
    assert results.metric == STOCK
    assert list(results.arms["arm"]) == ["PPO", "average"]
    assert not results.runs.set_index("arm").loc["PPO", "has_weights"]
    (problem,) = results.problems
    assert problem.startswith(f"compared by {STOCK}: 1 run without {METRIC}")


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    assert load_results(tmp_path, metric="time_total_s").runs["final"].item() == 6.0
    with pytest.raises(
        ReportError,
        match=r"unknown metric 'merge/episode_return_men': .* have merge/episode_r",
    ):
        load_results(tmp_path, metric="merge/episode_return_men")


def test_a_repeated_seed_counts_once_and_the_longest_run_of_it(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0] * 2, merge_strategy="sum", min_weight=0.5)
    write_trial(tmp_path / "t2", [1.0] * 4, merge_strategy="sum", min_weight=1.0)
    write_trial(tmp_path / "t3", [1.0] * 3, merge_strategy="sum", seed=2)
    results = load_results(tmp_path)
    assert results.runs.set_index("trial_id")["counts"].to_dict() == {
        "t1": False,
        "t2": True,
        "t3": True,
    }
    (problem,) = results.problems
    assert "CartPole-v1, sum: left out 1 run with a seed that another run has" in problem


def test_runs_without_a_seed_are_no_repetitions(tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        write_trial(tmp_path / name, seed=None)
    assert load_results(tmp_path).runs["counts"].all()


def test_a_copy_of_a_trial_is_left_out(tmp_path: Path) -> None:
    write_trial(tmp_path / "a" / "t1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    results = load_results([tmp_path / "a", tmp_path / "b"])
    assert len(results.runs) == 1
    assert results.problems == [f"left out {tmp_path}/b/t1: {tmp_path}/a/t1 is the same trial (t1)"]


def test_returns_come_from_the_history_if_nothing_else_is_left(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [1.0, 2.0, 3.0], progress=False)
    (tmp_path / "t1" / "result.json").unlink()
    results = load_results(tmp_path)
    assert results.runs["source"].item() == "merge history"
    assert results.progress["value"].tolist() == pytest.approx([1.0, 1.5, 2.0])
    assert f"{tmp_path}/t1: returns are taken from its merge history" in results.problems


def test_a_trial_that_has_only_just_started(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    (tmp_path / "t2").mkdir()
    (tmp_path / "t2" / "params.json").write_text("{}")
    results = load_results(tmp_path)
    assert len(results.runs) == 1
    assert f"{tmp_path}/t2 has no results yet" in results.problems
    with pytest.raises(ReportError, match=r"none of the trials has results yet\n- .*t2 has no"):
        load_results(tmp_path / "t2")


def test_torn_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    first, second, third, *_ = sorted(tmp_path.iterdir())
    (first / "params.json").write_text('{"env": "Cart')
    (second / "progress.csv").write_text("")
    (next((third / HISTORY_DIR).iterdir())).write_bytes(b"PAR1")
    results = load_results(tmp_path)
    assert len(results.runs) == 9
    text = "\n".join(results.problems)
    assert f"left out {first}/params.json, so its settings are unknown" in text
    assert f"left out {second}/progress.csv" in text
    assert f"left out '{third}/{HISTORY_DIR}/" in text
    assert results.runs["has_weights"].sum() == 8


def test_more_columns_in_a_history_are_ignored(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    (file,) = (tmp_path / "t1" / HISTORY_DIR).iterdir()
    table = pq.read_table(file)
    pq.write_table(table.append_column("drift", pa.array([0.5] * len(table))), file)
    results = load_results(tmp_path)
    assert results.problems == []
    assert len(results.weights) == 3


def test_missing_values_take_the_last_one_before(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", [math.nan, 2.0, math.nan, 4.0])
    assert load_results(tmp_path).progress["value"].fillna(-1).tolist() == [-1, 2, 2, 4]


def test_shares_are_those_of_the_lowest_seed(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", seed=5, shares=(0.5, 0.5))
    write_trial(tmp_path / "t2", seed=3, shares=(0.1, 0.9))
    write_trial(tmp_path / "t3", seed=1, history=False)
    shares = load_results(tmp_path).shares
    assert set(shares["seed"]) == {3}
    assert shares["share"].tolist() == pytest.approx([0.1, 0.9] * 3)
    assert shares["worker"].tolist() == [0, 1] * 3


def test_other_filesystems(tmp_path: Path) -> None:
    write_sweep(tmp_path / "experiment")
    local = load_results(tmp_path)
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    found = load_results("experiment", filesystem=store)
    pd.testing.assert_frame_equal(found.progress, local.progress)
    pd.testing.assert_frame_equal(found.weights, local.weights)


def test_in_memory(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    memory = fs._MockFileSystem()
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        memory.create_dir(str(Path("bucket", file.relative_to(tmp_path)).parent))
        with memory.open_output_stream(f"bucket/{file.relative_to(tmp_path)}") as stream:
            stream.write(file.read_bytes())
    results = load_results("bucket", filesystem=memory)
    assert len(results.weights) == 3
    assert results.runs["path"].item() == "bucket/t1"


def test_environments_are_kept_apart(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", env="A")
    write_trial(tmp_path / "t2", env="B")
    assert sorted(load_results(tmp_path).arms["env"]) == ["A", "B"]


def test_params_of_another_tool(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps({"learning_rate": 1}))
    with pytest.raises(ReportError, match="none of the trials has results yet"):
        load_results(tmp_path)


def test_what_runs_were_recorded_with(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1", seed=2)
    write_trial(tmp_path / "t2", seed=1)
    write_trial(tmp_path / "t3", stock=True)
    (row,) = load_results(tmp_path).origins.to_dict("records")
    assert row["arm"] == "average"
    assert row["run"] == 1
    assert row["ray"] == origin()["ray"]


def test_a_history_without_settings(tmp_path: Path) -> None:
    write_trial(tmp_path / "t1")
    for name in ("params.json", "progress.csv", "result.json"):
        (tmp_path / "t1" / name).unlink()
    results = load_results(tmp_path)
    assert results.runs["env"].item() == "unknown"
    assert results.runs["arm"].item() == "unknown"
    assert f"{tmp_path}/t1 has no params.json: its settings are unknown" in results.problems


def test_trials_outside_of_tune_are_no_copies_of_each_other(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_trial(tmp_path / f"t{seed}", seed=seed)
        file = tmp_path / f"t{seed}" / "progress.csv"
        file.write_text(file.read_text().replace(f"t{seed}", "default"))
    assert len(load_results(tmp_path).runs) == 2
