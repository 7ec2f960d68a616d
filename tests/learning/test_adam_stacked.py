import copy
from collections.abc import Sequence

import pytest
import torch
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from rllib_weighted.learning.adam import StackedAdam
from tests.merging._asserts import assert_close

N = 4
SHAPES = {"weight": (3, 2), "bias": (3,), "log_std": ()}
# The workers that take part in each of the steps; every count differs in the end.
SCRIPT = [[0, 1, 2, 3], [0, 2, 3], [3], [0, 1, 2, 3], [2, 3], [3, 0], [0, 1, 2, 3], [2]]


def make_stacks(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(N, *shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in SHAPES.values()
    ]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [stack.detach() for stack in make_stacks(dtype, seed=100 + step)]


def take_steps(
    optimizer: StackedAdam,
    stacks: list[Tensor],
    script: Sequence[Sequence[int] | None],
    *,
    first: int = 0,
) -> None:
    for number, rows in enumerate(script, start=first):
        optimizer.rows = slice(None) if rows is None else torch.tensor(rows)
        for stack, gradient in zip(stacks, gradients(number, stacks[0].dtype), strict=True):
            stack.grad = gradient
        optimizer.step()


class Separate:
    """N optimizers of torch's, one per worker: the oracle."""

    def __init__(self, stacks: list[Tensor], **settings: object) -> None:
        self.rows = [[s[i].detach().clone().requires_grad_() for s in stacks] for i in range(N)]
        self.optimizers = [torch.optim.Adam(rows, **settings) for rows in self.rows]

    def step(self, number: int, workers: Sequence[int]) -> None:
        found = gradients(number, self.rows[0][0].dtype)
        for worker in workers:
            for row, gradient in zip(self.rows[worker], found, strict=True):
                row.grad = gradient[worker].clone()
            self.optimizers[worker].step()

    def stacks(self) -> list[Tensor]:
        return [torch.stack(rows).detach() for rows in zip(*self.rows, strict=True)]


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(
        float((a.detach() - b).abs().max().double()) for a, b in zip(ours, theirs, strict=True)
    )


def snapshot(optimizer: StackedAdam, stacks: list[Tensor], row: int) -> list[Tensor]:
    tensors = list(stacks)
    for stack in stacks:
        tensors += optimizer.state[stack].values()
    return [tensor[row].detach().clone() for tensor in tensors]


SETTINGS = [{}, {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.1)]
)
def test_against_one_optimizer_per_worker(settings, dtype, tolerance):
    stacks = make_stacks(dtype)
    start = [stack.detach().clone() for stack in stacks]
    separate, ours = Separate(stacks, **settings), StackedAdam(stacks, **settings)
    for number, workers in enumerate(SCRIPT):
        separate.step(number, workers)
        take_steps(ours, stacks, [workers], first=number)
        assert largest_difference(stacks, separate.stacks()) <= tolerance
    assert largest_difference(stacks, start) > 3 * (tolerance if dtype.itemsize > 2 else 1e-4)


def test_the_first_step_by_hand():
    # m = 0.1 g, v = 0.001 g²; both corrected: g and g². θ = 1 - lr g / (|g| + eps) = 1 - 0.5
    stack = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    optimizer = StackedAdam([stack], lr=0.5, eps=0.0)
    stack.grad = torch.tensor([[3.0], [-7.0]], dtype=torch.float64)
    optimizer.step()
    assert_close(stack.detach(), [[0.5], [1.5]])
    assert optimizer.state[stack]["step"].tolist() == [1, 1]


def test_negative_control_a_worker_that_missed_steps_is_not_one_that_took_them():
    dropped, complete = make_stacks(), make_stacks()
    take_steps(StackedAdam(dropped), dropped, SCRIPT)
    take_steps(StackedAdam(complete), complete, [None] * len(SCRIPT))
    assert largest_difference(dropped, [s.detach() for s in complete]) > 1e-4


@pytest.mark.parametrize(
    "rows",
    [torch.tensor([1, 3]), torch.tensor([False, True, False, True]), slice(1, None, 2)],
)
def test_rows_that_are_left_out_stay_bit_for_bit(rows):
    stacks = make_stacks()
    optimizer = StackedAdam(stacks)
    take_steps(optimizer, stacks, [None, None])
    before = [snapshot(optimizer, stacks, row) for row in range(N)]
    optimizer.rows = rows
    for stack in stacks:
        stack.grad[0] = float("nan")  # Nobody reads what a dropped worker would have done.
    optimizer.step()
    for row in range(N):
        same = [
            torch.equal(a, b)
            for a, b in zip(before[row], snapshot(optimizer, stacks, row), strict=True)
        ]
        assert all(same) if row in (0, 2) else not any(same)
        assert all(torch.isfinite(t).all() for t in snapshot(optimizer, stacks, row))


def test_every_way_to_name_the_rows_does_the_same():
    found = []
    for rows in (
        torch.tensor([1, 3]),
        torch.tensor([False, True, False, True]),
        slice(1, None, 2),
    ):
        stacks = make_stacks()
        optimizer = StackedAdam(stacks)
        take_steps(optimizer, stacks, [None])
        optimizer.rows = rows
        optimizer.step()
        found.append([stack.detach() for stack in stacks])
    assert largest_difference(found[0], found[1]) == largest_difference(found[0], found[2]) == 0


def test_no_rows_is_no_step():
    stacks = make_stacks()
    optimizer = StackedAdam(stacks)
    take_steps(optimizer, stacks, [None])
    before = copy.deepcopy(stacks)
    optimizer.rows = torch.tensor([], dtype=torch.int64)
    optimizer.step()
    assert largest_difference(stacks, [s.detach() for s in before]) == 0


def test_the_learning_rate_may_change():
    stacks = make_stacks()
    separate, ours = Separate(stacks), StackedAdam(stacks)
    for number, lr in enumerate([1e-3, 0.1, 0.0, 0.02]):
        before = [stack.detach().clone() for stack in stacks]
        for optimizer in (ours, *separate.optimizers):
            optimizer.param_groups[0]["lr"] = lr
        separate.step(number, range(N))
        take_steps(ours, stacks, [None], first=number)
        assert largest_difference(stacks, separate.stacks()) <= 1e-12
        assert (largest_difference(stacks, before) > 0) == (lr > 0)


def test_a_parameter_without_gradient_is_left_out():
    stacks = make_stacks()
    optimizer = StackedAdam(stacks)
    take_steps(optimizer, stacks, [None])
    frozen = stacks[1].detach().clone()
    stacks[0].grad, stacks[1].grad = torch.ones_like(stacks[0]), None
    optimizer.step()
    assert torch.equal(stacks[1], frozen)
    assert optimizer.state[stacks[0]]["step"].tolist() == [2] * N
    assert optimizer.state[stacks[1]]["step"].tolist() == [1] * N


def as_rllib_keeps_it(state: dict) -> dict:
    # What RLlib's learner does with the state of an optimizer in a checkpoint.
    arrays = convert_to_numpy(state)
    return {**arrays, "state": convert_to_torch_tensor(arrays["state"], device="cpu")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [copy.deepcopy, as_rllib_keeps_it])
def test_a_restored_optimizer_goes_on_bit_for_bit(dtype, keep):
    if dtype == torch.bfloat16 and keep is as_rllib_keeps_it:
        dtype = torch.float16  # numpy knows no bfloat16.
    stacks = make_stacks(dtype)
    ours = StackedAdam(stacks, lr=0.01)
    take_steps(ours, stacks, SCRIPT[:5])
    other = [stack.detach().clone().requires_grad_() for stack in stacks]
    restored = StackedAdam(other)
    restored.load_state_dict(keep(ours.state_dict()))
    assert restored.param_groups[0]["lr"] == 0.01
    for a, b in zip(stacks, other, strict=True):
        assert torch.equal(ours.state[a]["step"], restored.state[b]["step"])
        assert restored.state[b]["step"].dtype == torch.int64
        assert ours.state[a]["step"] is not restored.state[b]["step"]
    take_steps(ours, stacks, SCRIPT[5:], first=5)
    take_steps(restored, other, SCRIPT[5:], first=5)
    assert largest_difference(stacks, [s.detach() for s in other]) == 0


def test_negative_control_a_fresh_optimizer_goes_elsewhere():
    stacks = make_stacks()
    ours = StackedAdam(stacks)
    take_steps(ours, stacks, SCRIPT[:5])
    other = [stack.detach().clone().requires_grad_() for stack in stacks]
    take_steps(ours, stacks, SCRIPT[5:], first=5)
    take_steps(StackedAdam(other), other, SCRIPT[5:], first=5)
    assert largest_difference(stacks, [s.detach() for s in other]) > 1e-4


def test_the_state_of_another_number_of_workers_is_refused():
    stacks = make_stacks()
    ours = StackedAdam(stacks)
    take_steps(ours, stacks, [None])
    fewer = StackedAdam([stack[:2].detach().requires_grad_() for stack in stacks])
    with pytest.raises(ValueError, match=r"that of 2 workers, found one of \[4\]"):
        fewer.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 2), (4, 2)], r"found first dimensions \[3, 4\]: stack one tensor"),
        ([(3, 2), ()], r"first dimensions \[0, 3\]"),
        ([(0, 2)], r"first dimensions \[0\]"),
    ],
)
def test_parameters_that_are_no_stacks_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        StackedAdam([torch.zeros(shape, requires_grad=True) for shape in shapes])


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1e-8}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` of Adam .* found"):
        StackedAdam(make_stacks(), **settings)


def test_a_closure_is_evaluated_with_gradients():
    stack = torch.full((2, 1), 3.0, dtype=torch.float64, requires_grad=True)
    optimizer = StackedAdam([stack])

    def closure():
        loss = stack.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).detach().item() == 18.0
    assert float(stack.detach()[0]) < 3.0
