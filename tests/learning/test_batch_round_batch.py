from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_weighted.learning.batch import WORKER_COLUMN, make_round_batch, tag_rows
from tests.learning.helpers import make_episode, standardized

ADVANTAGES = Postprocessing.ADVANTAGES


def columns(owners, real=None, **more):
    """A connector's output: one row per owner; `real` marks the rows that are steps."""
    n = len(owners)
    return {
        Columns.OBS: torch.arange(n, dtype=torch.float32)[:, None],
        ADVANTAGES: torch.arange(n, dtype=torch.float32) ** 2,
        Columns.LOSS_MASK: torch.tensor([True] * n if real is None else real),
        WORKER_COLUMN: torch.tensor(owners, dtype=torch.int32),
        **more,
    }


def sequences():
    """Three sequences of up to 3 steps: workers 1, 0, 1."""
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    return {
        Columns.OBS: torch.arange(9.0).reshape(3, 3, 1),
        ADVANTAGES: torch.arange(9.0).reshape(3, 3) ** 2,
        Columns.LOSS_MASK: mask,
        Columns.STATE_IN: {"h": torch.arange(6.0).reshape(3, 2)},
        WORKER_COLUMN: torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.int32),
    }


def test_rows_are_grouped_by_worker_and_phantom_rows_are_gone():
    real = [True, True, False, True, True, False]
    batch = make_round_batch(columns([2, 2, 2, 0, 0, 0], real), is_sequences=False)
    assert {w: rows.tolist() for w, rows in batch.rows.items()} == {0: [2, 3], 2: [0, 1]}
    assert batch.num_steps == 4
    assert batch.mask is None
    assert batch.columns[Columns.OBS].squeeze(1).tolist() == [0, 1, 3, 4]
    assert Columns.LOSS_MASK not in batch.columns
    assert WORKER_COLUMN not in batch.columns


def test_without_a_mask_every_row_is_a_step():
    data = columns([0, 1, 1])
    del data[Columns.LOSS_MASK]
    batch = make_round_batch(data, is_sequences=False)
    assert batch.num_steps == 3
    data = sequences()
    del data[Columns.LOSS_MASK]
    assert make_round_batch(data, is_sequences=True).num_steps == 9


def test_without_the_worker_column_the_remedy_is_named():
    data = columns([0, 1])
    del data[WORKER_COLUMN]
    with pytest.raises(ValueError, match="add_default_connectors_to_learner_pipeline"):
        make_round_batch(data, is_sequences=False)


def test_a_sequence_is_one_row_and_keeps_its_mask():
    batch = make_round_batch(sequences(), is_sequences=True)
    assert {w: rows.tolist() for w, rows in batch.rows.items()} == {0: [1], 1: [0, 2]}
    assert batch.num_steps == 2 + 1 + 3
    assert batch.mask is not None
    taken = batch.take(np.array([2, 0]))
    assert taken[Columns.STATE_IN]["h"].tolist() == [[4, 5], [0, 1]]
    assert taken[Columns.LOSS_MASK].tolist() == [[True] * 3, [True, True, False]]


def test_unused_columns_and_what_is_no_tensor():
    data = columns([0, 1, 0], [True, False, True], extra={"a": torch.ones(3, 2)}, note="kept")
    batch = make_round_batch(data, is_sequences=False, unused=[Columns.OBS])
    assert set(batch.columns) == {ADVANTAGES, "extra", "note"}
    taken = batch.take(np.array([1]))
    assert taken["extra"]["a"].shape == (1, 2)
    assert taken["note"] == "kept"


def test_taking_rows_keeps_their_order_and_may_repeat_them():
    batch = make_round_batch(columns([0, 0, 1]), is_sequences=False)
    assert batch.take(np.array([2, 0, 2]))[ADVANTAGES].tolist() == [4, 0, 4]


@pytest.mark.parametrize(
    ("mode", "groups"), [("worker", [[0, 2], [1, 3, 4]]), ("batch", [[0, 1, 2, 3, 4]])]
)
def test_advantages_are_standardised_over_each_worker_or_over_all(mode, groups):
    data = columns([0, 1, 0, 1, 1, 1], [True] * 5 + [False])
    data[ADVANTAGES][-1] = 1e9  # a phantom row: garbage
    before = data[ADVANTAGES].clone()
    batch = make_round_batch(data, is_sequences=False)
    batch.standardize_advantages(mode)
    found = batch.columns[ADVANTAGES]
    for group in groups:
        torch.testing.assert_close(found[group], standardized(before[group]))
        assert found[group].double().mean().item() == pytest.approx(0, abs=1e-6)
        assert found[group].double().std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert not torch.equal(found, before[:5])
    assert torch.equal(data[ADVANTAGES], before)  # the connectors' output is left alone


def test_no_standardisation_changes_nothing():
    batch = make_round_batch(columns([0, 1, 0]), is_sequences=False)
    batch.standardize_advantages("none")
    assert batch.columns[ADVANTAGES].tolist() == [0, 1, 4]


def test_masked_steps_of_sequences_count_in_no_mean():
    data = sequences()
    data[ADVANTAGES][~data[Columns.LOSS_MASK]] = 1e9
    batch = make_round_batch(data, is_sequences=True)
    batch.standardize_advantages("worker")
    real = batch.columns[ADVANTAGES][torch.tensor([0, 2])][data[Columns.LOSS_MASK][[0, 2]]]
    expected = standardized(torch.tensor([0.0, 1, 36, 49, 64]))  # squares of 0, 1, 6, 7, 8
    torch.testing.assert_close(real, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [Columns.OBS, ADVANTAGES])
def test_workers_with_numbers_that_are_not_finite_are_dropped(bad, column):
    data = columns([0, 1, 2, 1])
    data[column][3] = bad
    batch = make_round_batch(data, is_sequences=False)
    (reason,) = batch.drop_non_finite_workers().values()
    assert column in reason
    assert sorted(batch.rows) == [0, 2]
    assert batch.num_steps == 2
    assert batch.all_rows.tolist() == [0, 2]


def test_a_nested_observation_is_named_by_its_path():
    data = columns([0, 1])
    data[Columns.OBS] = {"cam": {"left": torch.tensor([[1.0], [math.nan]])}, "id": torch.ones(2, 1)}
    batch = make_round_batch(data, is_sequences=False)
    assert batch.drop_non_finite_workers() == {1: "obs/cam/left has NaN or infinite entries"}


def test_sound_numbers_drop_nobody():
    data = columns([0, 1], **{Columns.ACTIONS: torch.tensor([1, 0])})
    # Masked actions: infinite logits are sound.
    data[Columns.ACTION_DIST_INPUTS] = torch.tensor([[0.0, -math.inf], [0.0, 1.0]])
    batch = make_round_batch(data, is_sequences=False)
    assert batch.drop_non_finite_workers() == {}
    assert sorted(batch.rows) == [0, 1]


def test_garbage_in_a_phantom_row_drops_nobody():
    data = columns([0, 0, 1], [True, False, True])
    data[Columns.OBS][1] = math.nan
    batch = make_round_batch(data, is_sequences=False)
    assert batch.drop_non_finite_workers() == {}


def test_dropping_everybody_leaves_an_empty_batch():
    batch = make_round_batch(columns([0, 1]), is_sequences=False)
    batch.drop([1, 0, 5])
    assert batch.rows == {}
    assert batch.num_steps == 0
    batch.standardize_advantages("batch")
    batch.standardize_advantages("worker")
    assert batch.columns[ADVANTAGES].tolist() == [0, 1]


def test_tags_survive_a_lookback_buffer_and_a_cut():
    episode = make_episode(1, 6, seed=0)
    chunk = episode[2:6]
    tag_rows({4: [chunk, make_episode(1, 2, seed=1)]})
    tags = chunk.get_extra_model_outputs(WORKER_COLUMN)
    assert tags.tolist() == [4] * 4
    assert chunk.get_extra_model_outputs(WORKER_COLUMN, slice(0, 3)).dtype == np.int32
    continued = chunk.cut(len_lookback_buffer=2)
    tag_rows({3: [continued]})
    assert len(continued.get_extra_model_outputs(WORKER_COLUMN)) == 0
