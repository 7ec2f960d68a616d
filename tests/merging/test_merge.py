import dataclasses
import math

import pytest
import torch

from rllib_weighted.merging import Average, LossWeighted, RewardWeighted, Sum, Weighting, merge
from tests.merging import _asserts
from tests.merging._asserts import assert_close, draw

NAN, INF = math.nan, math.inf
STRATEGIES = {
    "average": Average(),
    "sum": Sum(),
    "reward": RewardWeighted(),
    "reward low": RewardWeighted(direction="low", offset="min"),
    "loss": LossWeighted(),
    "loss softmax": LossWeighted(transform="softmax", temperature=0.7),
    "loss rank": LossWeighted(transform="rank", normalize=True),
    "loss top_k": LossWeighted(transform="top_k", top_k=2),
}
every = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


class TestMerge:
    @every
    @pytest.mark.parametrize("min_weight", [None, 0.0, 0.3])
    def test_dropped_is_as_if_it_had_never_been_there(self, strategy, min_weight):
        generator = torch.Generator().manual_seed(0)
        for seed in range(10):
            signals = draw(8, seed=seed)
            signals[seed % 8] = NAN
            present = torch.rand(8, generator=generator) < 0.6
            present[3] = True
            garbage = torch.where(present, signals, torch.tensor(NAN, dtype=torch.float64))
            whole = merge(strategy, garbage, min_weight=min_weight, present=present)
            rest = merge(strategy, signals[present], min_weight=min_weight)
            assert torch.equal(whole.shares[present], rest.shares)
            assert torch.equal(whole.weights[present], rest.weights)
            assert not whole.shares[~present].any()
            assert not whole.weights[~present].any()

    @every
    def test_shapes_dtypes_and_equality_of_ways_to_say_all_present(self, strategy):
        signals = draw(8).float().requires_grad_()
        merged = merge(strategy, signals)
        _asserts.assert_shares(merged.shares, 8)
        assert merged.weights.dtype == torch.float64
        assert not merged.weights.requires_grad
        for present in ([True] * 8, torch.ones(8, dtype=torch.bool)):
            again = merge(strategy, signals, present=present)
            assert torch.equal(again.weights, merged.weights)

    @pytest.mark.parametrize("signals", [[1.0, 2.0], [NAN, 2.0], [None, None], [1e308, 1e308]])
    @pytest.mark.parametrize("min_weight", [None, 0.0, 5.0])
    def test_average_and_sum_ignore_signals_and_minimum_weight(self, signals, min_weight):
        assert_close(merge(Average(), signals, min_weight=min_weight).weights, [0.5, 0.5])
        assert_close(merge(Sum(), signals, min_weight=min_weight).weights, [1.0, 1.0])

    def test_average_and_sum_over_those_present(self):
        present = [True, False, True]
        assert_close(merge(Average(), [1, 2, 3], present=present).weights, [0.5, 0.0, 0.5])
        assert_close(merge(Sum(), [1, 2, 3], present=present).weights, [1.0, 0.0, 1.0])

    def test_missing_equal_signals_stay_uniform_under_offset_min(self):
        merged = merge(RewardWeighted(offset="min"), [0.1, 0.1, 0.1, None, 0.1, 0.1, 0.1])
        assert_close(merged.shares, [1 / 7] * 7)

    def test_a_merge_is_immutable(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            merge(Average(), [1.0]).weights = torch.zeros(1)

    def test_identical_workers_get_identical_weights(self):
        weights = merge(LossWeighted(), [0.3, 1.7, 0.3, 0.3]).weights
        assert float(weights[0]) == float(weights[2]) == float(weights[3])


class Fixed(Weighting):
    """Returns what it is told to."""

    signal = "reward"

    def __init__(self, shares=None, weights=None):
        self.fixed_shares = shares
        self.fixed_weights = weights
        self.seen = None

    def shares(self, signals, *, generator=None):
        self.seen = signals.clone()
        signals.fill_(-1.0)
        return (
            torch.full_like(signals, 1 / len(signals))
            if self.fixed_shares is None
            else (self.fixed_shares)
        )

    def weights(self, shares, *, min_weight=None):
        if self.fixed_weights is None:
            return super().weights(shares, min_weight=min_weight)
        return self.fixed_weights


class TestUserStrategy:
    def test_it_sees_filled_signals_of_those_present_and_cannot_change_ours(self):
        strategy = Fixed()
        signals = torch.tensor([1.0, NAN, 9.0, 3.0], dtype=torch.float64)
        before = signals.clone()
        merged = merge(strategy, signals, present=[True, True, False, True])
        assert strategy.seen.tolist() == [1.0, 2.0, 3.0]
        assert_close(merged.weights, [2 / 3, 2 / 3, 0.0, 2 / 3])
        torch.testing.assert_close(signals, before, rtol=0, atol=0, equal_nan=True)

    def test_it_cannot_change_ours_when_nothing_is_filled(self):
        signals = torch.tensor([1.0, 9.0], dtype=torch.float64)
        merge(Fixed(), signals)
        assert signals.tolist() == [1.0, 9.0]

    def test_without_a_signal_it_sees_zeros(self):
        class Blind(Fixed):
            signal = "none"

        strategy = Blind(shares=torch.tensor([0.25, 0.75]))
        assert_close(merge(strategy, [NAN, NAN], min_weight=0).weights, [0.25, 0.75])
        assert strategy.seen.tolist() == [0.0, 0.0]

    def test_nothing_finite_gives_equal_shares_without_asking(self):
        strategy = Fixed(shares=torch.tensor([0.25, 0.75]))
        assert_close(merge(strategy, [NAN, None], min_weight=0).weights, [0.5, 0.5])
        assert strategy.seen is None

    def test_float32_and_gradients_are_taken_off(self):
        strategy = Fixed(shares=torch.tensor([0.25, 0.75], requires_grad=True))
        merged = merge(strategy, [1.0, 2.0])
        assert merged.shares.dtype == merged.weights.dtype == torch.float64
        assert not merged.shares.requires_grad
        assert not merged.weights.requires_grad

    @pytest.mark.parametrize(
        ("strategy", "message"),
        [
            (Fixed(shares=[0.5, 0.5]), "Fixed.shares should return a tensor, found list"),
            (Fixed(shares=torch.ones(3) / 3), r"Fixed.shares .* shape \[2\], .* found \[3\]"),
            (Fixed(shares=torch.tensor(1.0)), r"Fixed.shares .* shape \[2\], .* found \[\]"),
            (Fixed(shares=torch.tensor([0.5, NAN])), "Fixed.shares .* found nan at position 1"),
            (Fixed(shares=torch.tensor([1.5, -0.5])), "Fixed.shares .* found -0.5 at position 1"),
            (Fixed(shares=torch.tensor([0.5, 1.0])), "Fixed.shares should sum to 1, found 1.5"),
            (Fixed(weights=torch.ones(1)), r"Fixed.weights .* shape \[2\], .* found \[1\]"),
            (Fixed(weights=torch.tensor([INF, 1.0])), "Fixed.weights .* found inf at position 0"),
            (Fixed(weights=torch.tensor([1.0, -1.0])), "Fixed.weights .* found -1 at position 1"),
            (Fixed(weights=None), "min_weight should be"),
        ],
    )
    def test_what_it_returns_is_checked_and_it_is_named(self, strategy, message):
        with pytest.raises(ValueError, match=message):
            merge(strategy, [1.0, 2.0], min_weight=-1.0)


class Ratio(Weighting):
    """A user's strategy that reads two signals."""

    signals = ("return", "loss")

    def shares(self, returns, losses, *, generator=None):
        self.seen = returns.tolist(), losses.tolist()
        ratio = returns / losses
        returns.fill_(-1.0)
        return ratio / ratio.sum()


class TestSeveralSignals:
    def test_by_hand(self):
        # 2/1, 3/3, 4/4: shares 1/2, 1/4, 1/4; + 1/3
        signals = {"loss": [1.0, 3.0, 4.0], "return": [2.0, 3.0, 4.0]}
        merged = merge(Ratio(), signals)
        assert_close(merged.shares, [1 / 2, 1 / 4, 1 / 4])
        assert_close(merged.weights, [5 / 6, 7 / 12, 7 / 12])

    def test_each_is_filled_and_masked_by_itself_and_ours_stay(self):
        returns = torch.tensor([2.0, NAN, 9.0, 4.0], dtype=torch.float64)
        signals = {"return": returns, "loss": [1.0, 2.0, NAN, None], "policy_loss": []}
        before, strategy = returns.clone(), Ratio()
        merged = merge(strategy, signals, present=[True, True, False, True], min_weight=0)
        # Of workers 0, 1, 3: returns 2, 3, 4 and losses 1, 2, 1.5; ratios 2, 3/2, 8/3; sum 37/6
        assert strategy.seen == ([2.0, 3.0, 4.0], [1.0, 2.0, 1.5])
        assert_close(merged.weights, [12 / 37, 9 / 37, 0.0, 16 / 37])
        torch.testing.assert_close(returns, before, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("missing", ["return", "loss"])
    def test_equal_shares_if_one_of_them_is_missing_everywhere(self, missing):
        signals = {"return": [2.0, 3.0], "loss": [1.0, 3.0], missing: [NAN, None]}
        assert_close(merge(Ratio(), signals, min_weight=0).weights, [0.5, 0.5])

    def test_a_mapping_also_does_for_one_signal_and_for_none(self):
        signals = {"loss": [1.0, 3.0], "return": [1.0, 1.0]}
        assert_close(merge(LossWeighted(), signals, min_weight=0).weights, [0.25, 0.75])
        assert_close(merge(Average(), signals).weights, [0.5, 0.5])

    @pytest.mark.parametrize(
        ("strategy", "signals", "message"),
        [
            (
                Ratio(),
                [1.0, 2.0],
                r"of Ratio .* mapping .*\['return', 'loss'\], found \[1.0, 2.0\]",
            ),
            (Ratio(), {"return": [1.0]}, r"keys \['return', 'loss'\], found \['return'\]"),
            (LossWeighted(), {"return": [1.0]}, r"keys \['loss'\], found \['return'\]: give"),
            (Average(), {}, r"of Average should be a mapping .* found \{\}"),
            (
                Ratio(),
                {"return": [1.0], "loss": [1.0, 2.0]},
                r"should all have the same shape \[N\], found \[1\], \[2\]: give one",
            ),
        ],
    )
    def test_signals_that_do_not_fit_are_refused(self, strategy, signals, message):
        with pytest.raises(ValueError, match=message):
            merge(strategy, signals)
