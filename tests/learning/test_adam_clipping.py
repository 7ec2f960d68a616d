"""Clipping every worker's gradient, against RLlib's clipping of one."""

import math

import pytest
import torch
from ray.rllib.utils.torch_utils import clip_gradients

from rllib_weighted.learning.adam import clip_rows
from tests.learning.test_parameters import assert_same, copies, f64, make_rows
from tests.merging._asserts import assert_close

NAN, INF = math.nan, math.inf


def by_rllib(gradients, clip, by):
    """RLlib's function, worker by worker."""
    rows = []
    for row in range(len(next(iter(gradients.values())))):
        one = {name: stack[row].clone() for name, stack in gradients.items()}
        clip_gradients(one, grad_clip=clip, grad_clip_by=by)
        rows.append(one)
    return {name: torch.stack([row[name] for row in rows]) for name in gradients}


def clipped(gradients, *, clip, by):
    found = copies(gradients)
    clip_rows(list(found.values()), clip=clip, by=by)
    return found


def special_rows():
    gradients = make_rows(6)
    gradients["w"][1] *= 1e-3
    gradients["b"][1], gradients["scalar"][1] = 0.0, 0.0
    gradients["w"][2, 0, 0] = INF
    gradients["b"][3, 1] = NAN
    gradients["scalar"][4] = -INF
    for rows in gradients.values():
        rows[5] = 0.0
    return gradients


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1.7, 100.0, INF])
@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_clipping_is_rllibs_worker_by_worker(by, clip):
    gradients = special_rows()
    expected = by_rllib(gradients, clip, by)
    if clip == INF:  # RLlib's formula makes NaN of an infinite limit.
        expected = gradients
    assert_same(clipped(gradients, clip=clip, by=by), expected, atol=1e-15)


@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_negative_control_clipping_all_workers_as_one_is_something_else(by):
    gradients = make_rows()
    together = copies(gradients)
    clip_gradients(together, grad_clip=0.5, grad_clip_by=by)
    each = clipped(gradients, clip=0.5, by=by)
    same = torch.allclose(each["w"], together["w"])
    assert same if by == "value" else not same
    assert not torch.allclose(each["w"], gradients["w"])


def test_clipping_by_hand():
    # Norms 5 and 1; at most 2.5: halved, and as it was.
    gradients = {"w": f64([[3.0, 0.0], [1.0, 0.0]]), "b": f64([[4.0], [0.0]])}
    found = clipped(gradients, clip=2.5, by="global_norm")
    assert_close(found["w"], [[1.5, 0.0], [1.0, 0.0]], atol=1e-6)  # RLlib adds 1e-6.
    assert_close(found["b"], [[2.0], [0.0]], atol=1e-6)
    found = clipped(gradients, clip=2.0, by="norm")
    assert_close(found["w"], [[2.0, 0.0], [1.0, 0.0]])
    assert_close(found["b"], [[2.0], [0.0]])
    assert_close(clipped(gradients, clip=2.0, by="value")["b"], [[2.0], [0.0]])


def test_without_a_clip_nothing_is_clipped():
    gradients = make_rows()
    assert_same(clipped(gradients, clip=None, by="nonsense"), gradients)


def test_an_unknown_way_to_clip_is_refused():
    with pytest.raises(ValueError, match="'value', 'norm' or 'global_norm', found 'l1'"):
        clipped(make_rows(), clip=1.0, by="l1")


@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_learner_without_workers_has_nothing_to_clip(clip, by):
    norms = clip_rows([torch.zeros(0, 3, 2), torch.zeros(0, 3), torch.zeros(0)], clip=clip, by=by)
    assert norms.shape == (0,)
