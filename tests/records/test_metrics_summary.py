from __future__ import annotations

import dataclasses
import math
from numbers import Number

import pytest

from rllib_weighted.records import WorkerRecord, summarize, worker_metrics
from rllib_weighted.records.metrics import for_tune
from tests.records.helpers import record


def with_shares(*shares: float, min_weight: float = 0.25) -> list[WorkerRecord]:
    return [record(i, share=p, weight=p + min_weight) for i, p in enumerate(shares)]


def test_summary_by_hand() -> None:
    # p = 1/2, 1/4, 1/4: entropy = 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2.
    # w = 3/4, 1/2, 1/2: (7/4)^2 / (9/16 + 1/4 + 1/4) = (49/16) / (17/16) = 49/17.
    ages = zip(with_shares(0.25, 0.5, 0.25), (1, 3, None), strict=True)
    summary = summarize(
        [dataclasses.replace(item, signal_age=age) for item, age in ages],
        num_skipped_steps=2,
        num_replaced=1,
        recent_returns=[2.0, 4.0],
        fast_sampling=1.0,
        columns=0.5,
    )
    assert summary == pytest.approx(
        {
            "share_min": 0.25,
            "share_max": 0.5,
            "share_entropy": 1.5 * math.log(2),
            "effective_workers": 49 / 17,
            "num_workers": 3,
            "num_dropped": 0,
            "num_skipped_steps": 2,
            "num_replaced": 1,
            "episode_return_mean": 3.0,
            "fast_sampling": 1.0,
            "columns": 0.5,
            "signal_age_mean": 2.0,  # 1 and 3; the third has none.
        }
    )
    assert all(type(value) is float for value in summary.values())


def test_equal_shares_have_the_entropy_ln_n_and_n_effective_workers() -> None:
    summary = summarize(with_shares(*[1 / 8] * 8))
    assert summary["share_entropy"] == pytest.approx(math.log(8))
    assert summary["effective_workers"] == pytest.approx(8)


def test_a_share_of_zero_adds_nothing_to_the_entropy() -> None:
    summary = summarize(with_shares(1.0, 0.0, min_weight=0.0))
    assert summary["share_min"] == 0
    assert math.copysign(1, summary["share_entropy"]) == 1  # 0, and not -0
    assert summary["share_entropy"] == 0
    assert summary["effective_workers"] == 1


def test_dropped_workers_count_only_as_dropped() -> None:
    garbage = record(9, share=1e30, weight=math.nan, dropped=True)
    kept = with_shares(0.75, 0.25)
    expected = {**summarize(kept), "num_workers": 3.0, "num_dropped": 1.0}
    assert summarize([kept[0], garbage, kept[1]]) == expected


def test_order_does_not_matter() -> None:
    records = with_shares(0.5, 0.125, 0.375)
    assert summarize(records[::-1]) == pytest.approx(summarize(records), nan_ok=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_a_worker_shares_are_nan_and_no_worker_is_effective(num_workers: int) -> None:
    summary = summarize([record(i, share=0.5, dropped=True) for i in range(num_workers)])
    for name in ("share_min", "share_max", "share_entropy"):
        assert math.isnan(summary[name])
    assert summary["effective_workers"] == 0
    assert summary["num_workers"] == summary["num_dropped"] == num_workers


def test_weights_of_zero_make_no_effective_worker() -> None:
    assert summarize([record(weight=0.0), record(1, weight=0.0)])["effective_workers"] == 0


@pytest.mark.parametrize("position", [0, 1])
def test_a_share_that_is_nan_shows_in_every_share_metric(position: int) -> None:
    shares = [0.5, 0.5]
    shares[position] = math.nan
    summary = summarize(with_shares(*shares))
    for name in ("share_min", "share_max", "share_entropy"):
        assert math.isnan(summary[name])


def test_worker_metrics_by_worker_number() -> None:
    found = worker_metrics([record(3, signal=2, share=0.25, weight=0.5, loss=-1.5), record(1)])
    assert list(found) == ["3", "1"]
    assert found["3"] == {
        "signal": 2.0,
        "share": 0.25,
        "weight": 0.5,
        "loss": -1.5,
        "episode_return": 103.0,
        "num_episodes": 3.0,
    }
    assert all(type(value) is float for value in found["3"].values())


def test_what_is_missing_is_nan() -> None:
    found = worker_metrics([record(signal=None, loss=None, episode_return=None)])["0"]
    missing = [name for name, value in found.items() if math.isnan(value)]
    assert missing == ["signal", "loss", "episode_return"]


def test_beyond_32_workers_there_are_no_worker_metrics() -> None:
    assert len(worker_metrics([record(i) for i in range(32)])) == 32
    assert worker_metrics([record(i) for i in range(33)]) == {}


def test_without_an_episode_there_is_no_mean_return() -> None:
    assert math.isnan(summarize([record()])["episode_return_mean"])


def test_drifts_are_reported_for_workers_with_parameters_of_their_own() -> None:
    records = [record(0, drift=0.25), record(1, drift=0.75, dropped=True)]
    assert summarize(records)["drift_mean"] == 0.5  # A dropped worker has parameters too.
    assert [values["drift"] for values in worker_metrics(records).values()] == [0.25, 0.75]
    assert "drift_mean" not in summarize([record()])
    assert "drift" not in worker_metrics([record()])["0"]


def test_a_return_that_is_not_known_yet_is_no_number_to_tune() -> None:
    unknown = for_tune(summarize([record()]))["episode_return_mean"]
    assert not isinstance(
        unknown, Number
    )  # Which Tune would take a mean of, and keep NaN for ever.
    assert math.isnan(unknown)
    assert math.isnan(-1 * unknown)
    assert not unknown >= 475  # A stop criterion.
    known = summarize([record()], recent_returns=[3.0, 5.0])
    assert for_tune(known) == known
    assert known["episode_return_mean"] == 4.0
