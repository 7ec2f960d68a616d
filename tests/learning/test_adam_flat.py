"""Adam on flat parameters, against torch's, RLlib's clipping, and the stacked one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ray.rllib.utils.torch_utils import clip_gradients
from torch import Tensor

from rllib_weighted.learning.adam import FlatAdam, StackedAdam, adam_state, clip_rows

SHAPES = {"weight": (4, 3), "bias": (4,), "log_std": (1,)}
SIZE = 12 + 4 + 1
NUM_WORKERS = 5
SETTINGS: list[dict[str, Any]] = [
    {"lr": 0.05},
    {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3},
]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_parameters(dtype: torch.dtype = torch.float64, num: int | None = None) -> dict[str, Any]:
    lead = () if num is None else (num,)
    return {
        name: torch.nn.Parameter(draw(*lead, *shape, seed=k, dtype=dtype))
        for k, (name, shape) in enumerate(SHAPES.items())
    }


def rate(step: int) -> float:
    """A learning rate that changes every ten steps, as RLlib's schedules change it."""
    return 0.05 / (1 + step // 10)


def step_torch(parameters: dict[str, Any], optimizer: Any, step: int, scheduled: bool) -> None:
    flat = draw(1, SIZE, seed=100 + step, dtype=next(iter(parameters.values())).dtype)
    for parameter, part in zip(parameters.values(), flat[0].split([12, 4, 1]), strict=True):
        parameter.grad = part.view(parameter.shape).clone()
    if scheduled:
        optimizer.param_groups[0]["lr"] = rate(step)
    optimizer.step()


def step_ours(adam: FlatAdam, group: dict[str, Any], step: int, scheduled: bool) -> None:
    gradients = draw(1, SIZE, seed=100 + step, dtype=adam.parameters.dtype)
    before = gradients.clone()
    adam.step(gradients, {**group, **({"lr": rate(step)} if scheduled else {})})
    assert torch.equal(gradients, before)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], *optimizers: Any, atol: float):
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=atol)
        own, other = (
            optimizer.state[p]
            for optimizer, p in zip(optimizers, (parameter, theirs[name]), strict=True)
        )
        assert own.keys() == other.keys()
        for key, value in other.items():
            assert own[key].dtype == value.dtype
            torch.testing.assert_close(own[key], value, rtol=0, atol=atol)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_many_steps_equal_those_of_torch(settings, scheduled, dtype, atol):
    theirs, ours = make_parameters(dtype), make_parameters(dtype)
    start = copy.deepcopy(ours)
    expected = torch.optim.Adam(theirs.values(), **settings)
    optimizer = torch.optim.Adam(ours.values(), **settings)
    adam = FlatAdam(ours, optimizer)
    adam.load()
    for step in range(40):
        step_torch(theirs, expected, step, scheduled)
        step_ours(adam, optimizer.param_groups[0], step, scheduled)
        if step == 20:  # A round ends here, and the next begins.
            adam.store()
            adam = FlatAdam(ours, optimizer)
            adam.load()
    adam.store()
    assert_same(ours, theirs, optimizer, expected, atol=atol)
    assert all((ours[name] - start[name]).abs().max() > 1e-3 for name in SHAPES)


def test_parameters_stay_as_they_were_until_they_are_stored():
    parameters = make_parameters()
    before = copy.deepcopy(parameters)
    optimizer = torch.optim.Adam(parameters.values(), lr=0.05)
    adam = FlatAdam(parameters, optimizer)
    adam.load()
    step_ours(adam, optimizer.param_groups[0], 0, False)
    assert all(torch.equal(parameters[name], before[name]) for name in SHAPES)
    assert not optimizer.state
    adam.store()
    assert not any(torch.equal(parameters[name], before[name]) for name in SHAPES)
    assert len(optimizer.state) == len(SHAPES)
    stored = copy.deepcopy(list(optimizer.state.values()))
    step_ours(adam, optimizer.param_groups[0], 1, False)
    for found, wanted in zip(optimizer.state.values(), stored, strict=True):
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_a_round_without_a_step_leaves_no_state():
    parameters = make_parameters()
    optimizer = torch.optim.Adam(parameters.values())
    adam = FlatAdam(parameters, optimizer)
    adam.load()
    adam.store()
    assert not optimizer.state
    assert all(torch.equal(parameters[n], p) for n, p in make_parameters().items())


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_state_dict_carries_on_from_one_to_the_other(ours_first):
    """Five steps of one, its state into new objects, five steps of the other."""
    theirs = make_parameters()
    expected = torch.optim.Adam(theirs.values(), lr=0.05)
    parameters = make_parameters()
    optimizer = torch.optim.Adam(parameters.values(), lr=0.05)
    for step in range(10):
        step_torch(theirs, expected, step, True)
        if step == 5:
            saved = copy.deepcopy(optimizer.state_dict())
            parameters = copy.deepcopy(parameters)
            optimizer = torch.optim.Adam(parameters.values(), lr=0.3)
            optimizer.load_state_dict(saved)
        if (step < 5) == ours_first:
            adam = FlatAdam(parameters, optimizer)
            adam.load()
            step_ours(adam, optimizer.param_groups[0], step, True)
            adam.store()
        else:
            step_torch(parameters, optimizer, step, True)
    assert_same(parameters, theirs, optimizer, expected, atol=1e-12)


def test_views_by_name():
    parameters = make_parameters()
    adam = FlatAdam(parameters, torch.optim.Adam(parameters.values()))
    adam.load()
    shared = adam.views(adam.parameters)
    for name, parameter in parameters.items():
        assert torch.equal(shared[name], parameter)
    stacks = make_parameters(num=NUM_WORKERS)
    stacked = FlatAdam(stacks, StackedAdam(stacks.values()), torch.tensor([3]))
    stacked.load()
    for name, rows in stacked.views(stacked.parameters).items():
        assert torch.equal(rows, stacks[name][3:4])
    shared["bias"].fill_(7.0)
    assert int((adam.parameters == 7).sum()) == parameters["bias"].numel()


# Own parameters

# Who takes part in each round of two steps; every count differs in the end.
SCRIPT = [[0, 1, 2, 3, 4], [0, 2, 4], [3], [1, 2, 4], [0, 1, 2, 3, 4], [4], [1, 0]]


def index_of(rows: list[int]) -> Any:
    if rows == list(range(NUM_WORKERS)):
        return slice(None)
    return slice(0, 5, 2) if rows == [0, 2, 4] else torch.tensor(rows)


def row_gradients(step: int) -> Tensor:
    return draw(NUM_WORKERS, SIZE, seed=200 + step)


def step_stacked(stacks: dict[str, Any], optimizer: StackedAdam, rows: list[int], step: int):
    optimizer.rows = index_of(rows)
    for stack, part in zip(
        stacks.values(), row_gradients(step).split([12, 4, 1], dim=1), strict=True
    ):
        stack.grad = part.reshape(stack.shape).clone()
    optimizer.step()


def everything(stacks: dict[str, Any], optimizer: StackedAdam) -> dict[str, Tensor]:
    """All numbers by name, [N, ...]."""
    found = {name: stack.detach() for name, stack in stacks.items()}
    for name, stack in stacks.items():
        found |= {f"{name} {key}": value for key, value in optimizer.state[stack].items()}
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_equal_the_stacked_adam(settings):
    theirs, ours = make_parameters(num=NUM_WORKERS), make_parameters(num=NUM_WORKERS)
    expected, optimizer = (StackedAdam(s.values(), **settings) for s in (theirs, ours))
    for stack in ours.values():
        adam_state(optimizer, stack)
    for round, rows in enumerate(SCRIPT):
        before = everything(ours, optimizer)
        adam = FlatAdam(ours, optimizer, index_of(rows))
        adam.load()
        for step in (2 * round, 2 * round + 1):
            step_stacked(theirs, expected, rows, step)
            adam.step(row_gradients(step)[rows], optimizer.param_groups[0])
        adam.store()
        others = [worker for worker in range(NUM_WORKERS) if worker not in rows]
        for name, value in everything(ours, optimizer).items():
            assert torch.equal(value[others], before[name][others])
            if not name.endswith("step"):
                assert not torch.equal(value[rows], before[name][rows])
    wanted = everything(theirs, expected)
    for name, value in everything(ours, optimizer).items():
        assert value.dtype == wanted[name].dtype
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-12)
    steps = optimizer.state[ours["bias"]]["step"].tolist()
    assert steps == [2 * sum(worker in rows for rows in SCRIPT) for worker in range(NUM_WORKERS)]
    assert len(set(steps)) > 2


@pytest.mark.parametrize("rows", [slice(None), torch.empty(0, dtype=torch.int64)])
def test_loading_and_storing_changes_nothing(rows):
    stacks = make_parameters(num=NUM_WORKERS)
    optimizer = StackedAdam(stacks.values(), lr=0.1)
    for step in range(3):
        step_stacked(stacks, optimizer, [1, 2, 4], step)
    before = everything(stacks, optimizer)
    adam = FlatAdam(stacks, optimizer, rows)
    adam.load()
    if not isinstance(rows, slice):  # A learner whose workers have sent nothing.
        adam.step(torch.zeros(0, SIZE, dtype=torch.float64), optimizer.param_groups[0])
    adam.store()
    after = everything(stacks, optimizer)
    assert all(torch.equal(after[name], before[name]) for name in before)


# Clipping

MODES = ["value", "norm", "global_norm"]


def split(flat: Tensor) -> dict[str, Tensor]:
    parts = flat.clone().split([12, 4, 1], dim=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def shared_adam(dtype: torch.dtype = torch.float64) -> FlatAdam:
    parameters = make_parameters(dtype)
    return FlatAdam(parameters, torch.optim.Adam(parameters.values()))


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("clip", [None, 0.1, 1.5, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_clipping_is_rllibs(by, clip, scale, dtype, rtol):
    gradients = scale * draw(1, SIZE, seed=5, dtype=dtype)
    expected = split(gradients[0])
    norm = clip_gradients(expected, grad_clip=clip, grad_clip_by=by)
    found = gradients.clone()
    (before,) = shared_adam(dtype).clip(found, clip=clip, by=by)
    for name, part in split(found[0]).items():
        torch.testing.assert_close(part, expected[name], rtol=rtol, atol=0)
    if norm is not None:
        torch.testing.assert_close(before, norm, rtol=rtol, atol=0)
    assert before.item() == pytest.approx(float(gradients.norm()), rel=1e-6)
    if clip is None or not scale:
        assert torch.equal(found, gradients)
    elif clip < scale:
        assert not torch.equal(found, gradients)


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("clip", [None, 0.5, 3.0])
def test_every_row_is_clipped_on_its_own(by, clip):
    stacks = make_parameters(num=3)
    adam = FlatAdam(stacks, StackedAdam(stacks.values()), slice(None))
    gradients = draw(3, SIZE, seed=6) * torch.tensor([[0.01], [1.0], [100.0]]).double()
    found = gradients.clone()
    norms = adam.clip(found, clip=clip, by=by)
    torch.testing.assert_close(norms, gradients.norm(dim=1))
    expected = split(gradients)
    clip_rows(list(expected.values()), clip=clip, by=by)
    for name, part in split(found).items():
        torch.testing.assert_close(part, expected[name], rtol=1e-14, atol=0)
    for row, given in zip(found, gradients, strict=True):
        alone = given.clone().unsqueeze(0)
        shared_adam().clip(alone, clip=clip, by=by)
        torch.testing.assert_close(row, alone[0], rtol=1e-14, atol=0)


# 3, 4 | 0 … | 12: norms 5, 0, 12; of all 13.
@pytest.mark.parametrize(
    ("by", "expected"),
    [("value", [3.0, 4.0, 6.5]), ("norm", [3.0, 4.0, 6.5]), ("global_norm", [1.5, 2.0, 6.0])],
)
def test_clipping_by_hand(by, expected):
    gradients = torch.zeros(1, SIZE, dtype=torch.float64)
    gradients[0, :2], gradients[0, -1] = torch.tensor([3.0, 4.0]), 12.0
    assert shared_adam().clip(gradients, clip=6.5, by=by).tolist() == [13.0]
    assert gradients[0, [0, 1, -1]].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("clip", [None, 0, float("inf")])
def test_without_a_limit_nothing_is_clipped(by, clip):
    """By RLlib's formula, infinity would make it NaN."""
    gradients = draw(1, SIZE, seed=7)
    found = gradients.clone()
    shared_adam().clip(found, clip=clip, by=by)
    assert torch.equal(found, gradients)
