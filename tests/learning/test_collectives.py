"""What a single learner tells itself; several ones are in tests/integration/test_learners.py."""

from __future__ import annotations

import torch

from rllib_weighted.learning.collectives import Collectives
from tests.learning.helpers import worker_losses


def test_numbers_of_workers_come_to_their_rows():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    table = Collectives(0, num_workers=5).of_workers([3, 1], rows)
    assert table.dtype == torch.float64
    assert not table.requires_grad
    assert table.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2], [0, 0]]


def test_no_workers_are_rows_of_zeros():
    table = Collectives(1, num_workers=2).of_workers([], torch.zeros(0, 3))
    assert table.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_alone_nothing_is_sent():
    collectives = Collectives(1, num_workers=2)
    values = torch.ones(3)
    assert collectives.sum(values) is values
    losses = worker_losses(1.0, 2.0)
    assert collectives.losses([0, 1], losses, [0, 1]).total.tolist() == [1, 2]
