from __future__ import annotations

import math

import pytest
import torch

from rllib_weighted.learning.losses import WorkerLosses
from rllib_weighted.learning.round_weights import RoundWeights
from rllib_weighted.merging import Weighting
from tests.learning.helpers import hand_weights, make_request, worker_losses


def step(merger, workers, *losses):
    """One step that is taken; returns the weights."""
    given = worker_losses(*losses)
    signals, merged = merger.weigh(workers, given)
    merger.record(workers, signals, merged, given)
    return merged.weights.tolist()


# Returns 1, 3, shares 1/4, 3/4, plus 1/2.
def test_reward_weights_by_hand():
    merger = RoundWeights(make_request(2, "reward_weighted", rewards=[1, 3]))
    assert step(merger, [0, 1], 9.0, 9.0) == [0.75, 1.25]


def test_the_loss_of_each_minibatch_is_its_own_signal():
    merger = RoundWeights(make_request(2, "loss_weighted", min_weight=0.0))
    assert step(merger, [0, 1], 1.0, 3.0) == [0.25, 0.75]
    assert step(merger, [0, 1], 3.0, 1.0) == [0.75, 0.25]


@pytest.mark.parametrize("part", ["total", "policy", "value"])
def test_the_loss_signal_can_be_a_part_of_the_loss(part):
    merger = RoundWeights(make_request(2, "loss_weighted", {"loss": part}, min_weight=0.0))
    losses = WorkerLosses(
        total=torch.tensor([1.0, 1.0]),
        policy=torch.tensor([1.0, 3.0]),
        value=torch.tensor([4.0, 1.0]),
    )
    expected = {"total": [0.5, 0.5], "policy": [0.25, 0.75], "value": [0.8, 0.2]}[part]
    assert merger.weigh([0, 1], losses)[1].weights.tolist() == pytest.approx(expected)


def test_round_losses_hold_for_the_whole_round():
    merger = RoundWeights(make_request(3, "loss_weighted", {"scope": "round"}, min_weight=0.0))
    assert merger.needs_round_losses
    merger.set_round_losses([0, 2], worker_losses(1.0, 3.0))
    assert step(merger, [0, 2], 9.0, 1.0) == [0.25, 0.75]
    assert step(merger, [2, 0], 5.0, 5.0) == [0.75, 0.25]
    assert step(merger, [2], 5.0) == [1.0]
    assert merger.result().signals == [1.0, None, 3.0]


@pytest.mark.parametrize("strategy", ["average", "sum", "reward_weighted"])
def test_only_one_setting_needs_the_losses_of_the_round(strategy):
    assert not RoundWeights(make_request(2, strategy)).needs_round_losses
    assert not RoundWeights(make_request(2, "loss_weighted")).needs_round_losses


def test_a_missing_return_counts_as_the_mean_of_the_others():
    merger = RoundWeights(make_request(3, "reward_weighted", rewards=[1, None, 3], min_weight=0.0))
    assert step(merger, [0, 1, 2], 0.0, 0.0, 0.0) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert merger.result().signals == [1.0, None, 3.0]


def test_a_merge_is_over_the_workers_that_take_part():
    merger = RoundWeights(make_request(3, "reward_weighted", rewards=[1, 100, 3]))
    assert step(merger, [0, 2], 0.0, 0.0) == [0.75, 1.25]  # 1/2 each, as for N = 2


def test_weights_of_constant_signals_are_computed_once_per_set_of_workers():
    merger = RoundWeights(
        make_request(2, "reward_weighted", {"transform": "random"}, rewards=[1, 3])
    )
    first = step(merger, [0, 1], 0.0, 0.0)
    assert all(step(merger, [0, 1], 0.0, 0.0) == first for _ in range(20))
    assert sorted(first) == [0.75, 1.25]


def test_random_shares_are_drawn_from_seed_and_round():
    def draws(**kwargs):
        request = make_request(6, "loss_weighted", {"transform": "random"}, **kwargs)
        merger = RoundWeights(request)
        return [step(merger, list(range(6)), *map(float, range(6))) for _ in range(5)]

    first = draws()
    assert first == draws()
    assert first != draws(round=2)
    assert first != draws(root_seed=8)
    assert len({tuple(weights) for weights in first}) > 1  # a new draw at every step


def test_a_negative_signal_is_reported_under_the_workers_own_number():
    request = make_request(4, "reward_weighted", {"offset": 1.0}, rewards=[5, 5, 5, -3])
    with pytest.raises(ValueError, match=r"worker 3 has the signal -3, .* at least 3"):
        RoundWeights(request).weigh([0, 3], worker_losses(0.0, 0.0))
    request = make_request(4, "loss_weighted", {"offset": 1.0})
    with pytest.raises(ValueError, match=r"worker 2 has the signal -4"):
        RoundWeights(request).weigh([1, 2, 3], worker_losses(1.0, -4.0, 1.0))


def test_the_result_averages_over_the_steps_taken():
    merger = RoundWeights(make_request(3, "loss_weighted", min_weight=0.0))
    step(merger, [0, 1], 1.0, 3.0)  # shares 1/4, 3/4
    step(merger, [0, 1, 2], 2.0, 1.0, 1.0)  # shares 1/2, 1/4, 1/4
    merger.drop(2, "its loss is not finite")
    merger.drop(2, "something later")
    merger.skip()
    result = merger.result()
    assert result.shares == [0.375, 0.5, 0.125]  # worker 2 had 0 in the first step
    assert result.weights == result.shares
    assert result.losses == [1.5, 2.0, 1.0]  # worker 2: the one step it took part in
    assert result.signals == [1.5, 2.0, 1.0]
    assert result.drops == [None, None, "its loss is not finite"]
    assert (result.num_steps, result.num_skipped_steps) == (2, 1)


def test_the_result_of_a_round_without_a_step():
    merger = RoundWeights(make_request(2, "loss_weighted", invalid={1: "reward nan"}))
    merger.skip()
    result = merger.result()
    assert result.signals == result.losses == [None, None]
    assert result.shares == result.weights == [0.0, 0.0]
    assert result.drops == [None, "reward nan"]
    assert (result.num_steps, result.num_skipped_steps) == (0, 1)


def test_a_loss_part_that_is_not_finite_is_a_missing_signal():
    merger = RoundWeights(make_request(2, "loss_weighted", {"loss": "value"}, min_weight=0.0))
    losses = WorkerLosses(torch.ones(2), value=torch.tensor([math.nan, 2.0]))
    signals, merged = merger.weigh([0, 1], losses)
    assert merged.weights.tolist() == [0.5, 0.5]
    merger.record([0, 1], signals, merged, losses)
    assert merger.result().signals == [None, 2.0]


@pytest.mark.parametrize("strategy", ["average", "sum", "reward_weighted", "loss_weighted"])
@pytest.mark.parametrize("min_weight", [None, 0.0, 0.3])
def test_all_strategies_by_hand(strategy, min_weight):
    signals = [2.0, -1.0, 4.0]
    request = make_request(3, strategy, rewards=signals, min_weight=min_weight)
    found = step(RoundWeights(request), [0, 1, 2], *signals)
    assert found == pytest.approx(hand_weights(strategy, signals, min_weight), abs=1e-14)


def slow_result(steps, num_workers):
    """Means over steps, number by number: (workers, signals, shares, weights, losses) each."""
    signals, shares, weights, losses = ([[] for _ in range(num_workers)] for _ in range(4))
    for workers, *numbers in steps:
        for place, worker in enumerate(workers):
            for found, values in zip((signals, shares, weights, losses), numbers, strict=True):
                if math.isfinite(values[place]):
                    found[worker].append(values[place])
    known = [[sum(v) / len(v) if v else None for v in found] for found in (signals, losses)]
    over_steps = [[sum(v) / len(steps) for v in found] for found in (shares, weights)]
    return known[0], *over_steps, known[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_result_over_steps_of_different_workers(seed):
    """Sets of workers that change from step to step, in any order, with missing signals."""
    num_workers = 6
    generator = torch.Generator().manual_seed(seed)
    merger = RoundWeights(make_request(num_workers, "loss_weighted", {"loss": "value"}))
    steps = []
    for _ in range(12):
        order = torch.randperm(num_workers - 1, generator=generator)  # The last one never is.
        workers = order[: int(torch.randint(1, 5, (1,), generator=generator))].tolist()
        total, value = torch.randn(2, len(workers), generator=generator, dtype=torch.float64)
        value[torch.rand(len(workers), generator=generator) < 0.2] = math.nan
        losses = WorkerLosses(total, value=value)
        signals, merged = merger.weigh(workers, losses)
        merger.record(workers, signals, merged, losses)
        steps.append((workers, value, merged.shares, merged.weights, total))
    result = merger.result()
    signals, shares, weights, losses = slow_result(
        [(workers, *(n.tolist() for n in numbers)) for workers, *numbers in steps], num_workers
    )
    assert result.shares == pytest.approx(shares)
    assert result.weights == pytest.approx(weights)
    for found, wanted in ((result.signals, signals), (result.losses, losses)):
        assert [value is None for value in found] == [value is None for value in wanted]
        assert [v for v in found if v is not None] == pytest.approx(
            [v for v in wanted if v is not None]
        )
    assert result.shares[-1] == result.weights[-1] == 0
    assert result.losses[-1] is None
    assert result.num_steps == 12


def test_workers_out_of_order_keep_their_numbers():
    merger = RoundWeights(make_request(3, "loss_weighted", min_weight=0.0))
    step(merger, [2, 0], 1.0, 3.0)
    step(merger, [0, 2], 3.0, 1.0)
    result = merger.result()
    assert result.shares == result.weights == [0.75, 0.0, 0.25]
    assert result.losses == [3.0, None, 1.0]


def test_losses_in_float32_are_reported_to_their_last_digit():
    merger = RoundWeights(make_request(2))
    losses = WorkerLosses(torch.tensor([0.1, 1e-8]))
    for _ in range(3):
        merger.record([0, 1], *merger.weigh([0, 1], losses), losses)
    assert merger.result().losses == pytest.approx(losses.total.double().tolist(), rel=1e-15)


class Ratio(Weighting):
    """A user's strategy that reads two signals."""

    def __init__(self, *signals):
        self._signals = signals

    @property
    def signals(self):
        return self._signals

    def shares(self, returns, losses, *, generator=None):
        return (returns / losses) / (returns / losses).sum()


def test_a_strategy_of_returns_and_losses():
    request = make_request(3, Ratio("return", "loss"), rewards=[2, 4, None], min_weight=0.0)
    merger = RoundWeights(request)
    assert not merger.needs_round_losses
    # Worker 2 has no return: that of the others, 3. Ratios 2, 4, 3 and then 2, 1, 1.
    assert step(merger, [0, 1, 2], 1.0, 1.0, 1.0) == pytest.approx([2 / 9, 4 / 9, 3 / 9])
    assert step(merger, [0, 1, 2], 1.0, 4.0, 3.0) == pytest.approx([1 / 2, 1 / 4, 1 / 4])
    assert merger.result().signals == [2.0, 4.0, None]  # The first of them.


def test_a_strategy_of_returns_and_losses_of_the_round():
    request = make_request(2, Ratio("return", "round_value_loss"), rewards=[2, 1], min_weight=0.0)
    merger = RoundWeights(request)
    assert merger.needs_round_losses
    losses = WorkerLosses(torch.ones(2), value=torch.tensor([1.0, 0.5]))
    merger.set_round_losses([1, 0], losses)  # Of worker 1: 1, of worker 0: 0.5; ratios 4, 1.
    assert step(merger, [0, 1], 9.0, 1.0) == pytest.approx([4 / 5, 1 / 5])
    assert step(merger, [0, 1], 1.0, 9.0) == pytest.approx([4 / 5, 1 / 5])


def test_without_a_signal_the_returns_are_reported():
    merger = RoundWeights(make_request(2, "average", rewards=[1, 3]))
    assert step(merger, [0, 1], 5.0, 6.0) == [0.5, 0.5]
    assert merger.result().signals == [1.0, 3.0]
